"""Qwen3-Omni: Qwen3-VL's tower and an audio encoder, whose configurations are inside the thinker's.

Names: transformers' Qwen3OmniMoeForConditionalGeneration; llama.cpp's ``conversion/qwen3vl.py`` and ``tools/mtmd``. The
speech that it gives, the talker, is left out.
"""

from dataclasses import replace

from clipgguf.families import qwen3_vl
from clipgguf.families.bases import inside, settled
from clipgguf.families.qwen3_audio_tables import SECTIONS, TYPES, audio_values
from clipgguf.inputs import Inputs
from clipgguf.table import Value

_VALUES = (*qwen3_vl.FAMILY.values, *audio_values(width=1280, blocks=32, heads=20))


def note_on_widths(inputs: Inputs) -> None:
    """Tell that llama.cpp wants a file for each where some blocks' features widen what an image gives."""
    _, deepstack = inputs.find("thinker_config.vision_config.deepstack_visual_indexes")
    if inputs.options.only is None and deepstack != []:
        inputs.notes.append(
            "llama.cpp takes no file for both images and sound of this model, of which images give more values for a "
            "token; --vision-only and --audio-only write a file for each"
        )


FAMILY = replace(
    qwen3_vl.FAMILY,
    title="Qwen3-Omni",
    projector_key="vision.projector",
    values=(
        *(inside("thinker_config", value) for value in _VALUES),
        Value("audio.projector", default="qwen3a"),
        Value("widths", note_on_widths),
        settled("thinker_config.audio_config.activation_function", "gelu"),
        settled("thinker_config.audio_config.n_window", 50),
    ),
    sections=(*qwen3_vl.sections("ln_q", "mlp.0", "mlp.2", "merger_list"), *SECTIONS),
    left_out=(r"thinker\.(model|lm_head)\.", r"talker\.", r"code2wav\.", r"code_predictor\."),
    apart={"vision": r"(thinker\.|model\.)?visual\.", "audio": r"(thinker\.)?audio_tower\."},
    types=TYPES,
)
