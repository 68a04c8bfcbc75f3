"""Open a checkpoint's files: regular ones alone, so that none can make us wait for it or read without end."""

import io
import os
import stat
from pathlib import Path

from clipgguf.errors import ClipGGUFError, os_reason, why_no_file


def open_regular(path: Path, error: type[ClipGGUFError]) -> io.FileIO:
    """Open a regular file to read it, unbuffered; symbolic links are followed.

    Raises ``error`` when it is missing, a directory, a pipe or a device, or cannot be opened.
    """
    try:
        # Opening a device may already do something, so that nothing else than a file is even opened.
        if not path.is_file():
            raise error(f"{path}: {why_no_file(path)}")
        file = io.FileIO(path, opener=_open_without_waiting)
        # It may have become another since.
        if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return file
        file.close()
        raise error(f"{path}: is no regular file")
    except OSError as e:
        raise error(f"{path}: cannot be read: {os_reason(e)}") from e


def _open_without_waiting(path: str, flags: int) -> int:
    # A pipe that nobody writes to would have us wait; for a file the flag, which Windows lacks, means nothing.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
