"""LightOnOCR: Pixtral's tower with Mistral 3's projector, and no token after the rows of patches.

Names: transformers' LightOnOcrForConditionalGeneration; llama.cpp's ``conversion/lighton_ocr.py`` and ``tools/mtmd``.
"""

from clipgguf.families.bases import LANGUAGE_MODEL, MTMD
from clipgguf.families.pixtral import SECTIONS, VALUES
from clipgguf.family import Family

FAMILY = Family(
    title="LightOnOCR",
    projector="lightonocr",
    base=MTMD,
    values=VALUES,
    sections=SECTIONS,
    merge="vision.merge",
    left_out=LANGUAGE_MODEL,
)
