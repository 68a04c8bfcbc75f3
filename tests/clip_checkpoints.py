"""Make tiny CLIP checkpoints of transformers and diffusers: both towers or one, of every release that saved others.

``write_clip`` writes a CLIPModel, ``write_tower`` one of the four single-tower classes, ``write_pipeline`` a diffusers
pipeline. All of them take the keywords of ``weights.write_weights``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from tests.checkpoints import TINY, Clip, Text, Vision
from tests.json_files import write_json
from tests.weights import Array, Arrays, arrays_of, write_weights

# ---- vocabularies and image processors -------------------------------------------------------------------------------


def write_vocabulary(directory: Path, tokens: Sequence[str], kind: str = "vocab.json") -> Path:
    """Write a vocabulary as vocab.json, or as tokenizer.json, the only one that transformers 5 writes."""
    directory.mkdir(parents=True, exist_ok=True)
    ids = {token: number for number, token in enumerate(tokens)}
    if kind == "vocab.json":
        write_json(directory / kind, ids)
        (directory / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
        return directory
    # The special tokens are in both lists, and one more is in the second alone.
    *own, last = tokens
    added = [own[-1], last]
    write_json(
        directory / "tokenizer.json",
        {
            "version": "1.0",
            "added_tokens": [{"id": ids[token], "content": token, "special": True} for token in added],
            "model": {"type": "BPE", "vocab": {token: ids[token] for token in own}, "merges": []},
        },
    )
    return directory


def tokens(count: int, word: str = "tok") -> list[str]:
    """Return a vocabulary, which is that of ``tests.checkpoints.write_model`` if ``word`` is not given."""
    return [f"{word}{number}</w>" for number in range(count)]


CLIP_STATISTICS = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}


def write_processor(directory: Path, kind: str = "preprocessor_config.json", **values: Any) -> None:
    """Write the image processor's file; in processor_config.json, which transformers 5 writes, it is one of several."""
    processor = {"image_processor_type": "CLIPImageProcessor", **CLIP_STATISTICS, **values}
    if kind == "processor_config.json":
        write_json(directory / kind, {"image_processor": processor, "processor_class": "CLIPProcessor"})
    else:
        write_json(directory / kind, processor)


# ---- towers ----------------------------------------------------------------------------------------------------------


def only(tower: str) -> dict[str, Any]:
    """Return the option that converts one tower of a model, "text" or "vision"."""
    return {f"{tower}_only": True}


def position_ids(clip: Clip) -> Arrays:
    """Return the integer buffers that transformers saved until 4.31."""
    positions = clip.shapes()["vision_model.embeddings.position_embedding.weight"][0]
    return {
        "text_model.embeddings.position_ids": np.arange(clip.text.max_position_embeddings)[None],
        "vision_model.embeddings.position_ids": np.arange(positions)[None],
    }


def clip_config(clip: Clip, style: str = "5") -> dict[str, Any]:
    """Return a CLIPModel's config.json.

    ``style`` is "5", with every field; "4", where sub-configs have only what differs from the defaults, and the dtype
    has its old name; or "config_dict", where ``text_config_dict`` and ``vision_config_dict`` overrule the rest.
    """
    config = clip.config_json()
    if style == "5":
        return config
    full = {key: config[f"{key}_config"] for key in ("text", "vision")}
    config["torch_dtype"] = config.pop("dtype")
    config["transformers_version"] = "4.26.0"
    if style == "config_dict":
        for key, values in full.items():
            config[f"{key}_config_dict"] = values
            config[f"{key}_config"] = {"hidden_size": 1024, "hidden_act": "gelu", "num_hidden_layers": 24}
        return config
    for key, values in full.items():
        defaults = {**(CLIP_TEXT_DEFAULTS if key == "text" else CLIP_VISION_DEFAULTS), "num_channels": 3}
        config[f"{key}_config"] = {k: v for k, v in values.items() if k not in defaults or v != defaults[k]}
        config[f"{key}_config_dict"] = None
    return config


# CLIPTextConfig's and CLIPVisionConfig's.
_BOTH_DEFAULTS = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-05, "projection_dim": 512}
CLIP_TEXT_DEFAULTS = {**asdict(Text(512, 2048, 12, 8)), **_BOTH_DEFAULTS}
CLIP_VISION_DEFAULTS = {**asdict(Vision(768, 3072, 12, 12)), **_BOTH_DEFAULTS}


