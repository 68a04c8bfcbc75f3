"""OpenCLIP's own checkpoints, with open_clip_config.json: other names, fused projections, transposed matrices.

Names and transformations are those of OpenCLIP's CLIP and CustomTextCLIP classes (``open_clip/model.py``) against
transformers' ``convert_clip_original_pytorch_to_hf.py``.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from clipgguf.checkpoint import SourceTensor
from clipgguf.config import (
    LARGEST_UINT32,
    TextConfig,
    VisionConfig,
    model_name,
    parse_tower,
    read_image_statistics,
    rgb_statistics,
)
from clipgguf.errors import CheckpointError, ConfigError, collect, shown
from clipgguf.families.model import Content, Model, Request, found_text
from clipgguf.json_file import read_json_object
from clipgguf.names import TEXT, VISION
from clipgguf.vocabulary import read_vocabulary

CONFIG_FILE = "open_clip_config.json"

# OpenCLIP's name to the canonical one; the patterns are of whole names.
_RENAMES: tuple[tuple[str, str], ...] = (
    (r"visual\.class_embedding", "vision_model.embeddings.class_embedding"),
    (r"visual\.conv1\.weight", "vision_model.embeddings.patch_embedding.weight"),
    (r"visual\.positional_embedding", "vision_model.embeddings.position_embedding.weight"),
    (r"visual\.ln_pre\.(weight|bias)", r"vision_model.pre_layrnorm.\1"),
    (r"visual\.ln_post\.(weight|bias)", r"vision_model.post_layernorm.\1"),
    (r"(?:text\.)?token_embedding\.weight", "text_model.embeddings.token_embedding.weight"),
    (r"(?:text\.)?positional_embedding", "text_model.embeddings.position_embedding.weight"),
    (r"(?:text\.)?ln_final\.(weight|bias)", r"text_model.final_layer_norm.\1"),
    (r"(?:text\.)?text_projection\.weight", "text_projection.weight"),
    (r"logit_scale", "logit_scale"),
)
# Stored with the axes the other way round, because OpenCLIP multiplies from the left.
_TRANSPOSED: tuple[tuple[str, str], ...] = (
    (r"visual\.proj", "visual_projection.weight"),
    (r"(?:text\.)?text_projection", "text_projection.weight"),
)
_BLOCK = re.compile(r"(visual\.|text\.|)transformer\.resblocks\.(\d+)\.(.+)")
_BLOCK_RENAMES: Mapping[str, str] = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
# Settings with which OpenCLIP computes otherwise than CLIP, and no tensor tells: part, key, and what CLIP has.
_SETTINGS: tuple[tuple[str, str, tuple[object, ...]], ...] = (
    ("vision_cfg", "pool_type", ("tok",)),
    ("vision_cfg", "attentional_pool", (False,)),
    ("vision_cfg", "final_ln_after_pool", (False,)),
    ("vision_cfg", "no_ln_pre", (False,)),
    ("text_cfg", "pool_type", ("argmax", "eos")),
    ("text_cfg", "no_causal_mask", (False,)),
)
# What a causal text tower of before may hold: its attention mask, which follows from the context's length.
_IGNORED = re.compile(r"(?:text\.)?attn_mask")


def is_openclip(names: Iterable[str]) -> bool:
    """Return whether tensors have OpenCLIP's names and not transformers'."""
    return any(name.startswith("visual.") or _BLOCK.fullmatch(name) for name in names)


def open_openclip(request: Request) -> Model:
    """Open an OpenCLIP directory.

    Raises ConfigError when open_clip_config.json is missing (the weights do not tell the activation) or wrong,
    CheckpointError for towers that are no CLIP.
    """
    directory = request.directory
    path = directory / CONFIG_FILE
    if not path.exists():
        raise ConfigError(
            f"{path}: is missing; OpenCLIP's weights alone do not tell the activation and the number of attention heads"
        )
    config = read_json_object(path)
    model_cfg = _object(config, "model_cfg", path)
    problems: list[str] = []
    with collect(problems):
        vision = _vision_config(model_cfg, path)
    with collect(problems):
        text = _text_config(model_cfg, path)
    for part, key, allowed in _SETTINGS:
        value = _object(model_cfg, part, path).get(key)
        if value is not None and value not in allowed:
            problems.append(
                f"{path}: {part}: {key} is {shown(value)}, which readers of GGUF files would compute wrongly; "
                f"they know {allowed[0]!r}"
            )
    ConfigError.raise_all(problems)
    content = request.content((TEXT, VISION))
    vocabulary = None if content is Content.VISION_ONLY else read_vocabulary(directory, request.vocab)
    default = rgb_statistics(config.get("preprocess_cfg"), f"{path}: preprocess_cfg")
    statistics = (
        None
        if content is Content.TEXT_ONLY
        else read_image_statistics((directory,), request.image_mean, request.image_std, default)
    )
    checkpoint = request.open_checkpoint()
    return Model(
        directory=directory,
        config_file=CONFIG_FILE,
        found=found_text("OpenCLIP", checkpoint, ("visual.", "transformer.")),
        name=model_name({}, directory),
        content=content,
        text=text,
        vision=vision,
        tensors=_collected(_canonical(checkpoint.tensors)),
        vocabulary=vocabulary,
        statistics=statistics,
        ignore_unknown=request.ignore_unknown,
    )


def _object(values: Mapping[str, Any], key: str, path: Path) -> Mapping[str, Any]:
    value = values.get(key)
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: {key} is {shown(value)}, should be an object")
    return value


def _common(model_cfg: Mapping[str, Any], cfg: Mapping[str, Any], where: str, width: int) -> dict[str, Any]:
    """Return the fields that both towers have, under transformers' names."""
    width = cfg.get("width", width)
    ratio = cfg.get("mlp_ratio", 4.0)
    norm = cfg.get("norm_kwargs")
    is_width = type(width) is int and 0 < width <= LARGEST_UINT32
    if not is_width or type(ratio) not in (int, float) or not 0 < ratio < 1e6:
        raise ConfigError(f"{where}: width is {shown(width)} and mlp_ratio {shown(ratio)}, should be positive numbers")
    return {
        "hidden_size": width,
        "intermediate_size": int(width * ratio),
        "num_hidden_layers": cfg.get("layers", 12),
        "hidden_act": "quick_gelu" if model_cfg.get("quick_gelu") is True else "gelu",
        "layer_norm_eps": norm["eps"] if isinstance(norm, dict) and "eps" in norm else 1e-5,
        "projection_dim": model_cfg.get("embed_dim"),
    }


