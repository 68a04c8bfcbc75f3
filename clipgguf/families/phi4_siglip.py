"""Phi-4 vision: a SigLIP 2 tower of which the last block is not used, and two matrices.

Names: microsoft's Phi4ForCausalLMV (Phi-4-reasoning-vision); llama.cpp's ``conversion/phi.py`` and ``tools/mtmd``.
Phi-4-multimodal is another model.
"""

from collections.abc import Mapping
from math import isqrt
from typing import Any

from clipgguf.config import SIGLIP_STATISTICS
from clipgguf.families.bases import LANGUAGE_MODEL, MTMD, statistics
from clipgguf.families.tower_tables import MODERN_BLOCK, SIGLIP_HEAD, TOWER
from clipgguf.family import Family
from clipgguf.layers import linear
from clipgguf.table import Prefix, Rule, Section, Value

PROJECTOR = Prefix("mm_projector.0.weight", "model.") + "mm_projector."


def all_but_the_last(values: Mapping[str, Any]) -> int:
    """Return how many blocks are used: the projector takes the features before the last one."""
    blocks: int = values["vision.depth"]
    if blocks < 2:
        raise ValueError(f"vision_config: num_hidden_layers is {blocks}, should be 2 or more: the last is not used")
    return blocks - 1


def image_size(values: Mapping[str, Any]) -> int:
    """Return the side of the image that has a patch for each of the tower's positions."""
    side = isqrt(values["vision.positions"])
    if side**2 != values["vision.positions"]:
        raise ValueError(f"vision_config: num_patches is {values['vision.positions']:,}, should be a square")
    return int(side * values["vision.patch"])


FAMILY = Family(
    title="Phi-4 vision",
    projector="phi4",
    base=MTMD,
    values=(
        Value("vision.projection", "text_config.hidden_size|hidden_size", kind=int),
        Value("vision.patch", "processor.patch_size|vision_config.patch_size", 16),
        Value("vision.positions", "vision_config.num_patches", 256),
        Value("vision.image", of=image_size),
        Value("vision.channels", "vision_config.num_channels", 3),
        Value("vision.width", "vision_config.hidden_size", 768),
        Value("vision.ffn", "vision_config.intermediate_size", 3072),
        Value("vision.depth", "vision_config.num_hidden_layers", 12),
        Value("vision.blocks", of=all_but_the_last),
        Value("vision.heads", "vision_config.num_attention_heads", 12),
        Value("vision.epsilon", "vision_config.layer_norm_eps", 1e-6),
        *statistics(SIGLIP_STATISTICS),
        Value("min_patches", "processor.min_num_patches|min_num_patches", kind=int),
        Value("max_patches", "processor.max_num_patches|max_num_patches", kind=int),
        Value("vision.min_pixels", of=lambda v: v["min_patches"] * v["vision.patch"] ** 2),
        Value("vision.max_pixels", of=lambda v: v["max_patches"] * v["vision.patch"] ** 2),
        Value("gelu", default=True),
    ),
    sections=(
        Section(
            PROJECTOR,
            "mm.",
            (*linear("0", "0", "projection", "width"), *linear("2", "2", "projection", "projection'")),
        ),
        Section(
            TOWER + "embeddings.",
            "v.",
            (
                Rule(
                    "patch_embedding.weight",
                    "patch_embd.weight",
                    "width (patch patch' channels) -> width channels patch patch'",
                ),
                Rule("patch_embedding.bias", "patch_embd.bias", "width"),
                Rule("position_embedding.weight", "position_embd.weight", "positions width"),
            ),
        ),
        Section(TOWER + "encoder.layers.{}.", "v.blk.{}.", MODERN_BLOCK, times="depth", stored="blocks"),
    ),
    merge=1,
    left_out=(*LANGUAGE_MODEL, SIGLIP_HEAD, r"(.*\.)?vision_model\.post_layernorm\."),
)