def write_clip(
    directory: Path,
    clip: Clip = TINY,
    *,
    style: str = "5",
    has_position_ids: bool = False,
    vocabulary: str | None = "vocab.json",
    processor: str | None = "preprocessor_config.json",
    extra: Mapping[str, Array] | None = None,
    **weights: Any,
) -> Path:
    """Write a CLIPModel as transformers saves it."""
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / "config.json", clip_config(clip, style))
    if vocabulary:
        write_vocabulary(directory, tokens(clip.text.vocab_size), vocabulary)
    if processor:
        write_processor(directory, processor)
    buffers = position_ids(clip) if has_position_ids else {}
    write_weights(directory, {**arrays_of(clip.shapes()), **buffers, **(extra or {})}, **weights)
    return directory


def tower_arrays(
    clip: Clip, tower: str, *, projection: bool, prefix: str | None, has_position_ids: bool = False
) -> Arrays:
    """Return one tower's tensors by stored name; ``tower`` is "text" or "vision"."""
    whole = {**arrays_of(clip.shapes()), **(position_ids(clip) if has_position_ids else {})}
    own = f"{tower}_model."
    prefix = own if prefix is None else prefix
    arrays = {prefix + name.removeprefix(own): array for name, array in whole.items() if name.startswith(own)}
    if projection:
        name = "text_projection.weight" if tower == "text" else "visual_projection.weight"
        arrays[name] = whole[name]
    return arrays


def tower_config(clip: Clip, tower: str, *, projection: bool, style: str = "5") -> dict[str, Any]:
    """Return one tower's config.json, which is flat, and has a ``projection_dim`` whether or not there is one."""
    config = clip_config(clip)[f"{tower}_config"]
    if style == "4":
        defaults = CLIP_TEXT_DEFAULTS if tower == "text" else CLIP_VISION_DEFAULTS
        config = {key: value for key, value in config.items() if value != defaults.get(key)}
    else:
        config["projection_dim"] = clip.projection_dim if projection else 512
    name = f"CLIP{tower.title()}Model{'WithProjection' if projection else ''}"
    return {"architectures": [name], **config, "dtype": "float32", "transformers_version": "5.23.0"}


def write_tower(
    directory: Path,
    tower: str,
    clip: Clip = TINY,
    *,
    projection: bool = False,
    prefix: str | None = None,
    has_position_ids: bool = False,
    style: str = "5",
    vocabulary: str | None = "vocab.json",
    processor: str | None = "preprocessor_config.json",
    extra: Mapping[str, Array] | None = None,
    **weights: Any,
) -> Path:
    """Write a CLIPTextModel or CLIPVisionModel, or its WithProjection.

    What stands before the names is "vision_model." or "text_model." unless there is a ``prefix``; transformers 5 saves
    the former with none where it made them itself.
    """
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / "config.json", tower_config(clip, tower, projection=projection, style=style))
    if tower == "text" and vocabulary:
        write_vocabulary(directory, tokens(clip.text.vocab_size), vocabulary)
    if tower == "vision" and processor:
        write_processor(directory, processor)
    arrays = tower_arrays(clip, tower, projection=projection, prefix=prefix, has_position_ids=has_position_ids)
    write_weights(directory, {**arrays, **(extra or {})}, **weights)
    return directory


def write_pipeline(directory: Path, clip: Clip = TINY, *, vocabulary: str = "vocab.json", **weights: Any) -> Path:
    """Write what a diffusers pipeline has of CLIP: SDXL's two text encoders and IP-Adapter's image encoder.

    The vocabularies are beside the text encoders, each with words of its own; the image encoder has neither them nor
    an image processor's file.
    """
    write_tower(directory / "text_encoder", "text", clip, vocabulary=None, **weights)
    write_tower(directory / "text_encoder_2", "text", clip, projection=True, vocabulary=None, **weights)
    write_tower(directory / "image_encoder", "vision", clip, projection=True, processor=None, **weights)
    write_vocabulary(directory / "tokenizer", tokens(clip.text.vocab_size, "one"), vocabulary)
    write_vocabulary(directory / "tokenizer_2", tokens(clip.text.vocab_size, "two"), vocabulary)
    classes = {"text_encoder": "CLIPTextModel", "text_encoder_2": "CLIPTextModelWithProjection"}
    write_json(directory / "model_index.json", {name: ["transformers", kind] for name, kind in classes.items()})
    return directory


def narrow(clip: Clip) -> Clip:
    """Return a model of the same depth with the smallest towers that there can be."""
    t, v = clip.text, clip.vision
    shrunk = {"hidden_size": 4, "intermediate_size": 8, "num_attention_heads": 2}
    return Clip(
        Text(**{**asdict(t), **shrunk, "vocab_size": 9, "max_position_embeddings": 5}),
        Vision(**{**asdict(v), **shrunk, "image_size": 8, "patch_size": 4}),
        3,
        clip.hidden_act,
    )
