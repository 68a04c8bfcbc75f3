"""OpenCLIP's own checkpoints, with open_clip_config.json: other names, fused projections, transposed matrices.

Names: OpenCLIP's CLIP and CustomTextCLIP classes (``open_clip/model.py``), against transformers'
``convert_clip_original_pytorch_to_hf.py``. The files are CLIP's, byte for byte.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from clipgguf.config import LARGEST_UINT32, rgb_statistics
from clipgguf.errors import CheckpointError, ConfigError, shown
from clipgguf.families.clip import TEXT, VISION, clip_family, towers_asked_for, with_value_warnings
from clipgguf.families.tower_tables import SCRIPT_BLOCK
from clipgguf.family import Family
from clipgguf.inputs import Config, Inputs, checked, read_values
from clipgguf.layers import fused_qkv, linear, norm
from clipgguf.model import Model, matched_model
from clipgguf.table import Rule, Section, Value

_BLOCK = (
    # torch's MultiheadAttention calls them in_proj_weight and in_proj_bias.
    *(replace(rule, theirs=rule.theirs.replace("proj.", "proj_")) for rule in fused_qkv("attn.in_proj")),
    *linear("attn.out_proj", "attn_out", "width", "width'"),
    *norm("ln_1", "ln1"),
    *linear("mlp.c_fc", "ffn_down", "ffn", "width"),
    *linear("mlp.c_proj", "ffn_up", "width", "ffn"),
    *norm("ln_2", "ln2"),
)
_ORDER = tuple(name for rule in SCRIPT_BLOCK for name in rule.names)
_POSITIONS = Rule("positional_embedding", "position_embd.weight", "positions width")
_TEXT_EMBEDDINGS = (Rule("token_embedding.weight", "token_embd.weight", "vocab width"), _POSITIONS)
_VISION_EMBEDDINGS = (
    Rule("class_embedding", "class_embd", "width"),
    Rule("conv1.weight", "patch_embd.weight", "width channels patch patch'"),
    _POSITIONS,
    *norm("ln_pre", "pre_ln"),
)
# A text tower of CustomTextCLIP stands under "text.", that of CLIP under no name of its own.
_TEXT, _TEXT_BLOCK = "text.|", "text.transformer.resblocks.{}.|transformer.resblocks.{}."
_SECTIONS = {
    TEXT: (
        Section(_TEXT, "t.", _TEXT_EMBEDDINGS, part=TEXT),
        Section(_TEXT_BLOCK, "t.blk.{}.", _BLOCK, times="blocks", part=TEXT, order=_ORDER),
        Section(_TEXT, "t.", norm("ln_final", "post_ln"), part=TEXT),
    ),
    VISION: (
        Section("visual.", "v.", _VISION_EMBEDDINGS),
        Section("visual.transformer.resblocks.{}.", "v.blk.{}.", _BLOCK, times="blocks", order=_ORDER),
        Section("visual.", "v.", norm("ln_post", "post_ln")),
    ),
}
# Stored with the axes the other way round, because OpenCLIP multiplies from the left.
_LEFT = "width projection -> projection width"
_VISUAL, _TEXTUAL = "visual_projection.weight", "text_projection.weight"
_TEXT_PROJECTION = Rule(_TEXTUAL, _TEXTUAL, "projection width", otherwise=Rule("text_projection", _TEXTUAL, _LEFT))
_PROJECTIONS = {
    VISION: Section("visual.", "", (Rule("proj", _VISUAL, _LEFT),)),
    TEXT: Section(_TEXT, "", (_TEXT_PROJECTION,), part=TEXT),
}
# What a feed-forward layer is wider than a tower by at most; trained ones have about 4.
LARGEST_RATIO = 10**6
# Settings with which OpenCLIP computes otherwise than CLIP, and no tensor tells: what CLIP has.
_SETTINGS = (
    ("model_cfg.vision_cfg.pool_type", ("tok",)),
    ("model_cfg.vision_cfg.attentional_pool", (False,)),
    ("model_cfg.vision_cfg.final_ln_after_pool", (False,)),
    ("model_cfg.vision_cfg.no_ln_pre", (False,)),
    ("model_cfg.text_cfg.pool_type", ("argmax", "eos")),
    ("model_cfg.text_cfg.no_causal_mask", (False,)),
)


def _names_of(tower: str) -> Iterator[str]:
    """Yield patterns of a tower's names, and of all that stands in any block."""
    for section in (*_SECTIONS[tower], _PROJECTIONS[tower]):
        assert isinstance(section.prefix, str)
        starts = re.escape(section.prefix).replace(r"\{\}", "[0-9]+").replace(r"\|", "|")
        rules = [one for rule in section.rules for one in (rule, rule.otherwise) if one is not None]
        tails = "|".join(re.escape(rule.theirs) for rule in rules)
        yield f"({starts})" if section.times else f"({starts})({tails})$"


