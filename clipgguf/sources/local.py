"""Files of this machine as sources: read at any offset and from any thread, few of them open at a time."""

import contextlib
import io
import itertools
import os
import sys
import tempfile
import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, cast

from clipgguf.errors import CheckpointError, os_reason
from clipgguf.regular_file import NO_MODEL_FILES, STAND_INS, open_regular
from clipgguf.sources import Folder, Source
from clipgguf.sources.mapping import window

# How many files are open at a time, besides those that are being read. A model may have a hundred shards and a thousand
# compressed storages; some systems give a process 256 descriptors.
MOST_OPEN = 16


class _OpenFiles:
    """Which files are open; when it becomes too many, those that were not used for longest are closed."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.turns = itertools.count()
        # What nobody refers to any more closes its file, and has no place here.
        self._sources: weakref.WeakSet[OpenedSource] = weakref.WeakSet()

    def opened(self, source: "OpenedSource") -> None:
        """Take note, with the lock held, of a file that was opened, and close what is too many and not in use."""
        self._sources.add(source)
        for oldest in sorted(self._sources, key=lambda source: source.last_use)[:-MOST_OPEN]:
            if not oldest.users and not oldest.stays_open:
                oldest.close()

    def closed(self, source: "OpenedSource") -> None:
        """Take note of a file that was closed."""
        self._sources.discard(source)


_OPEN = _OpenFiles()


class OpenedSource(Source):
    """A source that is read from a file of this machine, which is opened when it is needed and closed in between."""

    read_cost = 4096

    def __init__(self, name: str, size: int) -> None:
        """Take what messages call it, and how many bytes it has."""
        self.name = name
        self.size = size
        self._opening = threading.Lock()
        self._turn = threading.Lock()
        self._file: IO[bytes] | None = None
        self._is_closing = False
        # How many are using it now, and when one last began to; the lock of the open files guards both.
        self.users = 0
        self.last_use = 0
        # Whether it should not be closed in between, because opening it once more takes long.
        self.stays_open = False

    @property
    def origin(self) -> Source:
        """The file of the model that the bytes come from."""
        return self

    def _open(self) -> IO[bytes]:
        """Open the file for reading, for the first time or again; raises CheckpointError when it cannot be."""
        raise NotImplementedError

    @contextlib.contextmanager
    def in_use(self) -> Iterator[IO[bytes]]:
        """Give the file, which stays open for so long. Raises CheckpointError when it cannot be opened."""
        with _OPEN.lock:
            self.users += 1
            self.last_use = next(_OPEN.turns)
            self._is_closing = False
        try:
            # With a user, nobody closes it.
            yield self._file or self._opened()
        finally:
            with _OPEN.lock:
                self.users -= 1
                if self._is_closing:
                    self.close()

    def _opened(self) -> IO[bytes]:
        with self._opening:
            if self._file is None:  # Nobody was quicker.
                self._file = self._open()
                # Chunks that are under way may be the last that refer to this.
                self._close_file = weakref.finalize(self, self._file.close)
                with _OPEN.lock:
                    _OPEN.opened(self)
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
            super().copy(offset, nbytes, file)

    def _unreadable(self, offset: int, nbytes: int, reason: str) -> CheckpointError:
        return CheckpointError(f"{self.name}: bytes {offset:,} to {offset + nbytes:,} cannot be read: {reason}")

    def close(self) -> None:
        """Close the file until it is used again; while it is in use, that waits."""
        with _OPEN.lock:
            self._is_closing = self.users > 0
            if self._file is not None and not self.users:
                self._file = None
                self._close_file()
                _OPEN.closed(self)


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


class LocalFile(OpenedSource):
    """A regular file, which must stay as it is."""

    def __init__(self, path: Path, refused: Mapping[bytes, str] = STAND_INS) -> None:
        """Open a file, unless it begins as something that is ``refused``. Raises CheckpointError when it cannot be."""
        super().__init__(str(path), 0)
        self.path = path
        self._refused = refused
        self._state: tuple[int, ...] | None = None
        with self.in_use():
            pass

    def _open(self) -> IO[bytes]:
        file = open_regular(self.path, CheckpointError, self._refused)
        status = os.fstat(file.fileno())
        state = status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
        problem = None
        if status.st_size < self.size:
            problem = f"has {status.st_size:,} bytes, its header asks for {self.size:,}"
        elif self._state not in (None, state):
            problem = "has changed since it was first opened, should stay as it is till the end"
        if problem is not None:
            file.close()
            raise CheckpointError(f"{self.path}: {problem}")
        self.size, self._state = status.st_size, state
        return cast(IO[bytes], file)

    @contextlib.contextmanager
    def window(self, offset: int, nbytes: int) -> Iterator[memoryview | None]:
        """Give a byte range of a safetensors file mapped into memory, to be read for so long; else None."""
        if self.path.suffix != ".safetensors":
            yield None
            return
        with self.in_use() as file, window(file.fileno(), offset, nbytes) as view:
            yield view


class LocalFolder(Folder):
    """A directory."""

    def __init__(self, path: Path) -> None:
        """Take the directory, which need not be there."""
        self.path = path
        self.name = str(path)

    @property
    def title(self) -> str:
        """The directory's base name, whatever way it is spelled; ".." is the parent's. UTF-8 whatever the locale."""
        path = self.path.absolute()
        if path.name in ("", ".."):
            path = path.resolve()
        return os.fsencode(path.name).decode("utf-8", "replace")

    def __contains__(self, file: str) -> bool:
        """Return whether there is something of this name; a broken symbolic link does not pass for nothing."""
        try:
            os.lstat(os.path.join(self.name, file))  # noqa: PTH118 - a Path takes ten times as long.
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return False
        return True

    def open(self, file: str) -> LocalFile:
        """Open a file. Raises CheckpointError when it is missing, no regular file, or none that a model has."""
        return LocalFile(self.path / file, NO_MODEL_FILES)

    def name_of(self, file: str) -> str:
        """Return a file's path."""
        return str(self.path / file)

    def folder(self, name: str) -> "LocalFolder":
        """Return a directory inside, or beside where ``name`` begins with "../"."""
        if name.startswith("../"):
            return LocalFolder(self.path.absolute().parent / name.removeprefix("../"))
        return LocalFolder(self.path / name)


def temporary_file(content: Iterable[bytes | memoryview]) -> IO[bytes]:
    """Return a new file without a name, which is gone when it is closed. Raises OSError when there is no place."""
    with contextlib.ExitStack() as on_failure:
        file: IO[bytes] = on_failure.enter_context(tempfile.TemporaryFile(prefix="clipgguf-"))
        for part in content:
            file.write(part)
        file.flush()
        on_failure.pop_all()
    return file
