"""MiMo-V2.5: a tower with windows of rows or columns, with sinks, and fewer heads of keys and values; and an ear.

Names: Xiaomi's MiMoV2ForCausalLM; llama.cpp's ``conversion/mimo.py`` and ``tools/mtmd/models/mimovl.cpp``.
"""

from collections.abc import Mapping
from typing import Any

from clipgguf.config import CLIP_STATISTICS
from clipgguf.families import mimo_audio as audio
from clipgguf.families.bases import LANGUAGE_MODEL, MTMD, statistics
from clipgguf.families.tower_tables import TWO_FRAMES
from clipgguf.family import Family
from clipgguf.layers import linear, norm
from clipgguf.table import INTEGERS, Prefix, Rule, Section, Value

TOWER = Prefix("patch_embed.proj.weight", "visual.")

SINKS = "attn.sinks", "attn_sinks", "heads"


def window_modes(values: Mapping[str, Any]) -> list[int]:
    """Return for each block what it attends to: -1 the image, 0 rows, 1 columns."""
    modes: list[int] = values["vision.modes"]
    if len(modes) != values["vision.blocks"] or not {-1, 0, 1}.issuperset(modes):
        raise ValueError("vision_config: vit_window_attn_types should have -1, 0 or 1 for each of the blocks (depth)")
    return modes


FAMILY = Family(
    title="MiMo-V2.5",
    projector="mimovl",
    projector_key="vision.projector",
    base=MTMD,
    values=(
        Value("vision.projection", "text_config.hidden_size|hidden_size", kind=int),
        Value("vision.image", "vision_config.image_size", 560),
        Value("vision.patch", "vision_config.patch_size", 16),
        Value("vision.width", "vision_config.hidden_size", kind=int),
        Value("vision.ffn", "vision_config.intermediate_size", kind=int),
        Value("vision.blocks", "vision_config.depth", 28),
        Value("vision.heads", "vision_config.num_heads", 32),
        Value("vision.kv_heads", "vision_config.num_key_value_heads", 8),
        Value("vision.head", "vision_config.qk_channels", 64),
        Value("vision.heads_out", of=lambda v: v["vision.heads"] * v["vision.head"]),
        Value("vision.qkv", of=lambda v: (v["vision.heads"] + 2 * v["vision.kv_heads"]) * v["vision.head"]),
        Value("vision.merge", "vision_config.spatial_merge_size", 2),
        Value("vision.merged", of=lambda v: v["vision.merge"] ** 2 * v["vision.width"]),
        Value("vision.window", "vision_config.visual_token_window_size", kind=int),
        Value("vision.modes", "vision_config.vit_window_attn_types", kind=INTEGERS),
        Value("vision.window_modes", of=window_modes),
        # llama.cpp's graph has sinks where windows are, and ignores them elsewhere.
        Value("vision.windowed", of=lambda v: [n for n, mode in enumerate(v["vision.window_modes"]) if mode != -1]),
        Value("vision.whole", of=lambda v: [n for n, mode in enumerate(v["vision.window_modes"]) if mode == -1]),
        Value("vision.epsilon", "vision_config.rms_norm_eps", 1e-6),
        *statistics(CLIP_STATISTICS),
        Value("vision.min_pixels", "processor.min_pixels", kind=int),
        Value("vision.max_pixels", "processor.max_pixels", kind=int),
        Value("silu", default=True),
        *audio.VALUES,
    ),
    sections=(
        Section(TOWER, "v.", (TWO_FRAMES,)),
        Section(
            TOWER + "blocks.{}.",
            "v.blk.{}.",
            (
                *norm("norm1", "ln1", bias=False),
                *linear("attn.qkv", "attn_qkv", "qkv", "width"),
                *linear("attn.proj", "attn_out", "width", "heads_out", bias="optional"),
                *norm("norm2", "ln2", bias=False),
                *linear("mlp.gate_proj", "ffn_gate", "ffn", "width"),
                *linear("mlp.up_proj", "ffn_up", "ffn", "width"),
                *linear("mlp.down_proj", "ffn_down", "width", "ffn"),
            ),
            times="blocks",
        ),
        Section(TOWER + "blocks.{}.", "v.blk.{}.", (Rule(*SINKS),), times="windowed", same_numbers=True),
        Section(TOWER + "blocks.{}.", "v.blk.{}.", (Rule(*SINKS, optional=True),), times="whole", same_numbers=True),
        # The published model has no biases here, and llama.cpp's graph applies none.
        Section(TOWER, "v.", norm("merger.ln_q", "post_ln", bias="optional")),
        Section(
            TOWER + "merger.mlp.",
            "mm.",
            (
                *linear("0", "0", "merged", "merged'", bias="optional"),
                *linear("2", "2", "projection", "merged", bias="optional"),
            ),
        ),
        *audio.SECTIONS,
    ),
    merge="vision.merge",
    left_out=(*LANGUAGE_MODEL, r"model\.mtp\.", r"mtp\.", *audio.LEFT_OUT),
    apart={"vision": r"visual\.", "audio": audio.NAMES},
    told_by={"audio": "audio_config"},
    folders={"audio": audio.FOLDER},
    types=audio.TYPES,
)
