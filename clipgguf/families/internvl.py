"""InternVL and Intern-S1: InternViT, whose patches are joined and go through a norm and two layers.

There are two layouts, so that this file is longer than others: that of OpenGVLab's own InternVLChatModel, and that of
transformers' InternVLForConditionalGeneration, of which llama.cpp's converter knows what Intern-S1 made of it. See
llama.cpp's ``conversion/internvl.py`` and ``tools/mtmd/models/internvl.cpp``. The defaults are transformers'.
"""

from collections.abc import Mapping
from typing import Any

from clipgguf.config import ImageStatistics
from clipgguf.errors import ConfigError, shown
from clipgguf.families.bases import LANGUAGE_MODEL, MTMD, activation, settled, statistics
from clipgguf.families.tower_tables import TOWER
from clipgguf.family import Family
from clipgguf.inputs import Inputs
from clipgguf.layers import fused_qkv, linear, norm, separate_qkv
from clipgguf.table import SIDE, Prefix, Rule, Section, Value

IMAGENET_STATISTICS = ImageStatistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), is_default=True)
# Width and number of blocks of InternViT-6B, by which llama.cpp knows that its norms are RMS norms.
RMS_NORMED = (3200, 45)


def rms_normed(values: Mapping[str, Any]) -> int:
    """Return how many blocks have RMS norms, also of queries and keys: all or none. A file's sizes tell."""
    blocks: int = values["vision.blocks"]
    of_6b = (values["vision.width"], blocks) == RMS_NORMED
    return blocks if values.get("norm_type", "rms_norm" if of_6b else "") == "rms_norm" else 0


def check_norms(inputs: Inputs) -> None:
    """Warn of norms that llama.cpp takes for others; ConfigError for norms that no InternViT has."""
    config = inputs.config
    kind = config.get("vision_config.norm_type", "layer_norm")
    also = config.get("vision_config.use_qk_norm|vision_config.qk_normalization", False)
    where = config.label("vision_config.norm_type")
    are = f"{where} is {shown(kind)} and use_qk_norm {shown(also)}"
    if (kind, also) not in (("rms_norm", True), ("layer_norm", False)):
        raise ConfigError(f"{are}, should be 'layer_norm' and false, or 'rms_norm' and true")
    sizes = config.get("vision_config.hidden_size", 1024), config.get("vision_config.num_hidden_layers", 24)
    if (sizes == RMS_NORMED) != (kind == "rms_norm"):
        taken = "layer_norm" if kind == "rms_norm" else "rms_norm"
        inputs.warnings.append(f"{are}; llama.cpp goes by the sizes, {sizes[0]} and {sizes[1]}, and takes {taken!r}")


def patches_per_token(values: Mapping[str, Any]) -> int:
    """Return how many patches, along one side, are joined into a token."""
    ratio, side = values["downsample_ratio"], values["vision.image"] // values["vision.patch"]
    if not 1 / side <= ratio <= 1:
        raise ValueError(f"downsample_ratio is {shown(ratio)}, should be between 1/{side} and 1")
    return int(1 / ratio)


def check_tiles(values: Mapping[str, Any]) -> None:
    """Refuse what llama.cpp aborts on; where the file does not say, it takes 1 and 12."""
    least, most = values["vision.min_tiles"] or 1, values["vision.max_tiles"] or 12
    if least > most:
        raise ValueError(f"min_dynamic_patch is {least}, larger than max_dynamic_patch, {most}")


