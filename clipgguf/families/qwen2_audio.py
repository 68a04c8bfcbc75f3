"""Qwen2-Audio: Whisper's encoder, whose frames are averaged two by two, and a projector of one layer.

Names: transformers' Qwen2AudioForConditionalGeneration; llama.cpp's ``conversion/ultravox.py``.
"""

from clipgguf.families.bases import LANGUAGE_MODEL, MTMD, settled
from clipgguf.families.whisper import TYPES, sections, values
from clipgguf.family import Family
from clipgguf.layers import linear
from clipgguf.table import Prefix, Section

FAMILY = Family(
    title="Qwen2-Audio",
    projector="qwen2a",
    base=MTMD,
    values=(*values(), settled("audio_config.activation_function", "gelu")),
    sections=(
        *sections(),
        Section(
            Prefix("linear.weight", "multi_modal_projector."),
            "mm.a.",
            linear("linear", "fc", "projection", "width"),
            part="audio",
        ),
    ),
    left_out=LANGUAGE_MODEL,
    types=TYPES,
)
