"""The header of a GGUF file as bytes: its metadata, and where each tensor is.

The format is that of version 3, little-endian (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md). gguf-py's
GGUFWriter makes the same bytes, string by string, which for CLIP's vocabulary takes as long as all imports.
"""

import struct
from collections.abc import Iterator, Sequence

from gguf import GGUF_VERSION, GGUFValueType

from clipgguf.checkpoint.gguf_file import FORMATS, MAGIC, MetadataItem, aligned
from clipgguf.planning import PlannedTensor
from clipgguf.vocabulary import Vocabulary


def header(metadata: Sequence[MetadataItem], tensors: Sequence[PlannedTensor], alignment: int) -> Iterator[bytes]:
    """Yield all that comes before the tensors' bytes; of these, each tensor's begin at a multiple of the alignment."""
    yield MAGIC + struct.pack("<IQQ", GGUF_VERSION, len(tensors), len(metadata))
    for item in metadata:
        yield _string(item.key)
        yield from _value(item)
    offset = 0
    for tensor in tensors:
        yield _string(tensor.name)
        # GGUF has the axis that is contiguous first.
        yield struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *reversed(tensor.shape))
        yield struct.pack("<IQ", tensor.ggml_type, offset)
        offset += aligned(tensor.nbytes, alignment)


def _value(item: MetadataItem) -> Iterator[bytes]:
    """Yield a value with its type before it, of an array also the elements' type and how many there are."""
    if item.is_array:
        yield struct.pack("<IIQ", GGUFValueType.ARRAY, item.value_type, len(item.value))
    else:
        yield struct.pack("<I", item.value_type)
    values = item.value if item.is_array else (item.value,)
    if isinstance(values, Vocabulary):
        yield from values.as_strings()
    elif code := FORMATS.get(item.value_type):
        yield struct.pack(f"<{len(values)}{code}", *values)
    else:
        yield from map(_string, values)


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data
