"""OpenCLIP's own checkpoints, with open_clip_config.json: other names, fused projections, transposed matrices.

Names: OpenCLIP's CLIP and CustomTextCLIP classes (``open_clip/model.py``), against transformers'
``convert_clip_original_pytorch_to_hf.py``. The files are CLIP's, byte for byte.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from clipgguf.config import LARGEST_UINT32, rgb_statistics
from clipgguf.errors import CheckpointError, ConfigError, collect, shown
from clipgguf.families.bases import statistics
from clipgguf.families.clip import (
    TEXT,
    VISION,
    activation_warnings,
    clip_family,
    towers_asked_for,
)
from clipgguf.families.tower_tables import SCRIPT_BLOCK
from clipgguf.family import Family, Rule, Section, linear, norm
from clipgguf.inputs import Config, Inputs, read_values
from clipgguf.model import Model, matched_model

CONFIG_FILE = "open_clip_config.json"

_BLOCK = (
    Rule(
        "attn.in_proj_weight",
        ("attn_q.weight", "attn_k.weight", "attn_v.weight"),
        "(3 width') width -> 3 width' width",
    ),
    Rule("attn.in_proj_bias", ("attn_q.bias", "attn_k.bias", "attn_v.bias"), "(3 width) -> 3 width"),
    *linear("attn.out_proj", "attn_out", "width", "width'"),
    *norm("ln_1", "ln1"),
    *linear("mlp.c_fc", "ffn_down", "ffn", "width"),
    *linear("mlp.c_proj", "ffn_up", "width", "ffn"),
    *norm("ln_2", "ln2"),
)
_ORDER = tuple(name for rule in SCRIPT_BLOCK for name in rule.names)
# A text tower of CustomTextCLIP stands under "text.", that of CLIP under no name of its own.
_TEXT = "text.|"
_SECTIONS = {
    TEXT: (
        Section(
            _TEXT,
            "t.",
            (
                Rule("token_embedding.weight", "token_embd.weight", "vocab width"),
                Rule("positional_embedding", "position_embd.weight", "positions width"),
            ),
            part=TEXT,
        ),
        Section(
            "text.transformer.resblocks.{}.|transformer.resblocks.{}.",
            "t.blk.{}.",
            _BLOCK,
            times="blocks",
            part=TEXT,
            order=_ORDER,
        ),
        Section(_TEXT, "t.", norm("ln_final", "post_ln"), part=TEXT),
    ),
    VISION: (
        Section(
            "visual.",
            "v.",
            (
                Rule("class_embedding", "class_embd", "width"),
                Rule("conv1.weight", "patch_embd.weight", "width channels patch patch'"),
                Rule("positional_embedding", "position_embd.weight", "positions width"),
                *norm("ln_pre", "pre_ln"),
            ),
        ),
        Section("visual.transformer.resblocks.{}.", "v.blk.{}.", _BLOCK, times="blocks", order=_ORDER),
        Section("visual.", "v.", norm("ln_post", "post_ln")),
    ),
}
# Stored with the axes the other way round, because OpenCLIP multiplies from the left.
_LEFT = "width projection -> projection width"
_PROJECTIONS = {
    VISION: Section("visual.", "", (Rule("proj", "visual_projection.weight", _LEFT),)),
    TEXT: Section(
        _TEXT,
        "",
        (
            Rule(
                "text_projection.weight",
                "text_projection.weight",
                "projection width",
                otherwise=Rule("text_projection", "text_projection.weight", _LEFT),
            ),
        ),
        part=TEXT,
    ),
}
# What a causal text tower of before may hold, its attention mask, follows from the context's length.
_IGNORED = (r"logit_scale$", r"(text\.)?attn_mask$")
_OTHER_TOWER = {TEXT: r"(?!visual\.)", VISION: r"visual\."}
# Settings with which OpenCLIP computes otherwise than CLIP, and no tensor tells: part, key, and what CLIP has.
_SETTINGS: tuple[tuple[str, str, tuple[object, ...]], ...] = (
    ("vision_cfg", "pool_type", ("tok",)),
    ("vision_cfg", "attentional_pool", (False,)),
    ("vision_cfg", "final_ln_after_pool", (False,)),
    ("vision_cfg", "no_ln_pre", (False,)),
    ("text_cfg", "pool_type", ("argmax", "eos")),
    ("text_cfg", "no_causal_mask", (False,)),
)


def open_model(inputs: Inputs) -> Model:
    """Open an OpenCLIP directory, whose open_clip_config.json is read.

    Raises ConfigError when it is wrong, CheckpointError for towers that are no CLIP.
    """
    config, path = inputs.config.values, inputs.config.path
    inputs.config = _standard_config(config, path)
    # OpenCLIP's config has the image processor's values, too, and no name.
    default = rgb_statistics(config.get("preprocess_cfg"), f"{path}: preprocess_cfg")
    family = _family(towers_asked_for(inputs, (TEXT, VISION)))
    if VISION in family.parts:
        family = replace(family, values=(*family.values, *statistics(default)))
    values = read_values(family, inputs)
    checkpoint = inputs.open_checkpoint(lambda name: not family.leaves_out(name))
    if timm := next((t for name, t in checkpoint.tensors.items() if name.startswith("visual.trunk.")), None):
        raise CheckpointError(f"{timm.path}: tensor {timm.name!r} is of a timm tower, supported are OpenCLIP's own ViT")
    model = matched_model(family, inputs, values, checkpoint.tensors, checkpoint, ("visual.", "transformer."))
    return replace(model, warnings=model.warnings + activation_warnings(values, family.parts, path))


def _family(towers: tuple[str, ...]) -> Family:
    """Return CLIP's family with OpenCLIP's names on the checkpoint's side."""
    clip = clip_family("OpenCLIP", towers, stored=(TEXT, VISION))
    values = tuple(value for value in clip.values if value.name not in ("vision.mean", "vision.std"))
    return replace(
        clip,
        values=values,
        sections=(
            *(section for tower in (TEXT, VISION) if tower in towers for section in _SECTIONS[tower]),
            *(_PROJECTIONS[tower] for tower in (VISION, TEXT) if tower in towers),
        ),
        left_out=tuple(_OTHER_TOWER[tower] for tower in (TEXT, VISION) if tower not in towers),
        ignored=_IGNORED,
    )


