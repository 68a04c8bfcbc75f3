"""Llama 4: a tower with rotary positions, whose patches are joined and go through three matrices.

Names and defaults: transformers' Llama4ForConditionalGeneration; llama.cpp's ``conversion/llama4.py`` and
``tools/mtmd/models/llama4.cpp``.
"""

from collections.abc import Mapping
from typing import Any

from clipgguf.config import SIGLIP_STATISTICS
from clipgguf.errors import shown
from clipgguf.families.bases import LANGUAGE_MODEL, MTMD, activation, statistics
from clipgguf.family import Family, Mends
from clipgguf.layers import linear, norm
from clipgguf.table import Prefix, Rule, Section, Value

TOWER = Prefix("patch_embedding.linear.weight", "vision_model.")
PROJECTOR = Prefix("linear_1.weight", "multi_modal_projector.")


def patches_per_token(values: Mapping[str, Any]) -> int:
    """Return how many patches, along one side, are joined into a token."""
    ratio, side = values["pixel_shuffle_ratio"], values["vision.image"] // values["vision.patch"]
    if not 1 / side <= ratio <= 1:
        raise ValueError(f"vision_config: pixel_shuffle_ratio is {shown(ratio)}, should be between 1/{side} and 1")
    return int(1 / ratio)


FAMILY = Family(
    title="Llama 4",
    projector="llama4",
    base=MTMD,
    values=(
        Value("vision.projection", "text_config.hidden_size|hidden_size", 5120),
        Value("vision.image", "vision_config.image_size", 448),
        Value("vision.patch", "vision_config.patch_size", 14),
        Value("vision.channels", "vision_config.num_channels", 3),
        Value("vision.width", "vision_config.hidden_size", 768),
        Value("vision.ffn", "vision_config.intermediate_size", 5632),
        Value("vision.blocks", "vision_config.num_hidden_layers", 34),
        Value("vision.heads", "vision_config.num_attention_heads", 16),
        Value("vision.epsilon", "vision_config.norm_eps", 1e-5),
        *activation("vision_config.hidden_act", "gelu"),
        *statistics(SIGLIP_STATISTICS),
        # One for each patch, and one for the class token.
        Value("vision.positions", of=lambda v: (v["vision.image"] // v["vision.patch"]) ** 2 + 1),
        Value("pixel_shuffle_ratio", "vision_config.pixel_shuffle_ratio", 0.5),
        Value("vision.scale", of=patches_per_token),
        Value("vision.merged", of=lambda v: v["vision.scale"] ** 2 * v["vision.width"]),
    ),
    sections=(
        Section(PROJECTOR, "mm.model.", linear("linear_1", "fc", "projection", "output", bias=False)),
        Section(
            TOWER,
            "v.",
            (
                Rule("class_embedding", "class_embd", "width"),
                Rule("patch_embedding.linear.weight", "patch_embd.weight", "width (channels patch patch')"),
                Rule("positional_embedding_vlm", "position_embd.weight", "positions width"),
                *norm("layernorm_pre", "pre_ln"),
                *norm("layernorm_post", "post_ln"),
            ),
        ),
        Section(
            TOWER + "model.layers.{}.",
            "v.blk.{}.",
            (
                *norm("input_layernorm", "ln1"),
                *linear("self_attn.q_proj", "attn_q", "width", "width'"),
                *linear("self_attn.k_proj", "attn_k", "width", "width'"),
                *linear("self_attn.v_proj", "attn_v", "width", "width'"),
                *linear("self_attn.o_proj", "attn_out", "width", "width'"),
                # Its place is before the feed-forward, as its name does not say.
                *norm("post_attention_layernorm", "ln2"),
                *linear("mlp.fc1", "ffn_up", "ffn", "width"),
                *linear("mlp.fc2", "ffn_down", "width", "ffn"),
            ),
            times="blocks",
        ),
        Section(
            TOWER + "vision_adapter.mlp.",
            "mm.model.mlp.",
            (
                *linear("fc1", "1", "adapter", "merged", bias=False),
                *linear("fc2", "2", "output", "adapter", bias=False),
            ),
        ),
    ),
    # llama.cpp's converter takes the second norm for Gemma 4's norm after attention, which has its name in checkpoints.
    mends=Mends(renamed=((".attn_post_norm.", ".ln2."),)),
    merge="vision.scale",
    left_out=LANGUAGE_MODEL,
)
