"""Whisper's encoder as tables, as it stands in many models under many prefixes, and what their projectors share.

Names: transformers' WhisperEncoder; llama.cpp's ``conversion/ultravox.py`` and ``tools/mtmd/models/whisper-enc.cpp``.
"""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from clipgguf.layers import linear, norm
from clipgguf.table import F16, F32, Prefix, Rule, Section, Types, Value
from clipgguf.tensor import Computed, Read

if TYPE_CHECKING:
    from numpy.typing import NDArray

TOWER = Prefix("conv1.weight", "audio_tower.")
PROJECTOR = Prefix("linear_1.weight", "multi_modal_projector.")
# llama.cpp's own converter takes f16 for kernels, whatever is asked for: ggml's convolution wants it.
TYPES = (Types("a.conv1d.*.weight", F16),)
TYPES_IN_F32 = (Types("a.conv1d.*.weight", F32),)


def values(
    at: str = "audio_config",
    width: int = 1280,
    blocks: int = 32,
    heads: int = 20,
    mel_bins: int = 128,
    *,
    text: str = "text_config",
    projection: int = 4096,
) -> tuple[Value, ...]:
    """Return the values of an encoder whose configuration is at a path, with its class's defaults.

    The language model's is at ``text``, and ``projection`` is its width by default.
    """
    return (
        Value("audio.projection", f"{text}.hidden_size|hidden_size", projection),
        Value("audio.width", f"{at}.hidden_size|{at}.d_model", width),
        Value("audio.ffn", f"{at}.intermediate_size|{at}.encoder_ffn_dim", 4 * width),
        Value("audio.blocks", f"{at}.num_hidden_layers|{at}.encoder_layers", blocks),
        Value("audio.heads", f"{at}.num_attention_heads|{at}.encoder_attention_heads", heads),
        Value("audio.epsilon", f"{at}.layer_norm_eps", 1e-5),
        Value("audio.mel_bins", f"{at}.num_mel_bins", mel_bins),
    )


def whisper_values(at: str, text: str, projection: int) -> tuple[Value, ...]:
    """Return the values of an encoder whose configuration is a WhisperConfig at a path, as ``values`` does."""
    return values(at, width=384, blocks=4, heads=6, mel_bins=80, text=text, projection=projection)


def stacked(stack: Value) -> tuple[Value, Value]:
    """Return the values of how many frames become one token, side by side."""
    return (
        stack,
        Value("audio.stacked", of=lambda v: v["audio.stack"] * v["audio.width"]),
    )


def convolution(theirs: str, ours: str, channels: str) -> tuple[Rule, Rule]:
    """Return the rules of a convolution along time, whose bias llama.cpp adds to (channels, time)."""
    return (
        Rule(f"{theirs}.weight", f"{ours}.weight", f"width {channels} 3"),
        Rule(f"{theirs}.bias", f"{ours}.bias", "width -> width 1"),
    )


def sinusoids(values: Mapping[str, Any]) -> Computed:
    """Return the positions of 30 s, of which no checkpoint has a table: sines, and cosines beside them.

    As SinusoidsPositionEmbedding in transformers' Qwen2.5-Omni, (1500, width). Torch's exponentials and sines differ
    from these, which are rounded rightly, in the last bit of some; in the sines that is at most 4e-5.
    """
    width = values["audio.width"]
    if width % 2 or width < 4:
        raise ValueError(f"audio_config: d_model is {width}, should be even, and at least 4")

    def rows(read: Read, start: int, stop: int) -> "NDArray[Any]":
        import numpy as np

        step = np.float32(-math.log(10000) / (width // 2 - 1))
        steps: NDArray[Any] = np.exp((step * np.arange(width // 2, dtype=np.float32)).astype(np.float64))
        angles = np.arange(start, stop, dtype=np.float32)[:, None] * steps.astype(np.float32)
        angles = angles.astype(np.float64)
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)

    return Computed("position_embd.weight", (1500, width), (), rows, within=4e-5)


# llama.cpp cuts sound into pieces of 30 s, which are 1500 positions, and aborts on a table that has fewer.
POSITIONS = Rule("embed_positions.weight", "position_embd.weight", "1500 width")
SINUSOIDS = Rule("", "position_embd.weight", "1500 width", made=sinusoids)


def sections(tower: Prefix = TOWER, post_norm: str = "layer_norm", positions: Rule = POSITIONS) -> tuple[Section, ...]:
    """Return the encoder after a prefix; ``post_norm`` is the checkpoint's name of the last norm."""
    return (
        embeddings(tower, positions),
        blocks(tower),
        Section(tower, "a.", norm(post_norm, "post_ln"), part="audio"),
    )


def embeddings(tower: Prefix, positions: Rule = POSITIONS) -> Section:
    """Return what comes before the encoder's blocks."""
    rules = (*convolution("conv1", "conv1d.1", "mel_bins"), *convolution("conv2", "conv1d.2", "width'"), positions)
    return Section(tower, "a.", rules, part="audio")


def projector(*rules: Rule) -> Section:
    """Return the projector of two layers that transformers calls so."""
    return Section(PROJECTOR, "mm.a.", rules, part="audio")


def blocks(tower: Prefix = TOWER, *, key_bias: bool = False) -> Section:
    """Return the encoder's blocks; Whisper's keys have no bias."""
    return Section(
        tower + "layers.{}.",
        "a.blk.{}.",
        (
            *norm("self_attn_layer_norm", "ln1"),
            *linear("self_attn.q_proj", "attn_q", "width", "width'"),
            *linear("self_attn.k_proj", "attn_k", "width", "width'", bias=key_bias),
            *linear("self_attn.v_proj", "attn_v", "width", "width'"),
            *linear("self_attn.out_proj", "attn_out", "width", "width'"),
            *norm("final_layer_norm", "ln2"),
            *linear("fc1", "ffn_up", "ffn", "width"),
            *linear("fc2", "ffn_down", "width", "ffn"),
        ),
        times="blocks",
        part="audio",
    )
