"""Gemma 4's audio encoder: a conformer, whose linear layers may clip, and one matrix.

Names: transformers' Gemma4AudioModel; llama.cpp's ``conversion/gemma.py`` and ``tools/mtmd/models/gemma4a.cpp``, which
has most of the configuration built in.
"""

from clipgguf.families.bases import settled
from clipgguf.families.gemma_tables import (
    CONVOLUTION,
    CONVOLUTION_NORMS,
    Linears,
    bounds,
    feed_forward,
    feed_forward_norms,
    subsampling,
    weights,
)
from clipgguf.layers import linear, norm
from clipgguf.table import F32, Prefix, Rule, Section, Types, Value
from clipgguf.transforms import softplus

TOWER = Prefix("subsample_conv_projection.input_proj_linear.weight", "model.audio_tower.")
PROJECTOR = Prefix("embed_audio.embedding_projection.weight", "model.") + "embed_audio."

VALUES = (
    Value("audio.projector", default="gemma4a"),
    Value("audio.projection", "text_config.hidden_size", 2304),
    Value("audio.width", "audio_config.hidden_size", 1024),
    Value("audio.ffn", of=lambda v: 4 * v["audio.width"]),
    Value("audio.blocks", "audio_config.num_hidden_layers", 12),
    Value("audio.heads", "audio_config.num_attention_heads", 8),
    Value("audio.head", of=lambda v: v["audio.width"] // v["audio.heads"]),
    Value("audio.epsilon", "audio_config.rms_norm_eps", 1e-6),
    Value("audio.mel_bins", "audio_config.input_feat_size", 128),
    # Halved twice, and rounded up.
    Value("audio.bands", of=lambda v: -(-v["audio.mel_bins"] // 4)),
    Value("audio.clips", "audio_config.use_clipped_linears", True),
    Value("audio.clipping_blocks", of=lambda v: v["audio.blocks"] if v["audio.clips"] else 0),
    settled("audio_config.rms_norm_eps", 1e-6, part="audio"),
    settled("audio_config.hidden_act", "silu", "swish", part="audio"),
    settled("audio_config.residual_weight", 0.5, part="audio"),
    settled("audio_config.attention_chunk_size", 12, part="audio"),
    settled("audio_config.attention_context_left", 13, part="audio"),
    settled("audio_config.attention_context_right", 0, part="audio"),
    settled("audio_config.attention_logit_cap", 50.0, 50, part="audio"),
)

_LINEARS: Linears = {
    **feed_forward("feed_forward1"),
    "self_attn.q_proj": ("attn_q", "width width'"),
    "self_attn.k_proj": ("attn_k", "width width'"),
    "self_attn.v_proj": ("attn_v", "width width'"),
    "self_attn.post": ("attn_out", "width width'"),
    **CONVOLUTION,
    **feed_forward("feed_forward2", "_1"),
}

SECTIONS = (
    Section(
        PROJECTOR,
        "mm.a.",
        (Rule("embedding_projection.weight", "input_projection.weight", "projection features"),),
        part="audio",
    ),
    Section(
        TOWER,
        "a.",
        (
            *subsampling("subsample_conv_projection.layer{}"),
            Rule(
                "subsample_conv_projection.input_proj_linear.weight", "input_projection.weight", "width (bands second)"
            ),
            *linear("output_proj", "pre_encode.out", "features", "width"),
        ),
        part="audio",
    ),
    Section(
        TOWER + "layers.{}.",
        "a.blk.{}.",
        (
            *feed_forward_norms("feed_forward1"),
            *norm("norm_pre_attn", "attn_pre_norm", bias=False),
            *weights(_LINEARS),
            *linear("self_attn.relative_k_proj", "attn_k_rel", "width", "width'", bias=False),
            Rule("self_attn.per_dim_scale", "per_dim_scale.weight", "head", then=softplus),
            *norm("norm_post_attn", "attn_post_norm", bias=False),
            *CONVOLUTION_NORMS,
            # llama.cpp pads by the 4 frames before.
            Rule("lconv1d.depthwise_conv1d.weight", "conv_dw.weight", "width 1 5 -> width 5"),
            *feed_forward_norms("feed_forward2", "_1"),
            *norm("norm_out", "ln2", bias=False),
        ),
        times="blocks",
        part="audio",
    ),
    Section(TOWER + "layers.{}.", "a.blk.{}.", bounds(_LINEARS), times="clipping_blocks", part="audio"),
)

TYPES = (
    Types("a.conv1d.*.weight", F32),
    Types("a.input_projection.weight", F32),
    Types("a.blk.*.conv_dw.weight", F32),
)
