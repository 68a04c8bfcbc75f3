"""GLM-5.3-Flash: GLM-OCR's tower with bounds for the activations and for the number of tokens of an image.

Names: transformers' Glm5NextForConditionalGeneration; llama.cpp's ``conversion/qwen3vl.py`` (Glm5NextVisionModel) and
``tools/mtmd``.
"""

from collections.abc import Mapping
from typing import Any

from clipgguf.families.bases import LANGUAGE_MODEL, MTMD
from clipgguf.families.glm4v import SECTIONS, VALUES
from clipgguf.family import Family
from clipgguf.table import Value


def token_area(values: Mapping[str, Any]) -> int:
    """Return how many pixels of an image make a token, by its processor."""
    side: int = values["processor_patch"] * values["processor_merge"]
    return side**2


FAMILY = Family(
    title="GLM-5.3",
    projector="glm5v",
    base=MTMD,
    values=(
        Value("vision.projection", "text_config.hidden_size|hidden_size", 4096),
        *VALUES,
        Value("vision.merge", default=2),
        Value("vision.swiglu_clamp", "vision_config.swiglu_limit", 10.0),
        Value("processor_patch", "processor.patch_size", 14),
        Value("processor_merge", "processor.merge_size", 2),
        Value("min_tokens", "processor.min_image_tokens", 16),
        Value("max_tokens", "processor.max_image_tokens", 8000),
        Value("vision.min_pixels", of=lambda v: v["min_tokens"] * token_area(v)),
        Value("vision.max_pixels", of=lambda v: v["max_tokens"] * token_area(v)),
    ),
    sections=SECTIONS,
    merge="vision.merge",
    left_out=LANGUAGE_MODEL,
)
