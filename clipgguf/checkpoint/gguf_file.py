"""What a GGUF file holds by its header: metadata and tensors, as records."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gguf import GGUFValueType

from clipgguf.limits import LARGEST_HEADER, MOST_ENTRIES, MOST_VALUES
from clipgguf.sources import Source
from clipgguf.tensor import View
from clipgguf.vocabulary import Vocabulary

MAGIC = b"GGUF"
# What every file's first key is, and where tensors begin: at a multiple of this value, or of the default.
ARCHITECTURE = "general.architecture"
ALIGNMENT_KEY = "general.alignment"
DEFAULT_ALIGNMENT = 32
# The bytes that the smallest key (name, type, value) and tensor (name, number of axes, type, offset) take.
SMALLEST_KEY = 8 + 4 + 1
SMALLEST_TENSOR = 8 + 4 + 4 + 8
# What comes before them: magic, version, and how many there are.
BEGINNING = 4 + 4 + 8 + 8

# Value types of a fixed size, as struct's format characters.
FORMATS = {
    GGUFValueType.UINT8: "B",
    GGUFValueType.INT8: "b",
    GGUFValueType.UINT16: "H",
    GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I",
    GGUFValueType.INT32: "i",
    GGUFValueType.UINT64: "Q",
    GGUFValueType.INT64: "q",
    GGUFValueType.FLOAT32: "f",
    GGUFValueType.FLOAT64: "d",
    GGUFValueType.BOOL: "B",  # As a number first: struct takes anything but 0 for true.
}


@dataclass(frozen=True, slots=True)
class MetadataItem:
    """One key of a file's metadata; ``value_type`` is that of the elements where the value is a sequence."""

    key: str
    value_type: GGUFValueType
    value: Any

    @property
    def is_array(self) -> bool:
        """Whether the value is a sequence of values."""
        return isinstance(self.value, Sequence) and not isinstance(self.value, str)

    @property
    def type_name(self) -> str:
        """The type as messages call it: UINT32, ARRAY of FLOAT32."""
        return f"ARRAY of {self.value_type.name}" if self.is_array else self.value_type.name

    def plain(self, most: int | None = None) -> Any:
        """Return the value as people write it, of an array a list of at most ``most`` values.

        A FLOAT32 becomes the shortest decimal that is it: 0.5, 1e-05 or 0.48145466, and not 0.48145467042922974.
        """
        values = list(self.value[:most]) if self.is_array else [self.value]
        if self.value_type == GGUFValueType.FLOAT32:
            values = [float(str(np.float32(value))) for value in values]
        return values if self.is_array else values[0]


@dataclass(frozen=True, slots=True)
class GGUFFile:
    """What a GGUF file says that it holds; a tensor's dtype is the name of its GGML type."""

    source: Source
    metadata: tuple[MetadataItem, ...]
    tensors: tuple[View, ...]
    version: int
    alignment: int
    data_start: int  # Where the tensors' bytes begin, aligned.

    def value(self, key: str) -> Any:
        """Return the value of a metadata key, or None without it."""
        return next((item.value for item in self.metadata if item.key == key), None)


def aligned(nbytes: int, alignment: int) -> int:
    """Return how many bytes are taken where everything begins at a multiple of the alignment."""
    return -(-nbytes // alignment) * alignment


def too_much(metadata: Sequence[MetadataItem], tensors: Sequence[tuple[str, tuple[int, ...]]]) -> str | None:
    """Return what of a header would be more than ``read_gguf`` takes, or None; the tensors are names and shapes."""
    for count, what in ((len(tensors), "tensors"), (len(metadata), "metadata keys")):
        if count > MOST_ENTRIES:
            return f"{count:,} {what}, at most {MOST_ENTRIES:,} are supported"
    values = sum(len(item.value) for item in metadata if item.is_array)
    if values > MOST_VALUES:
        return f"{values:,} values in its metadata's arrays, at most {MOST_VALUES:,} are supported"
    nbytes = BEGINNING + sum(SMALLEST_TENSOR + len(name.encode()) + 8 * len(shape) for name, shape in tensors)
    nbytes += sum(map(_item_nbytes, metadata))
    if nbytes > LARGEST_HEADER:
        return f"a header of {nbytes:,} bytes, at most {LARGEST_HEADER:,} are supported"
    return None


def _item_nbytes(item: MetadataItem) -> int:
    """Return the bytes that a metadata key and its value take."""
    values = item.value if item.is_array else (item.value,)
    head = 8 + len(item.key.encode()) + 4 + (4 + 8 if item.is_array else 0)
    if code := FORMATS.get(item.value_type):
        return head + len(values) * struct.calcsize(f"<{code}")
    nbytes = values.nbytes if isinstance(values, Vocabulary) else sum(len(text.encode()) for text in values)
    return head + 8 * len(values) + nbytes
