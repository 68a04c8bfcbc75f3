"""dots3-note's audio encoder as tables: three strided convolutions, blocks like Whisper's but gated, and an adapter.

Names: rednote's Dots3NoteForConditionalGeneration; llama.cpp's ``conversion/dots3.py`` and
``tools/mtmd/models/dots3note.cpp``. Sizes are in ``whisper_config`` as published, beside it as transformers saves them.
"""

from clipgguf.families.bases import settled
from clipgguf.layers import linear, norm
from clipgguf.table import F32, Prefix, Rule, Section, Types, Value

ENCODER = Prefix("conv_out.weight", "audio_encoder.dots_encoder.speech_encoder.")
ADAPTER = Prefix("audio_adapter.proj.0.weight", "audio_encoder.")

_CONFIG, _WHISPER = "audio_config", "audio_config.whisper_config"
# What llama.cpp's graph takes for granted; turns by rotary positions are of half of each head.
_GRANTED = (
    ("use_conv2d_stem", True),
    ("use_rope", True),
    ("use_rms_norm", True),
    ("use_causal", False),
    ("merge_factor", 1),
    ("chunk_seconds", 60),
    ("hop_length", 160),
    ("sampling_rate", 16000),
    ("rope_parameters.partial_rotary_factor", 0.5),
    ("rope_parameters.rope_theta", 10000.0, 10000),
    ("whisper_config.activation_function", "swiglu"),
    ("hidden_act", "silu"),
)

# With the defaults of transformers' Dots3NoteAudioConfig.
VALUES = (
    Value("audio.projector", default="dots3note_a"),
    Value("audio.projection", "text_config.hidden_size|hidden_size", kind=int),
    Value("audio.width", f"{_WHISPER}.d_model|{_CONFIG}.hidden_size", 1280),
    Value("audio.ffn", f"{_WHISPER}.encoder_ffn_dim|{_CONFIG}.intermediate_size", 5120),
    Value("audio.blocks", f"{_WHISPER}.encoder_layers|{_CONFIG}.num_hidden_layers", 32),
    Value("audio.heads", f"{_WHISPER}.encoder_attention_heads|{_CONFIG}.num_attention_heads", 20),
    Value("audio.mel_bins", f"{_WHISPER}.num_mel_bins|{_CONFIG}.feature_size", 128),
    # What is left of them after three convolutions, each with steps of 2.
    Value("audio.rows", of=lambda v: (v["audio.mel_bins"] + 7) // 8),
    Value("audio.epsilon", default=1e-6),  # Dots3NoteAudioRMSNorm's.
    *(settled(f"{_CONFIG}.{name}", *allowed, part="audio") for name, *allowed in _GRANTED),
)

SECTIONS = (
    Section(
        ENCODER,
        "a.",
        (
            *linear("conv2d1", "conv2d.1", "stem", "1 3 3'"),
            *linear("conv2d2", "conv2d.2", "stem", "stem' 3 3'"),
            *linear("conv2d3", "conv2d.3", "stem", "stem' 3 3'"),
            *linear("conv_out", "conv_out", "width", "(stem rows)", bias=False),
        ),
        part="audio",
    ),
    Section(
        ENCODER + "layers.{}.",
        "a.blk.{}.",
        (
            *norm("self_attn_layer_norm", "ln1", bias=False),
            *linear("self_attn.q_proj", "attn_q", "width", "width'"),
            *linear("self_attn.k_proj", "attn_k", "width", "width'", bias=False),
            *linear("self_attn.v_proj", "attn_v", "width", "width'"),
            *linear("self_attn.out_proj", "attn_out", "width", "width'"),
            *norm("final_layer_norm", "ln2", bias=False),
            Rule("fc1.weight", ("ffn_gate.weight", "ffn_up.weight"), "(2 ffn) width -> 2 ffn width"),
            Rule("fc1.bias", ("ffn_gate.bias", "ffn_up.bias"), "(2 ffn) -> 2 ffn"),
            *linear("fc2", "ffn_down", "width", "ffn"),
        ),
        times="blocks",
        part="audio",
    ),
    Section(ENCODER, "a.", norm("layer_norm", "post_ln", bias=False), part="audio"),
    Section(
        ADAPTER + "audio_adapter.",
        "mm.a.",
        (
            *norm("proj.0", "norm_pre"),
            *linear("proj.1", "mlp.1", "projection", "width"),
            *linear("proj.3", "mlp.3", "projection", "projection'"),
        ),
        part="audio",
    ),
)

# llama.cpp's own converter leaves the convolutions in single precision, whatever is asked for.
TYPES = (Types("a.conv2d.*.weight", F32), Types("a.conv_out.weight", F32))
