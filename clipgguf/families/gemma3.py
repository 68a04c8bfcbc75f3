"""Gemma 3: a SigLIP tower, pooled, and one matrix after an RMS norm.

Names: transformers' Gemma3ForConditionalGeneration; llama.cpp's ``conversion/gemma.py`` and ``tools/mtmd``.
"""

from collections.abc import Mapping
from typing import Any

from clipgguf.config import SIGLIP_STATISTICS
from clipgguf.families.bases import MTMD, statistics
from clipgguf.families.tower_tables import MODERN_BLOCK, POST_NORM, SIGLIP_EMBEDDINGS, SIGLIP_HEAD, TOWER
from clipgguf.family import Family
from clipgguf.table import F16, F32, Prefix, Rule, Section, Types, Value
from clipgguf.transforms import plus

PROJECTOR = Prefix("mm_soft_emb_norm.weight", "multi_modal_projector.")


def patches_per_token(values: Mapping[str, Any]) -> int | None:
    """Return how many patches, along one side, are pooled into a token."""
    return values["vision.image"] // values["vision.patch"] // int(values["image_tokens"] ** 0.5) or None


FAMILY = Family(
    title="Gemma 3",
    projector="gemma3",
    base=MTMD,
    values=(
        Value("vision.projection", "text_config.hidden_size", 2304),
        Value("vision.image", "vision_config.image_size", 224),
        Value("vision.patch", "vision_config.patch_size", 16),
        Value("vision.channels", "vision_config.num_channels", 3),
        Value("vision.width", "vision_config.hidden_size", 768),
        Value("vision.ffn", "vision_config.intermediate_size", 3072),
        Value("vision.blocks", "vision_config.num_hidden_layers", 12),
        Value("vision.heads", "vision_config.num_attention_heads", 12),
        Value("vision.epsilon", "vision_config.layer_norm_eps", 1e-6),
        *statistics(SIGLIP_STATISTICS),
        Value("vision.positions", of=lambda v: (v["vision.image"] // v["vision.patch"]) ** 2),
        Value("image_tokens", "processor.image_seq_length", 256),
        Value("vision.scale", of=patches_per_token, unless=4),
        Value("gelu", default=True),
    ),
    sections=(
        Section(
            PROJECTOR,
            "mm.",
            (
                Rule("mm_input_projection_weight", "input_projection.weight", "width projection"),
                # Gemma3RMSNorm multiplies by 1 + weight.
                Rule("mm_soft_emb_norm.weight", "soft_emb_norm.weight", "width", then=plus(1)),
            ),
        ),
        Section(TOWER, "v.", SIGLIP_EMBEDDINGS),
        Section(TOWER + "encoder.layers.{}.", "v.blk.{}.", MODERN_BLOCK, times="blocks"),
        Section(TOWER, "v.", POST_NORM),
    ),
    merge="vision.scale",
    left_out=(r"(model\.)?language_model\.", r"lm_head\.", SIGLIP_HEAD),
    types=(Types("mm.input_projection.weight", F16), Types("v.patch_embd.weight", F32)),
)
