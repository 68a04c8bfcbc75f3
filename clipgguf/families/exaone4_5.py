"""EXAONE 4.5: Qwen2.5-VL's tower with fewer heads of keys and values than of queries.

Names: transformers' Exaone4_5_ForConditionalGeneration; llama.cpp's ``conversion/exaone.py`` and ``tools/mtmd``.
"""

from collections.abc import Mapping
from typing import Any

from clipgguf.families.bases import LANGUAGE_MODEL, MTMD, settled
from clipgguf.families.qwen2_5_vl import VALUES, sections
from clipgguf.family import Family
from clipgguf.layers import linear
from clipgguf.table import Value


def qkv_rows(values: Mapping[str, Any]) -> int:
    """Return the rows of queries, keys and values together."""
    heads = values["vision.heads"]
    rows: int = (heads + 2 * values["vision.kv_heads"]) * (values["vision.width"] // heads)
    return rows


FAMILY = Family(
    title="EXAONE 4.5",
    projector="exaone4_5",
    base=MTMD,
    values=(
        Value("vision.projection", "text_config.hidden_size|hidden_size", 4096),
        Value("vision.epsilon", "vision_config.rms_norm_eps|rms_norm_eps", 1e-6),
        *VALUES,
        Value("vision.kv_heads", "vision_config.num_key_value_heads", 8),
        Value("vision.qkv_rows", of=qkv_rows),
        Value("vision.window", "vision_config.window_size", 112),
        Value("vision.min_pixels", "processor.min_pixels|processor.size.shortest_edge", 56 * 56),
        Value("vision.max_pixels", "processor.max_pixels|processor.size.longest_edge", 28 * 28 * 1280),
        settled("vision_config.spatial_merge_size", 2),
        settled("vision_config.hidden_act", "silu"),
    ),
    sections=sections(linear("attn.qkv", "attn_qkv", "qkv_rows", "width")),
    merge=2,
    left_out=(*LANGUAGE_MODEL, r"mtp\."),
)
