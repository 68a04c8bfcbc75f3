"""Windows of files: byte ranges as they lie in the system's page cache, mapped into memory for a moment."""

import contextlib
import errno
import mmap
import os
import sys
from collections.abc import Iterator

# MADV_POPULATE_READ of Linux 5.14 and newer, which Python has no name for.
_POPULATE_READ = 22


@contextlib.contextmanager
def window(file: int, offset: int, nbytes: int) -> Iterator[memoryview | None]:
    """Give a byte range of an open file, only to be read and only for so long; None where it cannot be mapped.

    None stands for every reason: reading the range gives its bytes, or says what is wrong. Bytes that are there now may
    be gone a moment later, when somebody truncates the file; then the system ends the process with SIGBUS.
    """
    before = offset % mmap.ALLOCATIONGRANULARITY
    mapped = _mapped(file, offset - before, before + nbytes)
    if mapped is None:
        yield None
        return
    view = memoryview(mapped)[before:]
    try:
        yield view
    finally:
        # Where the traceback of an exception still has an array of it, it goes when that goes.
        with contextlib.suppress(BufferError):
            view.release()
            mapped.close()


def _mapped(file: int, offset: int, nbytes: int) -> mmap.mmap | None:
    """Map a range that begins at a page, and have its pages there; None where any is missing."""
    # Windows keeps a file from being replaced or truncated while it is mapped.
    if sys.platform == "win32":
        return None
    try:
        if os.fstat(file).st_size < offset + nbytes:
            return None
        mapped = mmap.mmap(file, nbytes, access=mmap.ACCESS_READ, offset=offset)
    except (OSError, ValueError):  # A file system without maps, no addresses left, a file that has just become shorter.
        return None
    if sys.platform == "linux":
        try:
            # One call instead of a fault every few pages. It also fails where a page cannot be read, from a damaged
            # disk for instance, and using that page would end the process.
            mapped.madvise(_POPULATE_READ)
        except OSError as e:
            if e.errno != errno.EINVAL:  # That is an older Linux.
                mapped.close()
                return None
    return mapped
