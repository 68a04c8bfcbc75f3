"""The audio encoder of Qwen3-Omni and Qwen3-ASR: three convolutions over time and bands, and Whisper's blocks.

Names: transformers' Qwen3OmniMoeAudioEncoder and Qwen3ASREncoder; llama.cpp's ``conversion/qwen3vl.py`` and
``tools/mtmd/models/qwen3a.cpp``. Pieces of 100 frames, which are a second, become 13 tokens each.
"""

from clipgguf.families.whisper import SINUSOIDS, blocks, values
from clipgguf.layers import linear, norm
from clipgguf.table import F16, Prefix, Rule, Section, Types, Value

MODEL = Prefix("audio_tower.conv2d1.weight", "thinker.")
TOWER = MODEL + "audio_tower."
# All whose names begin with conv, as llama.cpp's own converter has it.
TYPES = (Types("a.conv*.weight", F16),)


def audio_values(width: int, blocks: int, heads: int) -> tuple[Value, ...]:
    """Return the values of the encoder, with its class's defaults."""
    return (
        *values(width=width, blocks=blocks, heads=heads, projection=2048),
        # Each of the three convolutions halves the bands.
        Value("audio.bands", of=lambda v: -(-v["audio.mel_bins"] // 8)),
    )


def _convolution(number: int, channels: str) -> tuple[Rule, Rule]:
    """Return the rules of a convolution, whose bias llama.cpp adds to (channels, bands, time)."""
    return (
        Rule(f"conv2d{number}.weight", f"conv2d.{number}.weight", f"channels {channels} 3 3'"),
        Rule(f"conv2d{number}.bias", f"conv2d.{number}.bias", "channels -> channels 1 1"),
    )


SECTIONS = (
    Section(
        TOWER,
        "a.",
        (
            *_convolution(1, "1"),
            *_convolution(2, "channels'"),
            *_convolution(3, "channels'"),
            *linear("conv_out", "conv_out", "width", "(channels bands)", bias=False),
            SINUSOIDS,
        ),
        part="audio",
    ),
    blocks(TOWER, key_bias=True),
    Section(TOWER, "a.", norm("ln_post", "post_ln"), part="audio"),
    Section(
        # Beside the encoder in transformers' layout of Qwen3-ASR.
        MODEL + "audio_tower.proj|multi_modal_projector.linear_",
        "mm.a.mlp.",
        (*linear("1", "1", "hidden", "width"), *linear("2", "2", "projection", "hidden")),
        part="audio",
    ),
)
