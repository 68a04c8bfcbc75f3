"""Where a checkpoint's tensors are: a record for each, and their bytes by reading the ranges that are in use."""

import io
import math
import os
import sys
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, cast

from clipgguf.errors import CheckpointError, os_reason
from clipgguf.regular_file import open_regular

# How many bytes are copied at a time where the system does not copy by itself.
COPY_NBYTES = 1 << 20


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
    """A file that tensors are read from, at any offset and from any thread.

    The bytes are read and not memory-mapped: a map of a file that somebody truncates ends the process with SIGBUS, and
    reading through one makes Linux hold up to 2 MiB around each page in memory. Reading into a buffer that stays in the
    processor's cache is no slower.
    """

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        """Take over an open file, which ``close`` closes; ``path`` is what messages call it."""
        self._path = path
        self._file = file
        self._turn = threading.Lock()

    def read(self, offset: int, target: memoryview) -> None:
        """Fill ``target``, of single bytes, with those from ``offset`` on; CheckpointError when they cannot be read."""
        done = 0
        while done < len(target):
            try:
                count = self._read_some(offset + done, target[done:])
            except OSError as e:
                raise self._unreadable(offset, len(target), os_reason(e)) from e
            if not count:
                raise self._unreadable(offset, len(target), "the file has become shorter")
            done += count

    def _read_some(self, offset: int, target: memoryview) -> int:
        if sys.platform != "win32":
            return os.preadv(self._file.fileno(), [target], offset)
        with self._turn:  # Windows has one position for all threads.
            self._file.seek(offset)
            return cast(io.BufferedReader, self._file).readinto(target)

    def copy(self, offset: int, nbytes: int, file: IO[bytes]) -> None:
        """Write a byte range to a buffered file at its position, without a copy in this process where Linux can.

        Raises CheckpointError when the range cannot be read, OSError when it cannot be written.
        """
        if sys.platform == "linux":
            file.flush()
            out = file.fileno()
            while nbytes:
                try:
                    count = os.sendfile(out, self._file.fileno(), offset, nbytes)
                except OSError:
                    # Some files it cannot send from or to, and of an error it does not say whose it is: reading and
                    # writing by ourselves does.
                    break
                if not count:
                    raise self._unreadable(offset, nbytes, "the file has become shorter")
                offset, nbytes = offset + count, nbytes - count
            file.seek(os.lseek(out, 0, os.SEEK_CUR))  # The buffered file does not know how far it got.
        buffer = memoryview(bytearray(min(nbytes, COPY_NBYTES)))
        while nbytes:
            part = buffer[:nbytes]
            self.read(offset, part)
            file.write(part)
            offset, nbytes = offset + len(part), nbytes - len(part)

    def _unreadable(self, offset: int, nbytes: int, reason: str) -> CheckpointError:
        return CheckpointError(f"{self._path}: bytes {offset:,} to {offset + nbytes:,} cannot be read: {reason}")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class SourceFile(SourceBytes):
    """A file of the checkpoint."""

    def __init__(self, path: Path, size: int) -> None:
        """Open a file that must have at least ``size`` bytes.

        Raises CheckpointError when it cannot be opened or has become shorter since its header was read.
        """
        file = open_regular(path, CheckpointError)
        actual = os.fstat(file.fileno()).st_size
        if actual < size:
            file.close()
            raise CheckpointError(f"{path}: has {actual:,} bytes, its header asks for {size:,}")
        super().__init__(path, file)
