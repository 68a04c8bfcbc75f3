"""Audio Flamingo 3, and the Music Flamingo that is like it: Whisper's encoder, averaged two by two, and two layers.

Names: transformers' AudioFlamingo3ForConditionalGeneration; llama.cpp's ``conversion/ultravox.py``, which has the
kernels in f32, since they were trained in bf16.
"""

from clipgguf.families.bases import LANGUAGE_MODEL, MTMD, settled
from clipgguf.families.whisper import TYPES_IN_F32, projector, sections, values
from clipgguf.family import Family
from clipgguf.layers import linear

FAMILY = Family(
    title="Audio Flamingo 3",
    projector="musicflamingo",
    base=MTMD,
    values=(
        *values(),
        settled("audio_config.activation_function", "gelu"),
        settled("projector_hidden_act", "gelu"),
        settled("projector_bias", True),
    ),
    sections=(
        *sections(),
        projector(
            *linear("linear_1", "mlp.1", "hidden", "width"),
            *linear("linear_2", "mlp.2", "projection", "hidden"),
        ),
    ),
    left_out=LANGUAGE_MODEL,
    types=TYPES_IN_F32,
)
