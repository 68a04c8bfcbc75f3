"""Gemma 4: a gated tower with norms on both sides, pooled, whose linear layers may clip; and one matrix.

Names: transformers' Gemma4ForConditionalGeneration; llama.cpp's ``conversion/gemma.py`` and ``tools/mtmd``. The smaller
models hear as well. It is longer than other tables for what only one of its two encoders has.
"""

from clipgguf.config import ImageStatistics
from clipgguf.families import gemma4_audio
from clipgguf.families.bases import LANGUAGE_MODEL, MTMD, activation, statistics
from clipgguf.families.gemma_tables import Linears, bounds, weights
from clipgguf.family import Family, Mends
from clipgguf.layers import norm
from clipgguf.table import Prefix, Rule, Section, Value

TOWER = Prefix("patch_embedder.input_proj.weight", "model.vision_tower.")
PROJECTOR = Prefix("embed_vision.embedding_projection.weight", "model.")

# Pixels are in [0, 1]; the tower itself makes [-1, 1] of them.
STATISTICS = ImageStatistics((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), is_default=True)
APART = {
    "vision": r"(model\.)?(vision_tower|vision_embedder|embed_vision)\.",
    "audio": r"(model\.)?(audio_tower|embed_audio)\.",
}

_LINEARS: Linears = {
    "self_attn.q_proj": ("attn_q", "width width'"),
    "self_attn.k_proj": ("attn_k", "width width'"),
    "self_attn.v_proj": ("attn_v", "width width'"),
    "self_attn.o_proj": ("attn_out", "width width'"),
    "mlp.gate_proj": ("ffn_gate", "ffn width"),
    "mlp.up_proj": ("ffn_up", "ffn width"),
    "mlp.down_proj": ("ffn_down", "width ffn"),
}

FAMILY = Family(
    title="Gemma 4",
    projector="gemma4v",
    projector_key="vision.projector",
    base=MTMD,
    values=(
        Value("vision.projection", "text_config.hidden_size", 2304),
        Value("vision.image", default=224),  # No reader uses it.
        Value("vision.patch", "vision_config.patch_size", 16),
        Value("vision.width", "vision_config.hidden_size", 768),
        Value("vision.ffn", "vision_config.intermediate_size", 3072),
        Value("vision.blocks", "vision_config.num_hidden_layers", 16),
        Value("vision.heads", "vision_config.num_attention_heads", 12),
        Value("vision.head", of=lambda v: v["vision.width"] // v["vision.heads"]),
        Value("vision.epsilon", "vision_config.rms_norm_eps", 1e-6),
        Value("vision.positions", "vision_config.position_embedding_size", 10240),
        *statistics(STATISTICS),
        Value("vision.scale", "vision_config.pooling_kernel_size", 3, unless=3),
        # llama.cpp's own converter names none, so that llama.cpp computes quick GELU.
        *activation("vision_config.hidden_activation", "gelu_pytorch_tanh"),
        Value("vision.standardize", "vision_config.standardize", False),
        Value("vision.clips", "vision_config.use_clipped_linears", False),
        Value("vision.clipping_blocks", of=lambda v: v["vision.blocks"] if v["vision.clips"] else 0),
        *gemma4_audio.VALUES,
    ),
    sections=(
        Section(
            PROJECTOR + "embed_vision.",
            "mm.",
            (Rule("embedding_projection.weight", "input_projection.weight", "projection width"),),
        ),
        Section(
            TOWER,
            "v.",
            (
                Rule(
                    "patch_embedder.input_proj.weight",
                    "patch_embd.weight",
                    "width (patch patch' 3) -> width 3 patch patch'",
                ),
                Rule("patch_embedder.position_embedding_table", "position_embd.weight", "2 positions width"),
            ),
        ),
        Section(
            TOWER + "encoder.layers.{}.",
            "v.blk.{}.",
            (
                *norm("input_layernorm", "ln1", bias=False),
                *weights(_LINEARS),
                *norm("self_attn.q_norm", "attn_q_norm", "head", bias=False),
                *norm("self_attn.k_norm", "attn_k_norm", "head", bias=False),
                *norm("post_attention_layernorm", "attn_post_norm", bias=False),
                *norm("pre_feedforward_layernorm", "ln2", bias=False),
                *norm("post_feedforward_layernorm", "ffn_post_norm", bias=False),
            ),
            times="blocks",
        ),
        Section(TOWER + "encoder.layers.{}.", "v.blk.{}.", bounds(_LINEARS), times="clipping_blocks"),
        Section(
            TOWER,
            "v.",
            (Rule("std_bias", "std_bias", "width"), Rule("std_scale", "std_scale", "width")),
            times="standardize",
        ),
        *gemma4_audio.SECTIONS,
    ),
    merge="vision.scale",
    mends=Mends(added=(("gelu", True),)),
    # Pictures have any size.
    tokens=lambda *_: 0,
    left_out=LANGUAGE_MODEL,
    apart=APART,
    told_by={"audio": "audio_config"},
    types=gemma4_audio.TYPES,
)
