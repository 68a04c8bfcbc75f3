"""Where a checkpoint's tensors are: a record for each, and their bytes by memory map."""

import contextlib
import mmap
import os
from dataclasses import dataclass
from pathlib import Path

from clipgguf.errors import CheckpointError, os_reason


@dataclass(frozen=True, slots=True)
class SourceTensor:
    """One tensor of a checkpoint as its header describes it: contiguous, row-major, little-endian.

    ``dtype`` is safetensors' code ("F32", "BF16", ...); ``offset`` and ``nbytes`` are the byte range in the file.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    offset: int
    nbytes: int


class SourceFile:
    """A file that tensors are read from, by memory maps of the ranges that are in use."""

    def __init__(self, path: Path, size: int) -> None:
        """Open a file that must have at least ``size`` bytes.

        Raises CheckpointError when it cannot be opened or has become shorter since its header was read.
        """
        self._path = path
        try:
            self._file = path.open("rb")
        except OSError as e:
            raise CheckpointError(f"{path}: cannot be read: {os_reason(e)}") from e
        actual = os.fstat(self._file.fileno()).st_size
        if actual < size:
            self._file.close()
            raise CheckpointError(f"{path}: has {actual:,} bytes, its header asks for {size:,}")

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
