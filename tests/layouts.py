"""Make tiny checkpoints in every layout that CLIP and SigLIP towers are published in, from one set of weights.

Beside ``tests/checkpoints.py`` (sizes, transformers' names) and ``tests/llava_checkpoints.py`` (LLaVA; the values of a
tensor by its canonical name). A tensor's canonical name is that of transformers' CLIPModel or SiglipModel, and its
values follow from that name alone, so that all layouts of one ``Clip`` must give the same tensors:

- ``write_clip``: transformers' CLIPModel; ``write_tower``: one of its four single-tower classes.
- ``write_pipeline``: a diffusers pipeline; ``write_cache``: a snapshot in a Hugging Face cache.
- ``write_open_clip``: OpenCLIP's own; ``write_open_clip_timm``: with one of timm's towers.
- ``write_siglip``: SiglipModel; ``write_siglip_tower``: SiglipVisionModel; ``write_siglip_llava``: LLaVA with such a
  tower.

All of them take the keywords of ``write_weights``.
"""

import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests import torch_bytes
from tests.checkpoints import (
    TINY,
    Clip,
    Dtypes,
    Shapes,
    Text,
    Vision,
    safetensors_header,
    to_dtype,
    write_json,
)
from tests.llava_checkpoints import PROJECTOR, SPELLINGS, Llava, tensor_values

Array = NDArray[Any]
Arrays = dict[str, Array]

# One block beside two, so that the fixture with saved names stays small and numbering still shows.
NAMES = Clip(TINY.text, Vision(48, 96, 1, 4, image_size=28, patch_size=14), TINY.projection_dim)

_STORAGES = {
    "F64": "DoubleStorage",
    "F32": "FloatStorage",
    "F16": "HalfStorage",
    "BF16": "BFloat16Storage",
    "I64": "LongStorage",
}


# ---- files -----------------------------------------------------------------------------------------------------------


def write_file(path: Path, arrays: Mapping[str, Array], dtype: Dtypes = "F32") -> Path:
    """Write a safetensors file, or one in torch's format if it is called anything else; integers are stored as I64."""
    codes: dict[str, str] = {}
    data: dict[str, bytes] = {}
    for name, array in arrays.items():
        if np.issubdtype(array.dtype, np.integer):
            code, raw = "I64", array.astype("<i8").tobytes()
        else:
            code = dtype if isinstance(dtype, str) else dtype(name)
            raw = bytes(array.size) if code.startswith("F8") else to_dtype(np.ascontiguousarray(array), code).tobytes()
        codes[name], data[name] = code, raw
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for name, raw in data.items():
            end = offset + len(raw)
            header[name] = {"dtype": codes[name], "shape": list(arrays[name].shape), "data_offsets": [offset, end]}
            offset = end
        path.write_bytes(b"".join((safetensors_header(header), *data.values())))
        return path
    records, storages = {}, {}
    for key, (name, array) in enumerate(arrays.items()):
        where = torch_bytes.storage(str(key), array.size, _STORAGES[codes[name]])
        strides = tuple(int(np.prod(array.shape[axis + 1 :])) for axis in range(array.ndim))
        records[name] = torch_bytes.tensor(where, 0, array.shape, strides)
        storages[str(key)] = data[name]
    path.write_bytes(torch_bytes.checkpoint(torch_bytes.mapping(records), storages))
    return path


def write_weights(
    directory: Path,
    arrays: Mapping[str, Array],
    *,
    dtype: Dtypes = "F32",
    shards: int = 1,
    suffix: str = ".safetensors",
    variant: str | None = None,
    stem: str | None = None,
) -> None:
    """Write the weights of a directory: one file, or shards over which the tensors are dealt out, and their index.

    A ``variant`` stands in the names where transformers puts it (``_add_variant`` in its ``modeling_utils.py``).
    """
    stem = stem or ("model" if suffix == ".safetensors" else "pytorch_model")
    dotted = f".{variant}" if variant else ""
    ordered = dict(sorted(arrays.items()))
    if shards == 1:
        write_file(directory / f"{stem}{dotted}{suffix}", ordered, dtype)
        return
    weight_map: dict[str, str] = {}
    for number in range(shards):
        file = f"{stem}{dotted}-{number + 1:05}-of-{shards:05}{suffix}"
        part = list(ordered)[number::shards]
        write_file(directory / file, {name: ordered[name] for name in part}, dtype)
        weight_map |= dict.fromkeys(part, file)
    write_json(directory / f"{stem}{suffix}.index{dotted}.json", {"metadata": {}, "weight_map": weight_map})


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


