"""The files that a checkpoint's tensors are read from: ranges of bytes, at any offset and from any thread."""

import contextlib
import io
import itertools
import os
import sys
import tempfile
import threading
import weakref
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, cast

from clipgguf.errors import CheckpointError, os_reason
from clipgguf.regular_file import open_regular
from clipgguf.sources.mapping import window

# How many bytes are copied at a time where the system does not copy by itself.
COPY_NBYTES = 1 << 20
# How many files are open at a time, besides those that are being read. A model may have a hundred shards and a thousand
# compressed storages; some systems give a process 256 descriptors.
MOST_OPEN = 16


class OpenFiles:
    """Which files are open; when it becomes too many, those that were not used for longest are closed."""

    def __init__(self) -> None:
        """Begin with none."""
        self.lock = threading.Lock()
        self.turns = itertools.count()
        # What nobody refers to any more closes its file, and has no place here.
        self._sources: weakref.WeakSet[SourceBytes] = weakref.WeakSet()

    def opened(self, source: "SourceBytes") -> None:
        """Take note, with the lock held, of a file that was opened, and close what is too many and not in use."""
        self._sources.add(source)
        for oldest in sorted(self._sources, key=lambda source: source.last_use)[:-MOST_OPEN]:
            if not oldest.users and not oldest.stays_open:
                oldest.close()

    def closed(self, source: "SourceBytes") -> None:
        """Take note of a file that was closed."""
        self._sources.discard(source)

    def close(self) -> None:
        """Close all files."""
        for source in list(self._sources):
            source.close()


class SourceBytes:
    """A file that tensors are read from, at any offset and from any thread: opened when needed, and closed in between.

    The bytes are read, or mapped into memory a window at a time: a map of the whole file would count as resident memory
    as far as it was ever used.
    """

    def __init__(self, path: Path, open_files: OpenFiles | None = None) -> None:
        """Take what messages call the file, and what it is counted among while it is open."""
        self.path = path
        self._open_files = open_files or OpenFiles()
        self._opening = threading.Lock()
        self._turn = threading.Lock()
        self._file: IO[bytes] | None = None
        # How many are using it now, and when one last began to; the lock of the open files guards both.
        self.users = 0
        self.last_use = 0
        # Whether it should not be closed in between, because opening it once more takes long.
        self.stays_open = False

    def _open(self) -> IO[bytes]:
        """Open the file for reading, for the first time or again; raises CheckpointError when it cannot be."""
        raise NotImplementedError

    @contextlib.contextmanager
    def in_use(self) -> Iterator[IO[bytes]]:
        """Give the file, which stays open for so long. Raises CheckpointError when it cannot be opened."""
        with self._open_files.lock:
            self.users += 1
            self.last_use = next(self._open_files.turns)
        try:
            # With a user, nobody closes it.
            yield self._file or self._opened()
        finally:
            with self._open_files.lock:
                self.users -= 1

    def _opened(self) -> IO[bytes]:
        with self._opening:
            if self._file is None:  # Nobody was quicker.
                self._file = self._open()
                # Chunks that are under way may be the last that refer to this.
                self._close_file = weakref.finalize(self, self._file.close)
                with self._open_files.lock:
                    self._open_files.opened(self)
            return self._file

    def read(self, offset: int, target: memoryview) -> None:
        """Fill ``target``, of single bytes, with those from ``offset`` on; CheckpointError when they cannot be read."""
        done = 0
        with self.in_use() as file:
            while done < len(target):
                try:
                    count = self._read_some(file, offset + done, target[done:])
                except OSError as e:
                    raise self._unreadable(offset, len(target), os_reason(e)) from e
                if not count:
                    raise self._unreadable(offset, len(target), "the file has become shorter")
                done += count

    def _read_some(self, file: IO[bytes], offset: int, target: memoryview) -> int:
        if sys.platform != "win32":
            return os.preadv(file.fileno(), [target], offset)
        with self._turn:  # Windows has one position for all threads.
            file.seek(offset)
            return cast(io.BufferedReader, file).readinto(target)

    def window(self, offset: int, nbytes: int) -> AbstractContextManager[memoryview | None]:
        """Give a byte range mapped into memory, for so long and only to be read; None where it has to be read.

        Raises CheckpointError when the file cannot be opened.
        """
        return contextlib.nullcontext()

    def copy(self, offset: int, nbytes: int, file: IO[bytes]) -> None:
        """Write a byte range to a buffered file at its position, without a copy in this process where Linux can.

        Raises CheckpointError when the range cannot be read, OSError when it cannot be written.
        """
        with self.in_use() as source:
            if sys.platform == "linux":
                file.flush()
                sent = _send(source.fileno(), offset, nbytes, file.fileno())
                offset, nbytes = offset + sent, nbytes - sent
                file.seek(os.lseek(file.fileno(), 0, os.SEEK_CUR))  # The buffered file does not know how far it got.
            buffer = memoryview(bytearray(min(nbytes, COPY_NBYTES)))
            while nbytes:
                part = buffer[:nbytes]
                self.read(offset, part)
                file.write(part)
                offset, nbytes = offset + len(part), nbytes - len(part)

    def _unreadable(self, offset: int, nbytes: int, reason: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: bytes {offset:,} to {offset + nbytes:,} cannot be read: {reason}")

    def close(self) -> None:
        """Close the file until it is used again."""
        if self._file is not None:
            self._file = None
            self._close_file()
            self._open_files.closed(self)


if sys.platform == "linux":

    def _send(file: int, offset: int, nbytes: int, out: int) -> int:
        """Have the system copy a range to a file's position; return how many bytes it copied before it gave up.

        Some files it cannot send from or to, and of an error it does not say whose it is: reading and writing from
        there on does.
        """
        sent = 0
        with contextlib.suppress(OSError):
            while sent < nbytes and (count := os.sendfile(out, file, offset + sent, nbytes - sent)):
                sent += count
        return sent


class SourceFile(SourceBytes):
    """A file of the checkpoint."""

    def __init__(self, path: Path, size: int, open_files: OpenFiles | None = None) -> None:
        """Open a file that must have at least ``size`` bytes.

        Raises CheckpointError when it cannot be opened or has become shorter since its header was read.
        """
        super().__init__(path, open_files)
        self._size = size
        self._state: tuple[int, ...] | None = None
        with self.in_use():
            pass

    def _open(self) -> IO[bytes]:
        file = open_regular(self.path, CheckpointError)
        status = os.fstat(file.fileno())
        state = status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
        problem = None
        if status.st_size < self._size:
            problem = f"has {status.st_size:,} bytes, its header asks for {self._size:,}"
        elif self._state not in (None, state):
            problem = "has changed since it was first opened, should stay as it is till the end"
        if problem is not None:
            file.close()
            raise CheckpointError(f"{self.path}: {problem}")
        self._state = state
        return cast(IO[bytes], file)

    @contextlib.contextmanager
    def window(self, offset: int, nbytes: int) -> Iterator[memoryview | None]:
        """Give a byte range of a safetensors file mapped into memory; see SourceBytes."""
        if self.path.suffix != ".safetensors":
            yield None
            return
        with self.in_use() as file, window(file.fileno(), offset, nbytes) as view:
            yield view


def temporary_file(content: Iterable[bytes | memoryview]) -> IO[bytes]:
    """Return a new file without a name, which is gone when it is closed. Raises OSError when there is no place."""
    with contextlib.ExitStack() as on_failure:
        file: IO[bytes] = on_failure.enter_context(tempfile.TemporaryFile(prefix="clipgguf-"))
        for part in content:
            file.write(part)
        file.flush()
        on_failure.pop_all()
    return file