def sections(*, own: bool) -> tuple[Section, ...]:
    """Return the sections of OpenGVLab's own layout, or of transformers'."""

    def name(original: str, transformers: str) -> str:
        return original if own else transformers

    tower = TOWER if own else Prefix("embeddings.patch_embeddings.projection.weight", "vision_tower.")
    blocks = tower + name("encoder.layers.{}.", "encoder.layer.{}.")
    projector = "mlp1." if own else Prefix("linear_1.weight", "multi_modal_projector.")
    norms = name("norm1", "layernorm_before"), name("norm2", "layernorm_after")
    attention = name("attn", "attention")
    embeddings = (
        Rule(name("embeddings.class_embedding", "embeddings.cls_token"), "class_embd", "1 1' width"),
        *linear(tower.landmark.removesuffix(".weight"), "patch_embd", "width", "channels patch patch'"),
        Rule(
            name("embeddings.position_embedding", "embeddings.position_embeddings"),
            "position_embd.weight",
            "1 positions width",
        ),
    )
    block = (
        *(fused_qkv(bias="optional") if own else separate_qkv("attention.{}_proj", bias="optional")),
        *linear(name("attn.proj", "attention.projection_layer"), "attn_out", "width", "width'"),
        *linear("mlp.fc1", "ffn_up", "ffn", "width"),
        *linear("mlp.fc2", "ffn_down", "width", "ffn"),
        *(Rule(f"{norm}.weight", f"ln{n}.weight", "width") for n, norm in enumerate(norms, 1)),
        *(Rule(f"{name('ls', 'lambda_')}{n}", f"ls{n}.weight", "width") for n in (1, 2)),
    )
    biases = tuple(Rule(f"{norm}.bias", f"ln{n}.bias", "width") for n, norm in enumerate(norms, 1))
    qk_norms = tuple(Rule(f"{attention}.{x}_norm.weight", f"attn_{x}_norm.weight", "width") for x in "qk")
    mlp = (
        *norm(name("0", "layer_norm"), "0", "merged"),
        *linear(name("1", "linear_1"), "1", "projection", "merged"),
        *linear(name("3", "linear_2"), "3", "projection", "projection'"),
    )
    return (
        Section(tower, "v.", embeddings),
        Section(blocks, "v.blk.{}.", block, times="blocks"),
        Section(blocks, "v.blk.{}.", biases, times="layer_normed"),
        Section(blocks, "v.blk.{}.", qk_norms, times="rms_normed"),
        Section(projector, "mm.model.mlp.", mlp),
    )


FAMILY = Family(
    title="InternVL",
    projector="internvl",
    base=MTMD,
    values=(
        Value("vision.projection", "text_config.hidden_size|llm_config.hidden_size|hidden_size", 4096),
        Value("vision.image", "vision_config.image_size", 448, kind=SIDE),
        Value("vision.patch", "vision_config.patch_size", 14, kind=SIDE),
        Value("vision.channels", "vision_config.num_channels", 3),
        Value("vision.width", "vision_config.hidden_size", 1024),
        Value("vision.ffn", "vision_config.intermediate_size", 4096),
        Value("vision.blocks", "vision_config.num_hidden_layers", 24),
        Value("vision.heads", "vision_config.num_attention_heads", 16),
        Value("vision.epsilon", "vision_config.layer_norm_eps", 1e-6),
        *statistics(IMAGENET_STATISTICS),
        Value("norm_type", "vision_config.norm_type", "layer_norm"),
        Value("norms", check_norms),
        Value("vision.rms_normed", of=rms_normed),
        Value("vision.layer_normed", of=lambda v: v["vision.blocks"] - v["vision.rms_normed"]),
        *activation("vision_config.hidden_act", "gelu"),
        settled("projector_hidden_act", "gelu"),
        settled("select_layer|vision_feature_layer", -1),
        settled("ps_version", "v2"),
        Value("downsample_ratio", "downsample_ratio", 0.5),
        Value("vision.scale", of=patches_per_token),
        Value("vision.min_tiles", "min_dynamic_patch", 0, unless=0),
        Value("vision.max_tiles", "max_dynamic_patch", 0, unless=0),
        Value("tiles", of=check_tiles),
        # One for each patch, and one for the class token.
        Value("vision.positions", of=lambda v: (v["vision.image"] // v["vision.patch"]) ** 2 + 1),
        Value("vision.merged", of=lambda v: v["vision.scale"] ** 2 * v["vision.width"]),
    ),
    sections=sections(own=True),
    layouts=(sections(own=False),),
    merge="vision.scale",
    # The mask is only for training.
    left_out=(*LANGUAGE_MODEL, r".*embeddings\.mask_token$"),
)
