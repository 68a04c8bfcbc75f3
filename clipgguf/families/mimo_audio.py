"""MiMo-V2.5's hearing as tables: an encoder whose frames become codes, and a second one that takes these together.

The first is the tokenizer of MiMo-Audio, in a folder of its own; its features are quantized one codebook after the
other, each for what the ones before it have left. What the language model's own checkpoint has looks the codes up and
adds them, and makes one token of a group of frames. Names: Xiaomi's MiMoAudioTokenizer and MiMoV2ForCausalLM;
llama.cpp's ``conversion/mimo.py`` and ``tools/mtmd/models/mimo-audio.cpp``. It is longer than other tables for these
two encoders, and for what readers take for granted of each.
"""

from collections.abc import Mapping
from typing import Any

from clipgguf.families import whisper
from clipgguf.families.bases import settled
from clipgguf.layers import linear, norm, separate_qkv
from clipgguf.table import F32, INTEGERS, Prefix, Rule, Section, Types, Value

FOLDER = "audio_tokenizer"
ENCODER = Prefix("conv1.weight", f"{FOLDER}/encoder.")
LOCAL = Prefix("input_local_transformer.norm.weight", "audio_encoder.")

# Of the tokenizer: its decoder, and what training keeps of the codebooks.
LEFT_OUT = (rf"{FOLDER}/decoder\.", rf"{FOLDER}/.*\._codebook\.(cluster_size|embed_avg|inited)$")
NAMES = rf"{FOLDER}/|audio_encoder\.|speech_embeddings\."

# What llama.cpp's graph takes for granted: of the spectrogram, of the encoder, of what takes its codes together.
_GRANTED = (
    (f"{FOLDER}/sampling_rate", 24000),
    (f"{FOLDER}/nfft", 960),
    (f"{FOLDER}/window_size", 960),
    (f"{FOLDER}/hop_length", 240),
    (f"{FOLDER}/stride_size", 2),
    (f"{FOLDER}/avg_pooler", 2),
    (f"{FOLDER}/encoder_skip_layer_id", 3),
    (f"{FOLDER}/encoder_causal", True),
    (f"{FOLDER}/hybrid_attention", True),
    (f"{FOLDER}/activation_function", "gelu"),
    (f"{FOLDER}/scale_embedding", False),
    (f"{FOLDER}/rope_theta", 10000, 10000.0),
    ("audio_config.rope_theta", 640000, 640000.0),
    ("audio_config.partial_rotary_factor", 1, 1.0),
    ("audio_config.input_full_attention", True),
    ("audio_config.add_post_norm", True),
    ("audio_config.projection_layers", 2),
)


def window_modes(values: Mapping[str, Any]) -> list[int]:
    """Return for each block what it attends to: -1 all before, 0 a window of it, the last of every few blocks all."""
    blocks, every = values["audio.blocks"], values["audio.every"]
    if blocks < 3:
        raise ValueError(f"{FOLDER}: encoder_layers is {blocks}, should be at least 3: readers add the third's output")
    return [-1 if number % every == every - 1 else 0 for number in range(blocks)]


def window(values: Mapping[str, Any]) -> int:
    """Return how many frames back a window reaches."""
    first: int = next(iter(values["audio.windows"]), 0)
    if first < 1:
        raise ValueError(
            f"{FOLDER}: encoder_attn_window_size is {values['audio.windows']}, should begin with 1 or more"
        )
    return first


VALUES = (
    Value("audio.projector", default="mimo_audio"),
    Value("audio.projection", "text_config.hidden_size|hidden_size", kind=int),
    Value("audio.width", f"{FOLDER}/d_model", kind=int),
    Value("audio.ffn", f"{FOLDER}/encoder_ffn_dim", kind=int),
    Value("audio.blocks", f"{FOLDER}/encoder_layers", kind=int),
    Value("audio.heads", f"{FOLDER}/encoder_attention_heads", kind=int),
    Value("audio.epsilon", f"{FOLDER}/layer_norm_eps", 1e-5),
    Value("audio.mel_bins", f"{FOLDER}/n_mels", kind=int),
    Value("audio.codebooks", "audio_config.audio_channels", kind=int),
    Value("audio.codebook_sizes"),
    Value("audio.codes", told=lambda v: max(v["audio.codebook_sizes"])),
    Value("audio.every", f"{FOLDER}/swa_per_block", 1),
    Value("audio.window_modes", of=window_modes),
    Value("audio.windows", f"{FOLDER}/encoder_attn_window_size", kind=INTEGERS),
    Value("audio.window", of=window),
    Value("audio.local_blocks", "audio_config.input_local_layers", kind=int),
    Value("audio.group", "audio_config.group_size", kind=int),
    Value("audio.grouped", of=lambda v: v["audio.group"] * v["audio.width"]),
    *(settled(source, *allowed, part="audio") for source, *allowed in _GRANTED),
)

SECTIONS = (
    Section(
        ENCODER,
        "a.",
        (
            *whisper.convolution("conv1", "conv1d.1", "mel_bins"),
            *whisper.convolution("conv2", "conv1d.2", "width'"),
        ),
        part="audio",
    ),
    whisper.blocks(ENCODER),
    Section(
        ENCODER,
        "a.",
        (
            *norm("layer_norm", "post_ln"),
            *linear("down_sample_layer.0", "downsample.conv", "width", "width' 2", bias=False),
            *norm("down_sample_norm", "downsample.norm"),
            Rule(
                "quantizer.vq.layers.{}._codebook.embed",
                "rvq.codebook.weight",
                "codes width",
                stack="codebooks",
                padded="codebook_sizes",
            ),
        ),
        part="audio",
    ),
    Section(
        "speech_embeddings.",
        "mm.a.",
        (Rule("{}.weight", "code_embd.weight", "entries width", stack="codebooks"),),
        part="audio",
    ),
    Section(
        LOCAL + "input_local_transformer.layers.{}.",
        "mm.a.local_blk.{}.",
        (
            *norm("input_layernorm", "ln1", bias=False),
            *separate_qkv("self_attn.{}_proj"),
            *linear("self_attn.o_proj", "attn_out", "width", "width'", bias=False),
            *norm("post_attention_layernorm", "ln2", bias=False),
            *linear("mlp.gate_proj", "ffn_gate", "local_ffn", "width", bias=False),
            *linear("mlp.up_proj", "ffn_up", "local_ffn", "width", bias=False),
            *linear("mlp.down_proj", "ffn_down", "width", "local_ffn", bias=False),
        ),
        times="local_blocks",
        part="audio",
    ),
    Section(
        LOCAL,
        "mm.a.",
        (
            *norm("input_local_transformer.norm", "local_norm", bias=False),
            *linear("projection.mlp.0", "mlp.1", "middle", "grouped", bias=False),
            *linear("projection.mlp.2", "mlp.2", "projection", "middle", bias=False),
        ),
        part="audio",
    ),
)

# Features are compared with codebooks; llama.cpp's own converter leaves the convolutions in single precision as well.
TYPES = (
    *whisper.TYPES_IN_F32,
    *(Types(f"{name}.weight", F32) for name in ("a.downsample.conv", "a.rvq.codebook", "mm.a.code_embd")),
)
