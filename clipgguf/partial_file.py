"""What an interrupted conversion from far away leaves, so that the next one goes on with it and loads nothing twice.

The temporary file stays, and beside it a record: lines of JSON, appended while the file grows. A line says up to where
all bytes of the file are on disk, and their CRC-32. A later conversion goes on with such a file when its own plan is
the same, from the metadata and each tensor's source down to the version of the files that those are in. It compares
the CRC-32 before. Else the file is removed by the next conversion into the same file, and after a week by any.
"""

import contextlib
import json
import logging
import os
import re
import stat
import sys
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from clipgguf.errors import CheckpointError
from clipgguf.workers import Workers

if sys.platform != "win32":
    import fcntl

if TYPE_CHECKING:
    from typing_extensions import Buffer, Self

LOG = logging.getLogger("clipgguf")
RECORD_NAME = re.compile(r"\.clipgguf-[0-9a-f]{16}\.jsonl")
KEPT_SECONDS = 7 * 24 * 3600
# After how many bytes a file is flushed and recorded, and the least that is worth to be kept when the line breaks.
FLUSHED_NBYTES = 1 << 25
LEAST_NBYTES = 1 << 22
# Longer records are of nobody here.
_LONGEST_RECORD = 1 << 24
_PIECE_NBYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Beginning:
    """The beginning of a file, with so many tensors complete: where it ends, and the CRC-32 of all its bytes.

    ``overflows`` are, by the tensor's name, how many of those tensors' values became infinite.
    """

    tensors: int
    end: int
    crc32: int
    overflows: Mapping[str, int] = field(default_factory=dict)


def record_of(temporary: Path) -> Path:
    """Return where the record of a temporary file is."""
    return temporary.with_suffix(".jsonl")


def is_kept(temporary: Path) -> bool:
    """Return whether a temporary file is still to be kept for a conversion that goes on with it."""
    record = record_of(temporary)
    try:
        is_old = time.time() - record.stat().st_mtime > KEPT_SECONDS
    except OSError:
        return False
    return not is_old and _Record.last(record) is not None


def kept_nbytes(path: Path) -> int:
    """Return how many bytes of the disk are taken by what was left of the file at a path, and will be used or freed."""
    found = 0
    for temporary, _ in _left_of(path):
        with contextlib.suppress(OSError):
            found += getattr(temporary.stat(), "st_blocks", 0) * 512
    return found


@dataclass(frozen=True, slots=True)
class _Record:
    """A line of a record: of which file and plan, and what is there of it."""

    output: str
    key: str
    beginning: Beginning

    @classmethod
    def last(cls, path: Path) -> "_Record | None":
        """Return the last whole line of a record of the user's own; None without one."""
        try:
            if (data := _own_bytes(path)) is None:
                return None
        except OSError:
            return None
        for line in reversed(data.split(b"\n")[:-1]):
            with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError):
                values = json.loads(line)
                beginning = Beginning(**values["beginning"])
                numbers = beginning.tensors, beginning.end, beginning.crc32, *beginning.overflows.values()
                if all(type(number) is int for number in numbers):
                    return cls(values["output"], values["key"], beginning)
        return None


def _own_bytes(path: Path) -> bytes | None:
    file = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    try:
        return os.read(file, _LONGEST_RECORD) if _is_own(file) else None
    finally:
        os.close(file)


def _is_own(file: int) -> bool:
    """Return whether an open file is a regular one of the user's, without another name."""
    status = os.fstat(file)
    is_mine = not hasattr(os, "geteuid") or status.st_uid == os.geteuid()
    return stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and is_mine


def _left_of(path: Path) -> Iterator[tuple[Path, _Record]]:
    """Yield the temporary files that were left of the file at a path, with their records."""
    with contextlib.suppress(OSError):  # A directory that may not be listed.
        for found in [entry for entry in path.parent.iterdir() if RECORD_NAME.fullmatch(entry.name)]:
            record = _Record.last(found)
            if record is not None and record.output == path.name:
                yield found.with_suffix(".tmp"), record


