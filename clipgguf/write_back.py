"""Have a file written to disk while it grows: little is left to wait for at its end.

Left alone, the system begins when a good part of the memory holds unwritten pages, and then slows the writer down.
"""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import cache

from clipgguf.workers import Workers

# After how many bytes the system is asked: where it begins and returns, and where it returns when they are on disk.
BEGUN_NBYTES = 1 << 23
WAITED_FOR_NBYTES = 1 << 26
# Linux's sync_file_range(2): begin to write the pages that are not being written, wait for nothing.
SYNC_FILE_RANGE_WRITE = 2


@contextlib.contextmanager
def writing_back(file: int) -> Iterator[Callable[[int], None]]:
    """Yield what is called with the position up to which a file, given by its descriptor, has been written.

    A thread of its own asks the system to write that to disk. What is yielded, and the end of the block, raise OSError
    when that is known to have failed. The ``fsync`` at the end of the file knows of all failures.
    """
    begin = _sync_file_range()
    step = BEGUN_NBYTES if begin else WAITED_FOR_NBYTES
    sync = getattr(os, "fdatasync", os.fsync)
    done = 0
    running: Future[object] = Future()
    running.set_result(None)

    def written(position: int) -> None:
        nonlocal done, running
        if position - done < step or not running.done():
            return
        running.result()
        if begin:  # Not every file system has it: then the end takes longer.
            running = workers.submit(begin, file, done, position - done, SYNC_FILE_RANGE_WRITE)
        else:
            running = workers.submit(sync, file)
        done = position

    with Workers(1, "write-back") as workers:
        yield written
    running.result()


@cache
def _sync_file_range() -> Callable[[int, int, int, int], int] | None:
    """Return Linux's sync_file_range, or None where there is none; it returns -1 for an error."""
    if sys.platform != "linux":
        return None
    import ctypes

    try:
        function = ctypes.CDLL(None).sync_file_range
    except (OSError, AttributeError):
        return None
    function.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
    return function
