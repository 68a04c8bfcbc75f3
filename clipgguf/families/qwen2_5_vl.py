"""Qwen2.5-VL: a tower with rotary positions and windows, whose patches are merged two by two.

Names: transformers' Qwen2_5_VLForConditionalGeneration; llama.cpp's ``conversion/qwenvl.py`` and ``tools/mtmd``.
"""

from collections.abc import Mapping
from typing import Any

from clipgguf.config import CLIP_STATISTICS
from clipgguf.errors import shown
from clipgguf.families.bases import LANGUAGE_MODEL, MTMD, statistics
from clipgguf.families.tower_tables import TWO_FRAMES
from clipgguf.family import Family
from clipgguf.layers import fused_qkv, linear, norm
from clipgguf.table import Prefix, Rule, Section, Value

TOWER = Prefix("patch_embed.proj.weight", "visual.")


def window_pattern(values: Mapping[str, Any]) -> int:
    """Return after how many blocks one attends to the whole image: of the blocks 7, 15, 23 and 31 that is 8."""
    blocks = values["whole_blocks"]
    every = blocks[0] + 1 if blocks and type(blocks[0]) is int else 0
    if every < 1 or blocks != list(range(every - 1, every * len(blocks), every)):
        raise ValueError(
            f"vision_config: fullatt_block_indexes is {shown(blocks)}, should be evenly spaced: 7, 15, 23, 31"
        )
    return every


VALUES = (
    Value("vision.image", "vision_config.image_size", 560),
    Value("vision.patch", "vision_config.patch_size", 14),
    Value("vision.width", "vision_config.hidden_size", 3584),
    Value("vision.ffn", "vision_config.intermediate_size", 3420),
    Value("vision.blocks", "vision_config.depth", 32),
    Value("vision.heads", "vision_config.num_heads", 16),
    # llama.cpp's graph merges two by two patches, whatever the configuration says.
    Value("vision.merged", of=lambda v: 4 * v["vision.width"]),
    *statistics(CLIP_STATISTICS),
    Value("whole_blocks", "vision_config.fullatt_block_indexes", [7, 15, 23, 31]),
    Value("vision.window_pattern", of=window_pattern),
    Value("silu", default=True),
)


def sections(qkv: tuple[Rule, ...]) -> tuple[Section, ...]:
    """Return the tower and its projector with some rules for the blocks' queries, keys and values."""
    return (
        Section(TOWER, "v.", (TWO_FRAMES,)),
        Section(
            TOWER + "blocks.{}.",
            "v.blk.{}.",
            (
                *norm("norm1", "ln1", bias=False),
                *qkv,
                *linear("attn.proj", "attn_out", "width", "width'"),
                *norm("norm2", "ln2", bias=False),
                *linear("mlp.gate_proj", "ffn_gate", "ffn", "width"),
                *linear("mlp.up_proj", "ffn_up", "ffn", "width"),
                *linear("mlp.down_proj", "ffn_down", "width", "ffn"),
            ),
            times="blocks",
        ),
        Section(TOWER, "v.", norm("merger.ln_q", "post_ln", bias=False)),
        Section(
            TOWER + "merger.mlp.",
            "mm.",
            (*linear("0", "0", "merged", "merged'"), *linear("2", "2", "projection", "merged")),
        ),
    )


FAMILY = Family(
    title="Qwen2.5-VL",
    projector="qwen2.5vl_merger",
    base=MTMD,
    values=(
        Value("vision.projection", "text_config.hidden_size|hidden_size", 8192),
        Value("vision.epsilon", "rms_norm_eps", 1e-6),
        *VALUES,
    ),
    sections=sections(fused_qkv()),
    merge=2,
    left_out=LANGUAGE_MODEL,
)
