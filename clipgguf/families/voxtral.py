"""Voxtral: Whisper's encoder, whose frames are stacked, and a projector of two layers without biases.

Names: transformers' VoxtralForConditionalGeneration; llama.cpp's ``conversion/ultravox.py``. As many frames become one
token as the encoder's feed-forward width is wide, by which the published code cuts its output.
"""

from collections.abc import Mapping
from typing import Any

from clipgguf.families.bases import LANGUAGE_MODEL, MTMD, settled
from clipgguf.families.whisper import TYPES, projector, sections, stacked, values
from clipgguf.family import Family
from clipgguf.layers import linear
from clipgguf.table import Value


def frames_per_token(values: Mapping[str, Any]) -> int:
    """Return how many frames become one token: 5120 values are four frames of 1280."""
    ffn, width = values["audio.ffn"], values["audio.width"]
    if ffn % width:
        raise ValueError(f"audio_config: intermediate_size {ffn} is no multiple of hidden_size {width}")
    count: int = ffn // width
    return count


FAMILY = Family(
    title="Voxtral",
    projector="voxtral",
    base=MTMD,
    values=(
        *values(projection=3072),
        *stacked(Value("audio.stack", of=frames_per_token)),
        settled("audio_config.activation_function", "gelu"),
        settled("projector_hidden_act", "gelu"),
    ),
    sections=(
        *sections(),
        projector(
            *linear("linear_1", "mlp.1", "hidden", "stacked", bias=False),
            *linear("linear_2", "mlp.2", "projection", "hidden", bias=False),
        ),
    ),
    left_out=LANGUAGE_MODEL,
    types=TYPES,
)