def write_cache(root: Path, model: Path) -> Path:
    """Move a model directory into a Hugging Face cache, and return the snapshot: a directory of symbolic links."""
    repository = root / f"models--me--{model.name}"
    snapshot = repository / "snapshots" / hashlib.sha1(model.name.encode()).hexdigest()
    blobs = repository / "blobs"
    blobs.mkdir(parents=True)
    for file in sorted(path for path in model.rglob("*") if path.is_file()):
        blob = blobs / hashlib.sha256(file.read_bytes()).hexdigest()
        link = snapshot / file.relative_to(model)
        link.parent.mkdir(parents=True, exist_ok=True)
        ups = len(link.relative_to(repository).parts) - 1
        link.symlink_to(Path(*[".."] * ups, "blobs", blob.name))
        shutil.move(file, blob)
    return snapshot


# ---- transformers' CLIP ----------------------------------------------------------------------------------------------


def arrays_of(shapes: Shapes) -> Arrays:
    """Return the values of tensors by canonical name."""
    return {name: tensor_values(name, shape) for name, shape in shapes.items()}


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


def tower_arrays(clip: Clip, tower: str, *, projection: bool, prefix: bool, has_position_ids: bool = False) -> Arrays:
    """Return one tower's tensors by stored name; ``tower`` is "text" or "vision"."""
    whole = {**arrays_of(clip.shapes()), **(position_ids(clip) if has_position_ids else {})}
    own = f"{tower}_model."
    arrays = {(name if prefix else name.removeprefix(own)): a for name, a in whole.items() if name.startswith(own)}
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
    prefix: bool = True,
    has_position_ids: bool = False,
    style: str = "5",
    vocabulary: str | None = "vocab.json",
    processor: str | None = "preprocessor_config.json",
    extra: Mapping[str, Array] | None = None,
    **weights: Any,
) -> Path:
    """Write a CLIPTextModel or CLIPVisionModel, or its WithProjection.

    transformers 5 saves the former without ``prefix`` where it made them itself.
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


# ---- OpenCLIP --------------------------------------------------------------------------------------------------------

_OPEN_CLIP_TOWER = {"text_model.": "", "vision_model.": "visual."}
_OPEN_CLIP_TAILS = {
    "embeddings.class_embedding": "class_embedding",
    "embeddings.patch_embedding.weight": "conv1.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "pre_layrnorm.weight": "ln_pre.weight",
    "pre_layrnorm.bias": "ln_pre.bias",
    "post_layernorm.weight": "ln_post.weight",
    "post_layernorm.bias": "ln_post.bias",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
_OPEN_CLIP_BLOCK = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


def open_clip_arrays(clip: Clip, *, custom_text: bool = False) -> Arrays:
    """Return a CLIP model's tensors under OpenCLIP's names: q, k and v in one, projections transposed.

    ``custom_text`` is CustomTextCLIP, whose text tower has a prefix like the vision tower's.
    """
    canonical = arrays_of(clip.shapes())
    text = "text." if custom_text else ""
    arrays: Arrays = {
        "logit_scale": canonical["logit_scale"],
        f"{text}text_projection": np.ascontiguousarray(canonical["text_projection.weight"].T),
        "visual.proj": np.ascontiguousarray(canonical["visual_projection.weight"].T),
    }
    for prefix, tower, depth in (
        ("text_model.", text, clip.text.num_hidden_layers),
        ("vision_model.", "visual.", clip.vision.num_hidden_layers),
    ):
        for tail, name in _OPEN_CLIP_TAILS.items():
            if prefix + tail in canonical:
                arrays[tower + name] = canonical[prefix + tail]
        for n in range(depth):
            layer, block = f"{prefix}encoder.layers.{n}", f"{tower}transformer.resblocks.{n}"
            for kind in ("weight", "bias"):
                qkv = [canonical[f"{layer}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
                arrays[f"{block}.attn.in_proj_{kind}"] = np.concatenate(qkv)
                for tail, name in _OPEN_CLIP_BLOCK.items():
                    arrays[f"{block}.{name}.{kind}"] = canonical[f"{layer}.{tail}.{kind}"]
    return arrays


def open_clip_config(clip: Clip, *, custom_text: bool = False, **vision: Any) -> dict[str, Any]:
    """Return open_clip_config.json, which leaves out what has its default; ``vision`` overrides the tower's part."""
    v, t = clip.vision, clip.text
    vision_cfg = {
        "image_size": v.image_size,
        "layers": v.num_hidden_layers,
        "width": v.hidden_size,
        "patch_size": v.patch_size,
        "head_width": v.hidden_size // v.num_attention_heads,
        "mlp_ratio": v.intermediate_size / v.hidden_size,
    }
    text_cfg = {
        "context_length": t.max_position_embeddings,
        "vocab_size": t.vocab_size,
        "width": t.hidden_size,
        "heads": t.num_attention_heads,
        "layers": t.num_hidden_layers,
        "mlp_ratio": t.intermediate_size / t.hidden_size,
    }
    defaults = {"head_width": 64, "mlp_ratio": 4.0}
    model = {
        "embed_dim": clip.projection_dim,
        **({"quick_gelu": True} if clip.hidden_act == "quick_gelu" else {}),
        **({"custom_text": True} if custom_text else {}),
        "vision_cfg": {k: x for k, x in {**vision_cfg, **vision}.items() if x != defaults.get(k)},
        "text_cfg": {k: x for k, x in text_cfg.items() if x != defaults.get(k)},
    }
    statistics = {"mean": CLIP_STATISTICS["image_mean"], "std": CLIP_STATISTICS["image_std"]}
    return {
        "model_cfg": model,
        "preprocess_cfg": {**statistics, "interpolation": "bicubic", "resize_mode": "shortest"},
    }


