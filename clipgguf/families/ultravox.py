"""Ultravox: Whisper's encoder, whose frames are stacked, and a gated projector between norms.

Names: fixie-ai's UltravoxModel (remote code); llama.cpp's ``conversion/ultravox.py``. The projector is SwiGLU's: one
half of what ``linear_1`` gives gates the other.
"""

from clipgguf.families.bases import LANGUAGE_MODEL, MTMD
from clipgguf.families.whisper import TYPES, projector, sections, stacked, values
from clipgguf.family import Family
from clipgguf.layers import linear, norm
from clipgguf.table import Value

FAMILY = Family(
    title="Ultravox",
    projector="ultravox",
    base=MTMD,
    values=(
        *values(),
        *stacked(Value("audio.stack", "stack_factor", 8)),
    ),
    sections=(
        *sections(),
        projector(
            *norm("ln_pre", "norm_pre", "stacked", bias=False),
            *linear("linear_1", "mlp.1", "(2 gated)", "stacked", bias=False),
            *norm("ln_mid", "norm_mid", "gated", bias=False),
            *linear("linear_2", "mlp.2", "projection", "gated", bias=False),
        ),
    ),
    left_out=LANGUAGE_MODEL,
    types=TYPES,
)