def _standard_config(config: Mapping[str, Any], path: Path) -> Config:
    """Return the configuration as transformers writes CLIP's."""
    model_cfg = _object(config, "model_cfg", path)
    problems: list[str] = []
    towers: dict[str, Any] = {}
    with collect(problems):
        towers["vision_config"] = _vision_config(model_cfg, path)
    with collect(problems):
        towers["text_config"] = _text_config(model_cfg, path)
    for part, key, allowed in _SETTINGS:
        value = _object(model_cfg, part, path).get(key)
        if value is not None and value not in allowed:
            problems.append(
                f"{path}: {part}: {key} is {shown(value)}, which readers of GGUF files would compute wrongly; "
                f"they know {allowed[0]!r}"
            )
    ConfigError.raise_all(problems)
    return Config(path, towers, {"vision_config": "vision_cfg", "text_config": "text_cfg"})


def _object(values: Mapping[str, Any], key: str, path: Path) -> Mapping[str, Any]:
    value = values.get(key)
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: {key} is {shown(value)}, should be an object")
    return value


def _common(model_cfg: Mapping[str, Any], cfg: Mapping[str, Any], where: str, width: int) -> dict[str, Any]:
    """Return the fields that both towers have, under transformers' names."""
    width = cfg.get("width", width)
    ratio = cfg.get("mlp_ratio", 4.0)
    norm_kwargs = cfg.get("norm_kwargs")
    is_width = type(width) is int and 0 < width <= LARGEST_UINT32
    if not is_width or type(ratio) not in (int, float) or not 0 < ratio < 1e6:
        raise ConfigError(f"{where}: width is {shown(width)} and mlp_ratio {shown(ratio)}, should be positive numbers")
    return {
        "hidden_size": width,
        "intermediate_size": int(width * ratio),
        "num_hidden_layers": cfg.get("layers", 12),
        "hidden_act": "quick_gelu" if model_cfg.get("quick_gelu") is True else "gelu",
        "layer_norm_eps": norm_kwargs["eps"] if isinstance(norm_kwargs, dict) and "eps" in norm_kwargs else 1e-5,
        "projection_dim": model_cfg.get("embed_dim"),
    }


def _vision_config(model_cfg: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return the vision tower's fields; those omitted have the defaults of OpenCLIP's CLIPVisionCfg."""
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
    return {**fields, **sizes, "num_attention_heads": fields["hidden_size"] // head_width}


def _text_config(model_cfg: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return the text tower's fields; those omitted have the defaults of OpenCLIP's CLIPTextCfg."""
    cfg, where = _object(model_cfg, "text_cfg", path), f"{path}: text_cfg"
    if cfg.get("hf_model_name"):
        raise ConfigError(
            f"{where}: is a Hugging Face tower ({shown(cfg['hf_model_name'])}), supported are OpenCLIP's own"
        )
    return {
        **_common(model_cfg, cfg, where, 512),
        "num_attention_heads": cfg.get("heads", 8),
        "vocab_size": cfg.get("vocab_size", 49408),
        "max_position_embeddings": cfg.get("context_length", 77),
    }