def _ffn(part: str, values: Mapping[str, Any]) -> int:
    width, ratio = values[f"{part}.width"], values[f"{part}.ratio"]
    if ratio >= LARGEST_RATIO or not 1 <= width * ratio <= LARGEST_UINT32:
        should = f"it should be less than {LARGEST_RATIO:,}, and their product a size"
        raise ValueError(f"{part}_cfg: width is {width} and mlp_ratio {ratio}; {should}")
    return int(width * ratio)


def _square(key: str, default: int, inputs: Inputs) -> int:
    """Return a size that may stand in the config for both sides, as [224, 224]."""
    path = f"model_cfg.vision_cfg.{key}"
    found = inputs.config.get(path, default)
    if isinstance(found, list) and set(map(type, found)) == {int} and len(set(found)) == 1:
        found = found[0]
    where = inputs.labels[f"vision.{key.removesuffix('_size')}"] = inputs.config.label(path)
    return int(checked(int, where, found))


def _number(kind: type, part: str, key: str, default: float, inputs: Inputs) -> Any:
    """Return a number that may be missing, but not null: OpenCLIP computes with it."""
    cfg = f"model_cfg.{part}_cfg"
    where = inputs.labels[f"{part}.{key}"] = inputs.config.label(f"{cfg}.{key}")
    return checked(kind, where, inputs.config.get(cfg, {}).get(key, default))


def _epsilon(cfg: str, inputs: Inputs) -> Any:
    """Return the norms' epsilon; ``norm_kwargs`` that are no object are as good as none."""
    path = f"{cfg}.norm_kwargs"
    given = inputs.config.get(path)
    value = given.get("eps") if isinstance(given, dict) else None
    return checked(float, inputs.config.label(f"{path}.eps"), 1e-5 if value is None else value)


