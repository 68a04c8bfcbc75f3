"""GGUF files as sources: metadata and tensors of one, from its header alone.

The format (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md): the magic, the version, the numbers of tensors
and of metadata keys; the keys, each with the type of its value; the tensors' names, shapes, types and offsets, which
count from the next multiple of the alignment; the tensors' bytes. gguf-py's GGUFReader makes several objects of every
string of a vocabulary, and believes whatever length a file names. So the header is read here, by plain reads, and no
length is believed before it is compared with the bytes that are left.
"""

import contextlib
import io
import math
import struct
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import IO, Any

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

from clipgguf.checkpoint.gguf_file import (
    ALIGNMENT_KEY,
    DEFAULT_ALIGNMENT,
    FORMATS,
    MAGIC,
    SMALLEST_KEY,
    SMALLEST_TENSOR,
    GGUFFile,
    MetadataItem,
    aligned,
)
from clipgguf.errors import CheckpointError
from clipgguf.limits import LARGEST_HEADER, MOST_ENTRIES, MOST_VALUES
from clipgguf.sources import Source, SourceIO
from clipgguf.tensor import View

# How many bytes of a header are read at once.
BUFFER_NBYTES = 1 << 16
# Version 1 had lengths of 32 bits; ggml does not read it any more, either.
VERSIONS = (2, 3)
# The specification asks for a multiple of 8, ggml for a power of two. Nobody aligns to more than a huge page.
SMALLEST_ALIGNMENT, LARGEST_ALIGNMENT = 8, 2**21
# GGML_MAX_DIMS and GGML_MAX_NAME in ggml.h; the latter counts the zero at the end. Keys: by the specification.
MOST_AXES = 4
LONGEST_NAME = 63
LONGEST_KEY = 2**16 - 1


def read_gguf(source: Source) -> GGUFFile:
    """Read the header of a little-endian GGUF file of version 2 or 3; no tensor's bytes.

    Strings that are no UTF-8 are refused, as gguf-py does: with replacements they could not be written again.
    Raises CheckpointError when the file is truncated or no GGUF file, or when its header contradicts itself
    or the file's size.
    """
    with contextlib.closing(source), source.in_use(), io.BufferedReader(SourceIO(source), BUFFER_NBYTES) as file:
        return _Header(file, source).read()


