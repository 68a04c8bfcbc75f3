"""Qwen2.5-Omni: Qwen2.5-VL's tower, and Whisper's encoder without a table of positions.

Names: transformers' Qwen2_5OmniForConditionalGeneration; llama.cpp's ``conversion/qwenvl.py`` and ``tools/mtmd``. The
speech that it gives, the talker, is left out.
"""

from clipgguf.families import qwen2_5_vl
from clipgguf.families.bases import MTMD, inside
from clipgguf.families.whisper import SINUSOIDS, TOWER, TYPES, sections, values
from clipgguf.family import Family
from clipgguf.layers import linear, separate_qkv
from clipgguf.table import Section, Value

FAMILY = Family(
    title="Qwen2.5-Omni",
    projector="qwen2.5o",
    base=MTMD,
    values=(
        Value("vision.projection", "thinker_config.text_config.hidden_size", 3584),
        Value("vision.epsilon", "thinker_config.vision_config.rms_norm_eps", 1e-6),
        *(inside("thinker_config", value) for value in (*qwen2_5_vl.VALUES, *values())),
    ),
    sections=(
        *qwen2_5_vl.sections(separate_qkv("attn.{}")),
        *sections(post_norm="ln_post", positions=SINUSOIDS),
        Section(TOWER, "mm.a.", linear("proj", "fc", "projection", "width"), part="audio"),
    ),
    merge=2,
    left_out=(
        *(r"thinker\.(model|lm_head)\.", r"talker\.", r"token2wav\."),
        # Tokens before and after a sound, which transformers does not use either.
        r"(thinker\.)?audio_tower\.audio_bos_eos_token\.",
    ),
    apart={"vision": r"(thinker\.)?visual\.", "audio": r"(thinker\.)?audio_tower\."},
    types=TYPES,
)
