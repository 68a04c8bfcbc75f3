"""What tests of the readers share: who reads a file and why not, and files with something changed."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from gguf import GGUFValueType

from clipgguf import inspect
from clipgguf.checkpoint.gguf_file import MetadataItem
from tests.checkpoints import Vision
from tests.gguf_bytes import rewritten
from tests.llava_checkpoints import VISION_24, Llava
from tests.mmproj_files import mmproj

# Rows that are multiples of a quantized block.
LLAVA = Llava(vision=Vision(64, 128, 3, 4, image_size=28, patch_size=7))
LAYER = "clip.vision.feature_layer"


def reasons(path: Path) -> dict[str, tuple[str, ...]]:
    """Return why each reader cannot read a file."""
    return {verdict.reader: verdict.reasons for verdict in inspect(path).verdicts}


def readers(path: Path) -> list[str]:
    """Return the names of those that can read a file."""
    return [verdict.reader for verdict in inspect(path).verdicts if verdict.reads]


def uint32(key: str, value: int) -> MetadataItem:
    return MetadataItem(key, GGUFValueType.UINT32, value)


def int32s(key: str, *values: int) -> MetadataItem:
    return MetadataItem(key, GGUFValueType.INT32, list(values))


Change = Callable[[Path, Path], Path]


def other(projector: str = "mlp", **changes: Any) -> Change:
    """Return what writes an mmproj file with something changed; the keywords are those of ``rewritten``."""
    llava = LLAVA if projector == "mlp" else Llava(replace(VISION_24, hidden_size=64), projector)
    return lambda directory, to: rewritten(mmproj(directory, llava), to, **changes)