def _heads(values: Mapping[str, Any]) -> int:
    width, head_width = values["vision.width"], values["head_width"]
    if width % head_width:
        raise ValueError(f"vision_cfg: head_width is {head_width}, should divide the width {width}")
    return int(width // head_width)


def _activation(inputs: Inputs) -> str:
    return "quick_gelu" if inputs.config.get("model_cfg.quick_gelu") is True else "gelu"


def _common(part: str, width: int) -> tuple[Value, ...]:
    """Return the values that both towers have, with the defaults of OpenCLIP's CLIPVisionCfg and CLIPTextCfg."""
    cfg = f"model_cfg.{part}_cfg"
    return (
        Value(f"{part}.width", partial(_number, int, part, "width", width)),
        Value(f"{part}.ratio", partial(_number, float, part, "mlp_ratio", 4.0)),
        Value(f"{part}.ffn", of=partial(_ffn, part)),
        Value(f"{part}.blocks", f"{cfg}.layers", 12),
        Value(f"{part}.epsilon", partial(_epsilon, cfg)),
        Value(f"{part}.projection", "model_cfg.embed_dim", 512, told_by_tensor=True),
        Value(f"{part}.act", _activation),
    )


_VALUES = (
    *_common(TEXT, 512),
    Value("text.heads", "model_cfg.text_cfg.heads", 8),
    Value("text.vocab", "model_cfg.text_cfg.vocab_size", 49408),
    Value("text.positions", "model_cfg.text_cfg.context_length", 77),
    *_common(VISION, 768),
    Value("head_width", partial(_number, int, VISION, "head_width", 64)),
    Value("vision.heads", of=_heads),
    Value("vision.image", partial(_square, "image_size", 224)),
    Value("vision.patch", partial(_square, "patch_size", 16)),
    Value("vision.channels", default=3),
)


def open_model(inputs: Inputs) -> Model:
    """Open an OpenCLIP directory, whose open_clip_config.json is read.

    Raises ConfigError when it is wrong, CheckpointError for towers that are no CLIP.
    """
    config = inputs.config
    ConfigError.raise_all(dict.fromkeys(_unsupported(config)))
    family = _family(inputs, towers_asked_for(inputs, "OpenCLIP", (TEXT, VISION)))
    values = read_values(family, inputs)
    checkpoint = inputs.open_checkpoint(lambda name: not family.leaves_out(name))
    if timm := next((t for name, t in checkpoint.tensors.items() if name.startswith("visual.trunk.")), None):
        raise CheckpointError(f"{timm.file}: tensor {timm.name!r} is of a timm tower, supported are OpenCLIP's own ViT")
    model = matched_model(family, inputs, values, checkpoint.tensors, checkpoint, ("visual.", "transformer."))
    return with_value_warnings(model, config.path)


def _unsupported(config: Config) -> Iterator[str]:
    """Yield what towers are that readers of GGUF files cannot run, and parts that are missing."""
    for part, of, key, name in (
        ("vision_cfg", "timm", "timm_model_name", "OpenCLIP's own ViT"),
        ("text_cfg", "Hugging Face", "hf_model_name", "OpenCLIP's own"),
    ):
        cfg = config.get(f"model_cfg.{part}")
        if not isinstance(cfg, dict):
            path = "model_cfg" if config.get("model_cfg") is None else f"model_cfg.{part}"
            yield f"{config.label(path)} is {shown(config.get(path))}, should be an object"
        elif tower := cfg.get(key):
            yield f"{config.path}: {part}: is a {of} tower ({shown(tower)}), supported are {name}"
    for path, allowed in _SETTINGS:
        value = config.get(path)
        if value is not None and value not in allowed:
            wrong = f"which readers of GGUF files would compute wrongly; they know {allowed[0]!r}"
            yield f"{config.label(path)} is {shown(value)}, {wrong}"


def _family(inputs: Inputs, towers: tuple[str, ...]) -> Family:
    """Return CLIP's family with OpenCLIP's names on the checkpoint's side."""
    # OpenCLIP's config has the image processor's values, too.
    config, where = inputs.config.values.get("preprocess_cfg"), f"{inputs.config.path}: preprocess_cfg"
    default = rgb_statistics(config, where)
    clip = clip_family("OpenCLIP", towers, stored=(TEXT, VISION), default=default)
    own = {value.name for value in _VALUES}
    sections = [section for tower in (TEXT, VISION) if tower in towers for section in _SECTIONS[tower]]
    return replace(
        clip,
        values=(*_VALUES, *(value for value in clip.values if value.name not in own)),
        sections=(*sections, *(_PROJECTIONS[tower] for tower in (VISION, TEXT) if tower in towers)),
        left_out=tuple(pattern for tower in (TEXT, VISION) if tower not in towers for pattern in _names_of(tower)),
        # What a causal text tower of before may hold, its attention mask, follows from the context's length.
        ignored=(r"logit_scale$", r"(text\.)?attn_mask$"),
    )
