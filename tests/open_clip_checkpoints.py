"""Make tiny checkpoints as OpenCLIP publishes them, with its own towers or with one of timm's."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests.checkpoints import TINY, Clip
from tests.clip_checkpoints import CLIP_STATISTICS, tokens, write_vocabulary
from tests.json_files import write_json
from tests.weights import Array, Arrays, arrays_of, write_weights

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