class Partial:
    """A temporary file that a later conversion could go on with, or this one goes on with; a context manager.

    ``beginning`` is what is there of it at first. Left by an error of the line, or by a signal that asks the process to
    end, it writes down what is there then. Left in another way, also by Ctrl-C, nobody is to go on with the file.
    """

    def __init__(self, file: int, temporary: Path, output: str, key: str, beginning: Beginning) -> None:
        """Take the descriptor of the file, which it closes, and the file's later name."""
        self.beginning = beginning
        self._file, self._record = file, record_of(temporary)
        self._about = {"output": output, "key": key}
        self._end, self._crc32 = beginning.end, beginning.crc32
        self._complete = self._recorded = beginning
        self._least = beginning.end + (0 if beginning.tensors else LEAST_NBYTES)
        self._workers = Workers(1, "record")
        self._running: Future[None] | None = None

    def __enter__(self) -> "Self":
        """Return the partial file itself."""
        return self

    def add(self, position: int, data: "Buffer") -> None:
        """Tell of bytes that were written, from a position on; all before them were."""
        self._crc32 = zlib.crc32(data, zlib.crc32(bytes(position - self._end), self._crc32))
        self._end = position + memoryview(data).nbytes

    def complete(self, tensors: int, overflows: Mapping[str, int]) -> None:
        """Tell that so many tensors are written, and which of them overflow. Raises OSError when a flush failed."""
        self._complete = Beginning(tensors, self._end, self._crc32, dict(overflows))
        is_due = self._end - self._recorded.end >= FLUSHED_NBYTES
        if is_due and (self._running is None or self._running.done()):
            self._wait()
            self._running = self._workers.submit(self._write_down, self._complete)
            self._recorded = self._complete

    def _wait(self) -> None:
        if self._running is not None:
            self._running.result()

    def _write_down(self, beginning: Beginning) -> None:
        """Record what is there, once it is on disk."""
        getattr(os, "fdatasync", os.fsync)(self._file)
        with self._record.open("ab", buffering=0) as record:
            record.write(json.dumps({**self._about, "beginning": asdict(beginning)}).encode() + b"\n")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """Write down what is there, or have nobody go on with it."""
        try:
            if isinstance(error, CheckpointError | SystemExit) and self._complete.end >= self._least:
                with contextlib.suppress(
                    OSError
                ):  # What is recorded already counts; the first error is the one to tell.
                    self._wait()
                    if self._complete != self._recorded:
                        self._write_down(self._complete)
            else:
                self._workers.shutdown()
                self._record.unlink(missing_ok=True)
        finally:
            self._workers.shutdown()
            os.close(self._file)


if sys.platform == "win32":

    def partial_file(path: Path, temporary: Path, key: str, ends: Sequence[int]) -> "Partial | None":
        """Return None: there are no locks here by which a file that is left can be told from one in use."""
        return None

    def remove_partial_files(path: Path) -> None:
        """Do nothing: there are none."""

else:

    def partial_file(path: Path, temporary: Path, key: str, ends: Sequence[int]) -> "Partial | None":
        """Have a new temporary file of ``path`` become what was left of it, and return it.

        The new file has its beginning up to the tensors. ``key`` tells its plan from all others, and ``ends`` where
        each tensor will end. What was left is taken when it is of the same plan and its bytes are those that were
        recorded; what is not is removed. Returns None where files cannot be locked.
        """
        if not _is_locked(temporary):
            return None
        found: tuple[int, Path, Beginning] | None = None
        for file, left, record in _unused(path):
            if found is None and record.key == key and _is_whole(file, record.beginning, ends):
                found = file, left, record.beginning
            else:
                _remove(file, left)
        if found is not None:
            file, left, beginning = found
            os.ftruncate(file, beginning.end)
            record_of(left).replace(record_of(temporary))
            left.replace(temporary)
            counts = f"{beginning.tensors:,} of {len(ends):,} tensors"
            LOG.info("%s: goes on after %s, which an interrupted conversion has left", path, counts)
            return Partial(file, temporary, path.name, key, beginning)
        head = temporary.read_bytes()
        file = os.open(temporary, os.O_RDWR)
        return Partial(file, temporary, path.name, key, Beginning(0, len(head), zlib.crc32(head)))

    def remove_partial_files(path: Path) -> None:
        """Remove what was left of the file at a path, but for what is in use."""
        for file, left, _ in _unused(path):
            _remove(file, left)

    def _unused(path: Path) -> Iterator[tuple[int, Path, _Record]]:
        """Yield what was left of the file at a path, the longest first: its lock, where it is, of what."""
        for left, record in sorted(_left_of(path), key=lambda pair: pair[1].beginning.end, reverse=True):
            if (file := _locked(left)) is not None:
                yield file, left, record

    def _remove(file: int, left: Path) -> None:
        with contextlib.suppress(OSError):
            left.unlink()
            record_of(left).unlink()
        os.close(file)

    def _is_locked(path: Path) -> bool:
        """Return whether others see the lock on a file that is being written, as on most file systems."""
        file = os.open(path, os.O_RDWR)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        finally:
            os.close(file)
        return False

    def _locked(path: Path) -> int | None:
        """Return the descriptor of a file that nobody uses, with a lock on it; None when there is none."""
        try:
            file = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return None
        with contextlib.suppress(OSError):
            if _is_own(file):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if path.exists() and os.path.samestat(os.fstat(file), path.stat()):  # Nobody was quicker.
                    return file
        os.close(file)
        return None

    def _is_whole(file: int, beginning: Beginning, ends: Sequence[int]) -> bool:
        """Return whether a file begins with what was recorded of it."""
        if not 0 < beginning.tensors <= len(ends) or beginning.end != ends[beginning.tensors - 1]:
            return False
        crc32, left, buffer = 0, beginning.end, bytearray(_PIECE_NBYTES)
        while left:
            count = os.preadv(file, [memoryview(buffer)[: min(left, len(buffer))]], beginning.end - left)
            if not count:
                return False
            crc32, left = zlib.crc32(memoryview(buffer)[:count], crc32), left - count
        return crc32 == beginning.crc32