def _vision_config(model_cfg: Mapping[str, Any], path: Path) -> VisionConfig:
    """Return the vision tower's configuration; omitted fields have the defaults of OpenCLIP's CLIPVisionCfg."""
    cfg, where = _object(model_cfg, "vision_cfg", path), f"{path}: vision_cfg"
    if cfg.get("timm_model_name"):
        raise ConfigError(
            f"{where}: is a timm tower ({shown(cfg['timm_model_name'])}), supported are OpenCLIP's own ViT"
        )
    fields = _common(model_cfg, cfg, where, 768)
    head_width = cfg.get("head_width", 64)
    if type(head_width) is not int or head_width <= 0 or fields["hidden_size"] % head_width:
        raise ConfigError(
            f"{where}: head_width is {shown(head_width)}, should divide the width {fields['hidden_size']}"
        )
    sizes = {"image_size": cfg.get("image_size", 224), "patch_size": cfg.get("patch_size", 16)}
    for key, size in sizes.items():
        if isinstance(size, list) and set(map(type, size)) == {int} and len(set(size)) == 1:
            sizes[key] = size[0]
    return parse_tower(
        VisionConfig, {**fields, **sizes, "num_attention_heads": fields["hidden_size"] // head_width}, where
    )


def _text_config(model_cfg: Mapping[str, Any], path: Path) -> TextConfig:
    """Return the text tower's configuration; omitted fields have the defaults of OpenCLIP's CLIPTextCfg."""
    cfg, where = _object(model_cfg, "text_cfg", path), f"{path}: text_cfg"
    if cfg.get("hf_model_name"):
        raise ConfigError(
            f"{where}: is a Hugging Face tower ({shown(cfg['hf_model_name'])}), supported are OpenCLIP's own"
        )
    return parse_tower(
        TextConfig,
        {
            **_common(model_cfg, cfg, where, 512),
            "num_attention_heads": cfg.get("heads", 8),
            "vocab_size": cfg.get("vocab_size", 49408),
            "max_position_embeddings": cfg.get("context_length", 77),
        },
        where,
    )


def _collected(tensors: Iterable[tuple[str, SourceTensor]]) -> dict[str, SourceTensor]:
    """Return tensors by canonical name; CheckpointError when two spellings of one name are there."""
    collected: dict[str, SourceTensor] = {}
    problems = []
    for name, tensor in tensors:
        if other := collected.get(name):
            problems.append(f"{tensor.path}: tensors {other.name!r} and {tensor.name!r} are both {name!r}")
        collected[name] = tensor
    CheckpointError.raise_all(problems)
    return collected


def _canonical(tensors: Mapping[str, SourceTensor]) -> Iterator[tuple[str, SourceTensor]]:
    """Yield the tensors under canonical names; those that no rule knows keep their own."""
    if timm := next((tensor for name, tensor in tensors.items() if name.startswith("visual.trunk.")), None):
        raise CheckpointError(f"{timm.path}: tensor {timm.name!r} is of a timm tower, supported are OpenCLIP's own ViT")
    for name, tensor in tensors.items():
        if block := _BLOCK.fullmatch(name):
            tower = "vision_model" if block[1] == "visual." else "text_model"
            yield from _block_tensors(f"{tower}.encoder.layers.{block[2]}.", block[3], tensor)
        elif not _IGNORED.fullmatch(name):
            yield _plain(name, tensor)


def _plain(name: str, tensor: SourceTensor) -> tuple[str, SourceTensor]:
    for pattern, canonical in _TRANSPOSED:
        if re.fullmatch(pattern, name) and len(tensor.shape) == 2:
            return canonical, tensor.transposed()
    for pattern, canonical in _RENAMES:
        if match := re.fullmatch(pattern, name):
            return match.expand(canonical), tensor
    return name, tensor


def _block_tensors(prefix: str, tail: str, tensor: SourceTensor) -> Iterator[tuple[str, SourceTensor]]:
    module, _, kind = tail.replace("in_proj_", "in_proj.").rpartition(".")
    if module == "attn.in_proj" and kind in ("weight", "bias") and tensor.shape and tensor.shape[0] % 3 == 0:
        # Queries, keys and values are fused, one after the other.
        width = tensor.shape[0] // 3
        for number, letter in enumerate("qkv"):
            rows = tensor.rows(number * width, (number + 1) * width)
            yield f"{prefix}self_attn.{letter}_proj.{kind}", rows
    else:
        yield f"{prefix}{_BLOCK_RENAMES.get(module, module)}.{kind}", tensor
