"""Qwen3-Omni: Qwen3-VL's tower, whose configuration is inside the thinker's. Sound and speech are left out.

Names: transformers' Qwen3OmniMoeForConditionalGeneration; llama.cpp's ``conversion/qwen3vl.py`` and ``tools/mtmd``.
"""

from dataclasses import replace

from clipgguf.families import qwen3_vl
from clipgguf.families.bases import inside

FAMILY = replace(
    qwen3_vl.FAMILY,
    title="Qwen3-Omni",
    values=tuple(inside("thinker_config", value) for value in qwen3_vl.FAMILY.values),
    sections=qwen3_vl.sections("ln_q", "mlp.0", "mlp.2", "merger_list"),
    left_out=(r"thinker\.(model|lm_head)\.", r"talker\.", r"code2wav\.", r"code_predictor\."),
    noted=((r"thinker\.audio_tower\.", "the audio encoder is left out: the file is for images only"),),
)
