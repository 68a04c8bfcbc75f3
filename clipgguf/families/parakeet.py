"""Parakeet, NeMo's FastConformer without biases, as tables: the sound encoder of Nemotron Omni.

Names: nvidia/Nemotron-3-Nano-Omni-30B-A3B-Reasoning-BF16; transformers' ParakeetEncoder, whose defaults these are, and
NemotronH_Omni_Reasoning_V3_Config; llama.cpp's ``conversion/nemotron.py`` and ``tools/mtmd/models/parakeet.cpp``. Its
reader computes no bias of a linear layer or a convolution of the blocks, so that their names are unknown here.
"""

from clipgguf.families.bases import settled
from clipgguf.families.conformer_tables import block, subsampling
from clipgguf.layers import linear, norm
from clipgguf.table import Prefix, Rule, Section, Value

TOWER = Prefix("subsampling.linear.weight", "sound_encoder.encoder.")
ATTENTION = (
    *linear("self_attn.q_proj", "attn_q", "width", "width'", bias=False),
    *linear("self_attn.k_proj", "attn_k", "width", "width'", bias=False),
    *linear("self_attn.v_proj", "attn_v", "width", "width'", bias=False),
    *linear("self_attn.o_proj", "attn_out", "width", "width'", bias=False),
    *linear("self_attn.relative_k_proj", "linear_pos", "width", "width'", bias=False),
    Rule("self_attn.bias_u", "pos_bias_u", "heads head"),
    Rule("self_attn.bias_v", "pos_bias_v", "heads head"),
)
CONVOLUTION = (
    Rule("conv.depthwise_conv.weight", "conv_dw.weight", "width 1 conv_kernel -> 1 1 width conv_kernel"),
    # It is the reader that folds the norm.
    *norm("conv.norm", "conv_norm"),
    Rule("conv.norm.running_mean", "conv_norm_mean", "width"),
    Rule("conv.norm.running_var", "conv_norm_var", "width"),
)
VALUES = (
    Value("audio.projector", default="parakeet"),
    Value("audio.projection", "llm_config.hidden_size|text_config.hidden_size|hidden_size", 4096),
    Value("audio.width", "sound_config.hidden_size", 1024),
    Value("audio.ffn", "sound_config.intermediate_size", 4096),
    Value("audio.blocks", "sound_config.num_hidden_layers", 24),
    Value("audio.heads", "sound_config.num_attention_heads", 8),
    Value("audio.head", of=lambda v: v["audio.width"] // v["audio.heads"]),
    Value("audio.epsilon", default=1e-5),
    Value("audio.mel_bins", "sound_config.num_mel_bins", 80),
    Value("audio.subsampling", "sound_config.subsampling_factor", 8),
    Value("audio.conv_kernel", "sound_config.conv_kernel_size", 9),
    Value("audio.bands", of=lambda v: v["audio.mel_bins"] // v["audio.subsampling"]),
    settled("sound_config.subsampling_factor", 8, part="audio"),
    settled("sound_config.hidden_act", "silu", part="audio"),
    settled("sound_config.attention_bias", False, part="audio"),
    settled("sound_config.convolution_bias", False, part="audio"),
    settled("sound_config.projection_bias", False, part="audio"),
    settled("sound_config.scale_input", False, part="audio"),
)
SECTIONS = (
    Section(
        TOWER,
        "a.",
        (
            # The reader's own spectrogram is made with these, of 512 samples, of which 400 are heard at a time.
            Rule("feature_extractor.featurizer.fb", "mel_filters", "1 mel_bins 257"),
            Rule("feature_extractor.featurizer.window", "window", "400"),
            *subsampling("subsampling.layers", "1 channels 1 1"),
            *linear("subsampling.linear", "pre_encode.out", "width", "(channels bands)"),
        ),
        part="audio",
    ),
    Section(TOWER + "layers.{}.", "a.blk.{}.", block(ATTENTION, CONVOLUTION, bias=False), "blocks", part="audio"),
    Section(
        "sound_projection.",
        "mm.a.",
        (
            *norm("norm", "norm_pre", bias=False),
            *linear("linear1", "mlp.1", "hidden", "width", bias=False),
            *linear("linear2", "mlp.2", "projection", "hidden", bias=False),
        ),
        part="audio",
    ),
)