def write_open_clip(
    directory: Path,
    clip: Clip = TINY,
    *,
    custom_text: bool = False,
    vocabulary: str | None = "vocab.json",
    suffix: str = ".safetensors",
    extra: Mapping[str, Array] | None = None,
    **weights: Any,
) -> Path:
    """Write a model as OpenCLIP publishes it: no config.json, and the vocabulary of transformers' tokenizer."""
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / "open_clip_config.json", open_clip_config(clip, custom_text=custom_text))
    if vocabulary:
        write_vocabulary(directory, tokens(clip.text.vocab_size), vocabulary)
    stem = "open_clip_model" if suffix == ".safetensors" else "open_clip_pytorch_model"
    arrays = {**open_clip_arrays(clip, custom_text=custom_text), **(extra or {})}
    write_weights(directory, arrays, suffix=suffix, stem=stem, **weights)
    return directory


def write_open_clip_timm(directory: Path) -> Path:
    """Write an OpenCLIP model whose vision tower is timm's."""
    directory.mkdir(parents=True, exist_ok=True)
    config = open_clip_config(TINY, custom_text=True)
    config["model_cfg"]["vision_cfg"] = {"image_size": 28, "timm_model_name": "vit_base_patch16_siglip_224"}
    write_json(directory / "open_clip_config.json", config)
    write_vocabulary(directory, tokens(TINY.text.vocab_size))
    arrays = {n: a for n, a in open_clip_arrays(TINY, custom_text=True).items() if not n.startswith("visual.")}
    trunk = {"visual.trunk.pos_embed": (1, 4, 48), "visual.trunk.blocks.0.attn.qkv.weight": (144, 48)}
    write_weights(directory, {**arrays, **arrays_of(trunk)}, stem="open_clip_model")
    return directory