class _Header:
    """The bytes of a header, taken one after the other."""

    def __init__(self, file: IO[bytes], source: Source) -> None:
        self._file = file
        self._source, self._size = source, source.size
        # How far it was taken, and how many values there were in arrays.
        self._position = self._values = 0

    def read(self) -> GGUFFile:
        """Take the whole header."""
        if (magic := self._take(len(MAGIC), "the magic")) != MAGIC:
            raise self._error(f"is no GGUF file: it begins with {magic!r}, should begin with {MAGIC!r}")
        version = self._number("I", "the version")
        if version and not version & 0xFFFF:
            raise self._error("is a big-endian GGUF file, supported is little-endian")
        if version not in VERSIONS:
            raise self._error(f"is a GGUF file of version {version}, supported are {' and '.join(map(str, VERSIONS))}")
        tensor_count = self._number("Q", "the number of tensors")
        key_count = self._number("Q", "the number of metadata keys")
        self._check_count(tensor_count, SMALLEST_TENSOR, MOST_ENTRIES, "the header", "tensors")
        self._check_count(key_count, SMALLEST_KEY, MOST_ENTRIES, "the header", "metadata keys")
        metadata: dict[str, MetadataItem] = {}
        for number in range(key_count):
            item = self._item(number)
            if item.key in metadata:
                raise self._error(f"has the metadata key {item.key!r} twice")
            metadata[item.key] = item
        alignment = self._alignment(metadata.get(ALIGNMENT_KEY))
        infos: dict[str, View] = {}
        for number in range(tensor_count):
            name = self._string(f"the name of tensor {number}", LONGEST_NAME)
            if name in infos:
                raise self._error(f"has the tensor {name!r} twice")
            infos[name] = self._tensor_info(name)
        start = aligned(self._position, alignment)
        tensors = tuple(replace(info, offset=start + info.offset) for info in infos.values())
        problems = self._misplaced(tensors, start, alignment)
        CheckpointError.raise_all(f"{self._source}: {problem}" for problem in problems)
        return GGUFFile(self._source, tuple(metadata.values()), tensors, version, alignment, start)

    def _error(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self._source}: {what}")

    def _check_end(self, end: int, what: str) -> None:
        """Raise CheckpointError when something ends after the file, or after the longest header."""
        if end > self._size:
            raise self._truncated(f"{what} ends at byte {end:,}")
        if end > LARGEST_HEADER:
            raise self._error(f"has a header of more than {LARGEST_HEADER:,} bytes: {what} ends at byte {end:,}")

    def _take(self, nbytes: int, what: str) -> bytes:
        """Take so many bytes, once it is sure that they are there."""
        end = self._position + nbytes
        self._check_end(end, what)
        data = self._file.read(nbytes)
        if len(data) != nbytes:
            raise self._truncated(f"{what} ends at byte {end:,}, reading at {self._position + len(data):,}")
        self._position = end
        return data

    def _truncated(self, what: str) -> CheckpointError:
        return self._error(f"is truncated or no GGUF file: {what}, the file has {self._size:,} bytes")

    def _number(self, code: str, what: str) -> Any:
        """Take a number, by its struct format character."""
        return struct.unpack(f"<{code}", self._take(struct.calcsize(f"<{code}"), what))[0]

    def _string(self, what: str, longest: int = LARGEST_HEADER) -> str:
        """Take a string: its length in bytes, then UTF-8 of that length."""
        length = self._number("Q", f"the length of {what}")
        if length > longest:
            raise self._error(f"{what} has {length:,} bytes, should have at most {longest:,}")
        data = self._take(length, what)
        try:
            return data.decode()
        except UnicodeDecodeError as e:
            raise self._no_utf8(e, self._position - length, what) from e

    def _no_utf8(self, error: UnicodeDecodeError, start: int, what: str) -> CheckpointError:
        byte, at = error.object[error.start], start + error.start
        return self._error(f"{what} is no UTF-8: byte {byte:#04x} at offset {at:,}")

    def _check_count(self, count: int, nbytes: int, most: int, what: str, of: str) -> None:
        """Make sure that so many things of at least ``nbytes`` each can be there, and are not too many to hold."""
        left = self._size - self._position
        if count * nbytes > left:
            raise self._truncated(f"{what} says that there are {count:,} {of}, with {left:,} bytes left")
        if count > most:
            raise self._error(f"{what} says that there are {count:,} {of}, at most {most:,} are supported")

    def _item(self, number: int) -> MetadataItem:
        """Take a metadata key and its value."""
        key = self._string(f"the name of metadata key {number}", LONGEST_KEY)
        what = f"metadata key {key!r}"
        if not key:
            raise self._error(f"metadata key {number} has an empty name")
        value_type = self._value_type(what)
        if value_type != GGUFValueType.ARRAY:
            return MetadataItem(key, value_type, self._elements(value_type, 1, what)[0])
        value_type = self._value_type(f"the array of {what}")
        if value_type == GGUFValueType.ARRAY:
            raise self._error(f"{what} is an array of arrays, which no reader takes")
        count = self._number("Q", f"the length of {what}")
        code = FORMATS.get(value_type)
        self._check_count(count, struct.calcsize(f"<{code}") if code else 8, MOST_VALUES - self._values, what, "values")
        self._values += count
        return MetadataItem(key, value_type, self._elements(value_type, count, what))

    def _value_type(self, what: str) -> GGUFValueType:
        number = self._number("I", f"the type of {what}")
        try:
            return GGUFValueType(number)
        except ValueError as e:
            known = f"0 to {max(GGUFValueType)}"
            raise self._error(f"{what} is of the unknown value type {number}, should be of type {known}") from e

    def _elements(self, value_type: GGUFValueType, count: int, what: str) -> tuple[Any, ...]:
        """Take values of one type, one after the other; the caller has checked that so many may be there."""
        if value_type == GGUFValueType.STRING:
            return self._strings(count, what)
        code = FORMATS[value_type]
        values = struct.unpack(f"<{count}{code}", self._take(count * struct.calcsize(f"<{code}"), what))
        if value_type != GGUFValueType.BOOL:
            return values
        if count and max(values) > 1:
            raise self._error(f"{what} is {max(values)} where a bool should be 0 or 1")
        return tuple(map(bool, values))

    def _strings(self, count: int, what: str) -> tuple[str, ...]:
        # What _string does, without its calls: a vocabulary is most of a header, and takes a third of the time so.
        read, unpack = self._file.read, struct.Struct("<Q").unpack
        position, last, data = self._position, min(self._size, LARGEST_HEADER), b""
        values: list[str] = []
        try:
            for _ in range(count):
                (length,) = unpack(read(8))
                position += 8 + length
                if position > last:
                    break
                data = read(length)
                values.append(data.decode())
        except struct.error:  # The length itself was cut off.
            position += 8
        except UnicodeDecodeError as e:
            raise self._no_utf8(e, position - len(data), f"string {len(values):,} of {what}") from e
        self._check_end(position, f"string {len(values):,} of {what}")
        self._position = position
        return tuple(values)

    def _alignment(self, item: MetadataItem | None) -> int:
        if item is None:
            return DEFAULT_ALIGNMENT
        if item.value_type != GGUFValueType.UINT32 or item.is_array:
            kind = "an array of" if item.is_array else "a"
            raise self._error(f"{ALIGNMENT_KEY} is {kind} {item.value_type.name}, should be a UINT32")
        alignment: int = item.value
        if alignment & (alignment - 1) or not SMALLEST_ALIGNMENT <= alignment <= LARGEST_ALIGNMENT:
            right = f"a power of two from {SMALLEST_ALIGNMENT} to {LARGEST_ALIGNMENT:,}"
            raise self._error(f"{ALIGNMENT_KEY} is {alignment:,}, should be {right}")
        return alignment

    def _tensor_info(self, name: str) -> View:
        """Take what follows a tensor's name; its offset counts from the beginning of all tensors' bytes."""
        what = f"tensor {name!r}"
        axes = self._number("I", f"the number of axes of {what}")
        if axes > MOST_AXES:
            raise self._error(f"{what} has {axes:,} axes, should have at most {MOST_AXES}")
        # GGUF has the axis that is contiguous first.
        shape = tuple(reversed([self._number("Q", f"the shape of {what}") for _ in range(axes)]))
        number = self._number("I", f"the type of {what}")
        try:
            ggml_type = GGMLQuantizationType(number)
        except ValueError as e:
            raise self._error(f"{what} is of the GGML type {number}, which is not known") from e
        if math.prod(shape) > 2**63 - 1:
            raise self._error(f"{what} has shape {shape}, which is more values than a file can hold")
        block, block_nbytes = GGML_QUANT_SIZES[ggml_type]
        if (row := shape[-1] if shape else 1) % block:
            raise self._error(f"{what} has rows of {row:,} values, should be a multiple of {ggml_type.name}'s {block}")
        offset = self._number("Q", f"the offset of {what}")
        return View(name, ggml_type.name, shape, self._source, offset, math.prod(shape) // block * block_nbytes)

    def _misplaced(self, tensors: tuple[View, ...], start: int, alignment: int) -> Iterator[str]:
        """Yield what is wrong with where tensors are; ``start`` is where their bytes begin."""
        for tensor in tensors:
            if (offset := tensor.offset - start) % alignment:
                yield f"tensor {tensor.name!r} has offset {offset:,}, should be a multiple of {alignment:,}"
        if beyond := [tensor for tensor in tensors if tensor.offset + tensor.nbytes > self._size]:
            last = max(beyond, key=lambda tensor: tensor.offset + tensor.nbytes)
            yield (
                f"is truncated: tensor {last.name!r} ends at byte {last.offset + last.nbytes:,}, the file has "
                f"{self._size:,} bytes ({len(beyond):,} of {len(tensors):,} tensors end after that)"
            )
        ordered = sorted((tensor for tensor in tensors if tensor.nbytes), key=lambda tensor: tensor.offset)
        for tensor, following in pairwise(ordered):
            if tensor.offset + tensor.nbytes > following.offset:
                yield f"tensors {tensor.name!r} and {following.name!r} overlap at offset {following.offset - start:,}"
