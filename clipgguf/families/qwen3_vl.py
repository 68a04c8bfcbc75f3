"""Qwen3-VL and Qwen3.5, dense and MoE: patches merged two by two, and the features of some blocks besides.

Names: transformers' Qwen3VLForConditionalGeneration and Qwen3_5ForConditionalGeneration; llama.cpp's
``conversion/qwen3vl.py`` and ``tools/mtmd``. It is longer than other tables since Qwen3-Omni and Ling 3 share its
parts.
"""

from collections.abc import Mapping
from typing import Any

from clipgguf.config import SIGLIP_STATISTICS
from clipgguf.families.bases import LANGUAGE_MODEL, MTMD, statistics
from clipgguf.families.tower_tables import TWO_FRAMES
from clipgguf.family import Family
from clipgguf.layers import linear, norm
from clipgguf.table import INTEGERS, PerModel, Prefix, Rule, Section, Value

TOWER = Prefix("patch_embed.proj.weight", "model.visual.")


def is_deepstack(values: Mapping[str, Any]) -> list[bool]:
    """Return for each block whether its features are used besides."""
    wrong = [block for block in values["vision.deepstack"] if not 0 <= block < values["vision.blocks"]]
    if wrong:
        raise ValueError(f"vision_config: deepstack_visual_indexes has block {wrong[0]} of {values['vision.blocks']}")
    return [block in values["vision.deepstack"] for block in range(values["vision.blocks"])]


BLOCK = (
    *norm("norm1", "ln1"),
    *linear("attn.qkv", "attn_qkv", "(3 width')", "width"),
    *linear("attn.proj", "attn_out", "width", "width'"),
    *norm("norm2", "ln2"),
    *linear("mlp.linear_fc1", "ffn_up", "ffn", "width"),
    *linear("mlp.linear_fc2", "ffn_down", "width", "ffn"),
)
POSITIONS = Rule("pos_embed.weight", "position_embd.weight", "positions width")


def sections(
    ln: str = "norm", fc1: str = "linear_fc1", fc2: str = "linear_fc2", mergers: str = "deepstack_merger_list"
) -> tuple[Section, ...]:
    """Return the tower and its projectors, with what the projectors' parts are called."""
    return (
        Section(
            TOWER,
            "v.",
            (
                TWO_FRAMES,
                Rule("patch_embed.proj.bias", "patch_embd.bias", "width"),
                POSITIONS,
            ),
        ),
        Section(TOWER + "blocks.{}.", "v.blk.{}.", BLOCK, times="blocks"),
        Section(TOWER + "merger.", "v.", norm(ln, "post_ln")),
        Section(
            TOWER + "merger.",
            "mm.",
            (*linear(fc1, "0", "merged", "merged'"), *linear(fc2, "2", "projection", "merged")),
        ),
        Section(
            TOWER + f"{mergers}.{{}}.",
            "v.deepstack.{}.",
            (
                *norm(ln, "norm", "merged"),
                *linear(fc1, "fc1", "merged", "merged'"),
                *linear(fc2, "fc2", "projection", "merged"),
            ),
            times="deepstack",
        ),
    )


FAMILY = Family(
    title="Qwen3-VL",
    projector="qwen3vl_merger",
    base=MTMD,
    values=(
        Value(
            "vision.projection",
            "text_config.hidden_size|hidden_size",
            PerModel(2048, {"qwen3_vl": 4096, "qwen3_5": 4096}),
        ),
        Value("vision.positions", "vision_config.num_position_embeddings", 2304),
        Value("vision.patch", "vision_config.patch_size", 16),
        Value("vision.image", of=lambda v: int(v["vision.positions"] ** 0.5 * v["vision.patch"])),
        Value("vision.width", "vision_config.hidden_size", 1152),
        Value("vision.ffn", "vision_config.intermediate_size", 4304),
        Value("vision.blocks", "vision_config.depth", 27),
        Value("vision.heads", "vision_config.num_heads", 16),
        Value("vision.merge", "vision_config.spatial_merge_size", 2),
        Value("vision.epsilon", "text_config.rms_norm_eps|rms_norm_eps", 1e-6),
        Value("vision.merged", of=lambda v: v["vision.merge"] ** 2 * v["vision.width"]),
        *statistics(SIGLIP_STATISTICS),
        Value(
            "vision.deepstack",
            "vision_config.deepstack_visual_indexes",
            PerModel([], {model_type: [8, 16, 24] for model_type in ("qwen3_vl", "qwen3_vl_moe", "qwen3_omni_moe")}),
            kind=INTEGERS,
            told=lambda v: [block for block, is_one in enumerate(v["vision.is_deepstack"]) if is_one],
        ),
        Value("vision.is_deepstack", of=is_deepstack),
        Value("gelu", default=True),
    ),
    sections=sections(),
    merge="vision.merge",
    left_out=(*LANGUAGE_MODEL, r"mtp\."),
)