# ---- SigLIP ----------------------------------------------------------------------------------------------------------

SIGLIP_VISION = Vision(48, 96, 3, 4, image_size=28, patch_size=7)
SIGLIP_TEXT = Text(48, 96, 2, 4, vocab_size=99, max_position_embeddings=16)


def siglip_shapes(vision: Vision = SIGLIP_VISION, text: Text = SIGLIP_TEXT, *, head: bool = True) -> Shapes:
    """Return SiglipModel's tensors by name; ``head`` is the vision tower's attention pooling."""
    clip = Clip(text, vision, 1)
    patches = (vision.image_size // vision.patch_size) ** 2
    d = vision.hidden_size
    left_out = ("pre_layrnorm", "class_embedding", "_projection.weight")
    shapes: Shapes = {name: shape for name, shape in clip.shapes().items() if not any(x in name for x in left_out)}
    shapes |= {
        "logit_bias": (1,),
        "logit_scale": (1,),
        "text_model.head.bias": (d,),
        "text_model.head.weight": (d, text.hidden_size),
        "vision_model.embeddings.patch_embedding.bias": (d,),
        "vision_model.embeddings.position_embedding.weight": (patches, d),
    }
    if head:
        own = "vision_model.head"
        shapes |= {
            f"{own}.probe": (1, 1, d),
            f"{own}.attention.in_proj_weight": (3 * d, d),
            f"{own}.attention.in_proj_bias": (3 * d,),
            f"{own}.attention.out_proj.weight": (d, d),
            f"{own}.attention.out_proj.bias": (d,),
            f"{own}.layernorm.weight": (d,),
            f"{own}.layernorm.bias": (d,),
            f"{own}.mlp.fc1.weight": (vision.intermediate_size, d),
            f"{own}.mlp.fc1.bias": (vision.intermediate_size,),
            f"{own}.mlp.fc2.weight": (d, vision.intermediate_size),
            f"{own}.mlp.fc2.bias": (d,),
        }
    return dict(sorted(shapes.items()))


def siglip_tower_shapes(vision: Vision = SIGLIP_VISION, *, head: bool = True) -> Shapes:
    """Return SiglipVisionModel's tensors by canonical name ("vision_model." ...)."""
    return {n: s for n, s in siglip_shapes(vision, head=head).items() if n.startswith("vision_model.")}


def siglip_vision_config(vision: Vision = SIGLIP_VISION, *, head: bool = True) -> dict[str, Any]:
    """Return the vision tower's config; activation and epsilon are SiglipVisionConfig's defaults, and left out."""
    use_head = {} if head else {"vision_use_head": False}
    return {"model_type": "siglip_vision_model", **asdict(vision), **use_head}


def write_siglip_tower(
    directory: Path,
    vision: Vision = SIGLIP_VISION,
    *,
    prefix: bool = True,
    head: bool = True,
    processor: bool = False,
    extra: Mapping[str, Array] | None = None,
    **weights: Any,
) -> Path:
    """Write a SiglipVisionModel, which transformers 5 saves without ``prefix`` where it made it itself."""
    directory.mkdir(parents=True, exist_ok=True)
    write_json(
        directory / "config.json", {"architectures": ["SiglipVisionModel"], **siglip_vision_config(vision, head=head)}
    )
    if processor:
        half = [0.5, 0.5, 0.5]
        write_processor(directory, image_processor_type="SiglipImageProcessor", image_mean=half, image_std=half)
    arrays = arrays_of(siglip_tower_shapes(vision, head=head))
    named = {(name if prefix else name.removeprefix("vision_model.")): array for name, array in arrays.items()}
    write_weights(directory, {**named, **(extra or {})}, **weights)
    return directory


def write_siglip(directory: Path, vision: Vision = SIGLIP_VISION, text: Text = SIGLIP_TEXT, **weights: Any) -> Path:
    """Write a SiglipModel, both towers."""
    directory.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["SiglipModel"],
        "model_type": "siglip",
        "text_config": {"model_type": "siglip_text_model", **asdict(text), "projection_size": vision.hidden_size},
        "vision_config": siglip_vision_config(vision),
    }
    write_json(directory / "config.json", config)
    write_weights(directory, arrays_of(siglip_shapes(vision, text)), **weights)
    return directory


