"""Open a checkpoint's files: regular ones alone, so that none can make us wait for it or read without end."""

import contextlib
import io
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path

from clipgguf.errors import ClipGGUFError, os_reason, why_no_file

# What may lie in a file's place, by a pattern of the first bytes. No file that we read begins so: at least four
# characters are asked for, because less may be the length with which a safetensors file begins.
STAND_INS: Mapping[bytes, str] = {
    rb"version https://git-lfs": "is a Git LFS pointer, the file itself was not downloaded; `git lfs pull` in its "
    "directory does that, and so does `hf download`",
    rb"(?:\xef\xbb\xbf)?\s*<(?:[!?]?[A-Za-z]{3}|!--)": "is a web page or XML, the file itself was not downloaded; "
    "`hf download` does that (where the model asks for it, after `hf auth login`)",
    rb"Rar!": "is a RAR archive, should be unpacked first",
}
# And what is none of a model's files, but may be one to inspect.
NO_MODEL_FILES = {**STAND_INS, rb"GGUF": "is a GGUF file already; `clipgguf inspect` looks into it"}
# What downloads are called until they are finished.
UNFINISHED = (".incomplete", ".crdownload", ".part")


def open_regular(path: Path, error: type[ClipGGUFError], refused: Mapping[bytes, str] = STAND_INS) -> io.FileIO:
    """Open a regular file to read it, unbuffered; symbolic links are followed.

    Raises ``error`` when it is missing, a directory, a pipe or a device, cannot be opened, is not yet downloaded, or
    begins as something does that stands in a file's place.
    """
    try:
        # Opening a device may already do something, so that nothing else than a file is even opened.
        if not path.is_file():
            raise error(f"{path}: {why_no_file(path)}")
        if path.suffix in UNFINISHED:
            raise error(f"{path}: is a download that is not finished; the same `hf download` once more finishes it")
        file = io.FileIO(path, opener=_open_without_waiting)
        try:
            # It may have become another since.
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise error(f"{path}: is no regular file")
            head = b""
            with contextlib.suppress(OSError):  # Who reads on will meet it, and can say which bytes are meant.
                head = file.read(64) or b""
            file.seek(0)
            for pattern, what in refused.items():
                if re.match(pattern, head):
                    raise error(f"{path}: {what}")
        except BaseException:
            file.close()
            raise
        return file
    except OSError as e:
        raise error(f"{path}: cannot be read: {os_reason(e)}") from e


def _open_without_waiting(path: str, flags: int) -> int:
    # A pipe that nobody writes to would have us wait; for a file the flag, which Windows lacks, means nothing.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
