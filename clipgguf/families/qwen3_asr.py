"""Qwen3-ASR: the audio encoder of Qwen3-Omni.

Names: Qwen3ASRForConditionalGeneration as published, whose configuration is inside the thinker's, and as transformers
5 has it, with the projector beside the encoder; llama.cpp's ``conversion/qwen3vl.py``, which knows the published one.
"""

from clipgguf.families.bases import LANGUAGE_MODEL, MTMD, inside, settled
from clipgguf.families.qwen3_audio_tables import SECTIONS, TYPES, audio_values
from clipgguf.family import Family

FAMILY = Family(
    title="Qwen3-ASR",
    projector="qwen3a",
    projector_key="audio.projector",
    base=MTMD,
    values=(
        *(inside("thinker_config", value, or_not=True) for value in audio_values(width=1024, blocks=24, heads=16)),
        settled("thinker_config.audio_config.activation_function|audio_config.activation_function", "gelu"),
        settled("thinker_config.audio_config.n_window|audio_config.n_window", 50),
    ),
    sections=SECTIONS,
    left_out=(r"thinker\.(model|lm_head)\.", *LANGUAGE_MODEL),
    types=TYPES,
)