SIGLIP_LLAVA = Llava(vision=SIGLIP_VISION, feature_layer=-1)


def write_siglip_llava(
    directory: Path, llava: Llava = SIGLIP_LLAVA, *, spelling: str = "4", head: bool = False, **weights: Any
) -> Path:
    """Write a LLaVA of transformers with a SigLIP tower, like llava-interleave-qwen, in one of the ``SPELLINGS``."""
    directory.mkdir(parents=True, exist_ok=True)
    config = llava.hf_config()
    config |= {
        "vision_config": siglip_vision_config(llava.vision, head=head),
        "vision_feature_select_strategy": "full",
        **llava.config,
    }
    write_json(directory / "config.json", {key: value for key, value in config.items() if value is not None})
    tower, projector, _, language_model, lm_head = SPELLINGS[spelling]
    arrays: Arrays = {}
    for name, array in arrays_of(siglip_tower_shapes(llava.vision, head=head)).items():
        arrays[tower + name.removeprefix("vision_model.")] = array
    for name, array in arrays_of(llava.projector_shapes()).items():
        tail = name.removeprefix(PROJECTOR)
        arrays[projector + {"0": "linear_1", "2": "linear_2"}[tail[0]] + tail[1:]] = array
    for name, array in arrays_of(llava.language_model()).items():
        is_head = name.startswith("lm_head.")
        arrays[lm_head + name if is_head else language_model + name.removeprefix("model.")] = array
    write_weights(directory, arrays, **weights)
    return directory


# ---- sizes -----------------------------------------------------------------------------------------------------------


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


# ---- names -----------------------------------------------------------------------------------------------------------

NAMES_SIGLIP = Vision(48, 96, 1, 4, image_size=28, patch_size=7)
NAMES_SIGLIP_TEXT = Text(48, 96, 1, 4, vocab_size=99, max_position_embeddings=16)
NAMES_LLAVA = Llava(vision=NAMES_SIGLIP, feature_layer=-1)

# By a model's class, and how it came about: the writer of a small one. tests/fixtures/saved_names.json has the names
# and shapes that transformers 5.23 and OpenCLIP 3.3 save for the same class and config.
SAVED: dict[str, Callable[[Path], Path]] = {
    "CLIPModel": lambda d: write_clip(d, NAMES),
    "CLIPVisionModel": lambda d: write_tower(d, "vision", NAMES, prefix=False),
    "CLIPVisionModel, loaded": lambda d: write_tower(d, "vision", NAMES),
    "CLIPVisionModelWithProjection": lambda d: write_tower(d, "vision", NAMES, projection=True),
    "CLIPTextModel": lambda d: write_tower(d, "text", NAMES, prefix=False),
    "CLIPTextModel, loaded": lambda d: write_tower(d, "text", NAMES),
    "CLIPTextModelWithProjection": lambda d: write_tower(d, "text", NAMES, projection=True),
    "SiglipModel": lambda d: write_siglip(d, NAMES_SIGLIP, NAMES_SIGLIP_TEXT),
    "SiglipVisionModel": lambda d: write_siglip_tower(d, NAMES_SIGLIP, prefix=False),
    "SiglipVisionModel, loaded": lambda d: write_siglip_tower(d, NAMES_SIGLIP),
    "SiglipVisionModel, no head": lambda d: write_siglip_tower(d, NAMES_SIGLIP, prefix=False, head=False),
    "LlavaForConditionalGeneration": lambda d: write_siglip_llava(d, NAMES_LLAVA, spelling="5"),
    "LlavaForConditionalGeneration, loaded": lambda d: write_siglip_llava(d, NAMES_LLAVA, spelling="4"),
    "CLIP": lambda d: write_open_clip(d, NAMES),
    "CustomTextCLIP": lambda d: write_open_clip(d, NAMES, custom_text=True),
}
