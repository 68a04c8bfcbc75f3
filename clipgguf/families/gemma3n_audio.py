"""Gemma 3n's audio encoder, a conformer, and one matrix after an RMS norm.

Names: transformers' Gemma3nAudioEncoder; llama.cpp's ``conversion/gemma.py``. llama.cpp has no graph for it: what it
does with the values, such as softplus of the scales of queries, is not yet settled, and they are written as they are.
"""

from clipgguf.families.gemma_tables import (
    CONVOLUTION,
    CONVOLUTION_NORMS,
    Linears,
    feed_forward,
    feed_forward_norms,
    subsampling,
    weights,
)
from clipgguf.layers import norm
from clipgguf.table import F16, F32, Prefix, Rule, Section, Types, Value

TOWER = Prefix("subsample_conv_projection.input_proj_linear.weight", "model.audio_tower.")
PROJECTOR = Prefix("embed_audio.soft_embedding_norm.weight", "model.") + "embed_audio."

# Of the image as well as of the sound: a table of hard tokens, and what comes after the encoder.
EMBEDDER = (
    Rule("embedding.weight", "embedding.weight", "tokens width"),
    Rule("hard_embedding_norm.weight", "hard_emb_norm.weight", "width"),
    Rule("soft_embedding_norm.weight", "soft_emb_norm.weight", "width"),
    Rule("embedding_projection.weight", "input_projection.weight", "projection width"),
)

VALUES = (
    Value("audio.projector", default="gemma3na"),
    Value("audio.projection", "text_config.hidden_size", 2048),
    Value("audio.width", "audio_config.hidden_size", 1536),
    # So it stands in llama.cpp's files, four times the published width; no reader uses it.
    Value("audio.ffn", default=6144),
    Value("audio.blocks", "audio_config.conf_num_hidden_layers", 12),
    Value("audio.heads", "audio_config.conf_num_attention_heads", 8),
    Value("audio.head", of=lambda v: v["audio.width"] // v["audio.heads"]),
    # llama.cpp's own converter writes it, whatever the configuration says.
    Value("audio.epsilon", default=1e-5),
    Value("audio.mel_bins", "audio_config.input_feat_size", 128),
    # Halved twice, and rounded up.
    Value("audio.bands", of=lambda v: -(-v["audio.mel_bins"] // 4)),
    Value("audio.tokens", "audio_config.vocab_size", 128),
)

_LINEARS: Linears = {
    **feed_forward("ffw_layer_start", ffn="(4 width')"),
    "attention.attn.q_proj": ("attn_q", "width width'"),
    "attention.attn.k_proj": ("attn_k", "width width'"),
    "attention.attn.v_proj": ("attn_v", "width width'"),
    "attention.attn.relative_position_embedding.pos_proj": ("linear_pos", "width width'"),
    "attention.post": ("attn_out", "width width'"),
    **CONVOLUTION,
    **feed_forward("ffw_layer_end", "_1", "(4 width')"),
}

SECTIONS = (
    Section(PROJECTOR, "mm.a.", EMBEDDER, part="audio"),
    Section(
        TOWER,
        "a.",
        (
            # llama.cpp's converter knows no norms here, so that its files have none.
            *subsampling("subsample_conv_projection.conv_{}", optional_norms=True),
            Rule("subsample_conv_projection.input_proj_linear.weight", "pre_encode.out.weight", "width (bands second)"),
        ),
        part="audio",
    ),
    Section(
        TOWER + "conformer.{}.",
        "a.blk.{}.",
        (
            *feed_forward_norms("ffw_layer_start"),
            *norm("attention.pre_attn_norm", "ln1", bias=False),
            *weights(_LINEARS, clips=False),
            Rule("attention.attn.per_dim_scale", "per_dim_scale", "head"),
            *norm("attention.post_norm", "ln2", bias=False),
            *CONVOLUTION_NORMS,
            Rule("lconv1d.depthwise_conv1d.weight", "conv_dw.weight", "width 1 frames"),
            *feed_forward_norms("ffw_layer_end", "_1"),
            *norm("norm", "layer_pre_norm", bias=False),
        ),
        times="blocks",
        part="audio",
    ),
)

TYPES = (
    Types("a.conv1d.*.weight", F32),
    Types("a.blk.*.conv_dw.weight", F32),
    Types("a.pre_encode.out.weight", F16),
)
