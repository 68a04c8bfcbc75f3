"""MERaLiON-2: Whisper's encoder, whose frames are stacked, and a projector that gates itself.

Names: MERaLiON2ForConditionalGeneration (remote code); llama.cpp's ``conversion/ultravox.py``. Its four layers are
compression, gate, what is gated, and the way out.
"""

from clipgguf.families.bases import MTMD, settled
from clipgguf.families.whisper import TYPES, sections, stacked, whisper_values
from clipgguf.family import Family
from clipgguf.layers import linear, norm
from clipgguf.table import Prefix, Section, Value

TOWER = Prefix("conv1.weight", "speech_encoder.")
ADAPTER = Prefix("mlp_adapter.0.weight", "speech_audio_adapter.")

FAMILY = Family(
    title="MERaLiON-2",
    projector="meralion",
    base=MTMD,
    values=(
        *whisper_values("speech_config", "text_config", 2304),
        *stacked(Value("audio.stack", "speech_mlp_scale_factor", 15)),
        settled("speech_config.activation_function", "gelu"),
    ),
    sections=(
        *sections(TOWER),
        Section(Prefix("ln_speech.weight"), "mm.a.", norm("ln_speech", "norm_pre"), part="audio"),
        Section(
            ADAPTER,
            "mm.a.mlp.",
            (
                *linear("mlp_adapter.0", "0", "hidden", "stacked"),
                *linear("gate_proj", "1", "gated", "hidden"),
                *linear("pool_proj", "2", "gated", "hidden"),
                *linear("out_proj", "3", "projection", "gated"),
            ),
            part="audio",
        ),
    ),
    left_out=(r"text_decoder\.",),
    types=TYPES,
)
