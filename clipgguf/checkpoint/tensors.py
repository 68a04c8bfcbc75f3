"""Where a checkpoint's tensors are: a record for each, and a memory map for each file."""

import mmap
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


# What Linux maps around a page that is read for the first time (fault_around_bytes); a multiple of every page size.
FAULT_WINDOW = 1 << 21


class MappedFile:
    """A file's bytes by memory map, of which only what is in use stays resident."""

    def __init__(self, path: Path, size: int) -> None:
        """Map a file that must have at least ``size`` bytes.

        Raises CheckpointError when it cannot be opened or has become shorter since its header was read.
        """
        try:
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as e:  # ValueError: an empty file cannot be mapped.
            raise CheckpointError(f"{path}: cannot be mapped: {os_reason(e) if isinstance(e, OSError) else e}") from e
        if len(self._map) < size:
            raise CheckpointError(f"{path}: has {len(self._map):,} bytes, its header asks for {size:,}")
        self._bytes = memoryview(self._map)

    def view(self, offset: int, nbytes: int) -> memoryview:
        """Return a byte range without copying it."""
        return self._bytes[offset : offset + nbytes]

    def release(self, offset: int, nbytes: int) -> None:
        """Give a byte range's pages back to the system, so that resident memory stays flat.

        A page that is read again, or that a neighbour still reads, is mapped anew. Does nothing where the system has
        no madvise.
        """
        if not hasattr(mmap, "MADV_DONTNEED"):
            return
        # Outwards to whole windows: reading a page makes Linux map the pages around it as well.
        start = offset // FAULT_WINDOW * FAULT_WINDOW
        end = min(-(-(offset + nbytes) // FAULT_WINDOW) * FAULT_WINDOW, len(self._map))
        self._map.madvise(mmap.MADV_DONTNEED, start, end - start)

    def close(self) -> None:
        """Unmap the file; a view that is still in use keeps the map alive until it is gone."""
        try:
            self._bytes.release()
            self._map.close()
        except BufferError:
            # Only after a failure: its traceback holds a view, and the map goes when that does.
            pass
