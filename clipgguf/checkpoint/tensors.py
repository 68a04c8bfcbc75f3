"""Where a checkpoint's tensors are: a record for each, and their bytes by memory map."""

import contextlib
import math
import mmap
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from clipgguf.errors import CheckpointError, os_reason


@dataclass(frozen=True, slots=True)
class Deflated:
    """A storage that a zip archive holds compressed: the byte range in the file, and what must come out of it."""

    offset: int
    compressed_size: int
    inflated_size: int
    crc32: int


@dataclass(frozen=True, slots=True)
class SourceTensor:
    """One tensor of a checkpoint as its header describes it, little-endian.

    ``dtype`` is safetensors' code ("F32", "BF16", ...); ``nbytes`` is what the elements take when they are contiguous.
    ``offset`` is where the first element lies in the file, or in the inflated storage where ``deflated`` names one.
    The elements are contiguous and row-major unless ``strides`` gives, in elements, the step along each axis.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    offset: int
    nbytes: int
    strides: tuple[int, ...] | None = None
    deflated: Deflated | None = None

    @property
    def itemsize(self) -> int:
        """The bytes of one element."""
        return self.nbytes // max(1, math.prod(self.shape))

    def rows(self, start: int, stop: int) -> "SourceTensor":
        """Return some rows of a tensor, as a view of the same bytes."""
        step = self.strides[0] if self.strides is not None else math.prod(self.shape[1:])
        shape = (stop - start, *self.shape[1:])
        offset = self.offset + start * step * self.itemsize
        return replace(self, shape=shape, offset=offset, nbytes=math.prod(shape) * self.itemsize)

    def transposed(self) -> "SourceTensor":
        """Return a tensor with its axes in reverse order, as a view of the same bytes."""
        strides = self.strides or tuple(math.prod(self.shape[i + 1 :]) for i in range(len(self.shape)))
        return replace(self, shape=self.shape[::-1], strides=strides[::-1])

    @property
    def extent(self) -> int:
        """The bytes from ``offset`` to the last element's end: ``nbytes``, but for gaps and shared elements."""
        if self.strides is None or not self.nbytes:
            return self.nbytes
        last = sum((length - 1) * stride for length, stride in zip(self.shape, self.strides, strict=True))
        return (last + 1) * self.itemsize


class SourceBytes:
    """A file that tensors are read from, by memory maps of the ranges that are in use."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        """Take over an open file, which ``close`` closes; ``path`` is what messages call it."""
        self._path = path
        self._file = file

    def map(self, offset: int, nbytes: int) -> "MappedRange":
        """Map a byte range (at least one byte), which stays resident only until it is closed. Safe in any thread."""
        # A map of its own for every range, and not one of the whole file with madvise: reading a page makes Linux map
        # its neighbours too, up to 2 MiB of them, among them pages that were just given back.
        start = offset // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
        try:
            mapped = mmap.mmap(self._file.fileno(), offset + nbytes - start, access=mmap.ACCESS_READ, offset=start)
        except (OSError, ValueError) as e:  # ValueError: the file has become shorter than the range.
            reason = os_reason(e) if isinstance(e, OSError) else str(e)
            raise CheckpointError(
                f"{self._path}: bytes {offset:,} to {offset + nbytes:,} cannot be read: {reason}"
            ) from e
        return MappedRange(mapped, offset - start)

    def close(self) -> None:
        """Close the file; ranges that are still mapped stay so."""
        self._file.close()


class SourceFile(SourceBytes):
    """A file of the checkpoint."""

    def __init__(self, path: Path, size: int) -> None:
        """Open a file that must have at least ``size`` bytes.

        Raises CheckpointError when it cannot be opened or has become shorter since its header was read.
        """
        try:
            file = path.open("rb")
        except OSError as e:
            raise CheckpointError(f"{path}: cannot be read: {os_reason(e)}") from e
        actual = os.fstat(file.fileno()).st_size
        if actual < size:
            file.close()
            raise CheckpointError(f"{path}: has {actual:,} bytes, its header asks for {size:,}")
        super().__init__(path, file)


class MappedRange:
    """A byte range of a file in memory; ``data`` is valid until it is closed."""

    def __init__(self, mapped: mmap.mmap, skip: int) -> None:
        """Take over a map whose first ``skip`` bytes are not wanted."""
        self._map = mapped
        self.data = memoryview(mapped)[skip:]

    def close(self) -> None:
        """Unmap the range. Every view of ``data`` must be gone, or the map stays until it is."""
        self.data.release()
        # Only after a failure, when its traceback still holds a view.
        with contextlib.suppress(BufferError):
            self._map.close()
