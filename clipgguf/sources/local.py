"""Files of this machine as sources: read at any offset and from any thread, few of them open at a time."""

import contextlib
import io
import itertools
import os
import re
import sys
import tempfile
import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping
from operator import attrgetter
from pathlib import Path
from typing import IO, cast

from clipgguf.errors import CheckpointError, os_reason
from clipgguf.regular_file import NO_MODEL_FILES, STAND_INS, open_regular
from clipgguf.sources import Folder, Source
from clipgguf.sources.mapping import window

# A snapshot of a model in the hub's cache, and what is in it (huggingface_hub's documentation, "Understand caching").
_SNAPSHOT = re.compile(r"/models--(?:[^/]+--)?(?P<name>[^/]+)/snapshots/(?P<commit>[0-9a-f]{40})(?P<inside>/.+)?$")
# How many files are open at a time, besides those that are being read. A model may have a hundred shards and a thousand
# compressed storages; some systems give a process 256 descriptors.
MOST_OPEN = 16
# Whose files are open. What nobody refers to any more closes its file, and has no place here.
_OPEN: "weakref.WeakSet[OpenedSource]" = weakref.WeakSet()
# Guards that, and how many are using a source and when.
_LOCK = threading.RLock()
_TURNS = itertools.count()


class OpenedSource(Source):
    """A source that is read from a file of this machine, which is opened when it is needed and closed in between."""

    read_cost = 4096

    def __init__(self, name: str, size: int) -> None:
        """Take what messages call it, and how many bytes it has."""
        self.name, self.size = name, size
        self._opening = threading.Lock()
        self._turn = threading.Lock()
        self._file: IO[bytes] | None = None
        self._is_closing = False
        # How many are using it now, and when one last began to.
        self._users = self._last_use = 0
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
        with _LOCK:
            self._users += 1
            self._last_use = next(_TURNS)
            self._is_closing = False
        try:
            # With a user, nobody closes it.
            yield self._file or self._opened()
        finally:
            with _LOCK:
                self._users -= 1
                if self._is_closing:
                    self.close()

    def _opened(self) -> IO[bytes]:
        with self._opening:
            if self._file is None:  # Nobody was quicker.
                self._file = self._open()
                # Chunks that are under way may be the last that refer to this.
                self._close_file = weakref.finalize(self, self._file.close)
                with _LOCK:
                    _OPEN.add(self)
                    # Of too many, those go that were not used for longest.
                    for oldest in sorted(_OPEN, key=attrgetter("_last_use"))[:-MOST_OPEN]:
                        if not oldest._users and not oldest.stays_open:
                            oldest.close()
            return self._file

    def read(self, offset: int, target: memoryview) -> None:
        """Fill ``target``, of single bytes, with those from ``offset`` on; CheckpointError when they cannot be read."""
        done = 0
        with self.in_use() as file:
            try:
                while done < len(target):
                    count = self._read_some(file, offset + done, target[done:])
                    if not count:
                        raise OSError("the file has become shorter")
                    done += count
            except OSError as e:
                what = f"bytes {offset:,} to {offset + len(target):,} cannot be read"
                raise CheckpointError(f"{self.name}: {what}: {os_reason(e)}") from e

    def _read_some(self, file: IO[bytes], offset: int, target: memoryview) -> int:
        if sys.platform != "win32":
            return os.preadv(file.fileno(), [target], offset)
        with self._turn:  # Windows has one position for all threads.
            file.seek(offset)
            return cast(io.BufferedReader, file).readinto(target)

    def close(self) -> None:
        """Close the file until it is used again; while it is in use, that waits."""
        with _LOCK:
            self._is_closing = self._users > 0
            if self._file is not None and not self._users:
                self._file = None
                self._close_file()
                _OPEN.discard(self)


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

    @property
    def version(self) -> str | None:
        """Which file it is, of what size, and when it was written."""
        return repr(self._state)

    def _open(self) -> IO[bytes]:
        file = open_regular(self.path, CheckpointError, self._refused)
        status = os.fstat(file.fileno())
        state = status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
        if self._state not in (None, state):
            file.close()
            if status.st_size < self.size:
                raise CheckpointError(f"{self.path}: has {status.st_size:,} bytes, its header asks for {self.size:,}")
            problem = "has changed since it was first opened, should stay as it is till the end"
            raise CheckpointError(f"{self.path}: {problem}")
        self.size, self._state = status.st_size, state
        return cast(IO[bytes], file)

    def read_at_once(self, offset: int, target: memoryview) -> bool:
        """Fill ``target`` if the page cache has it all; return whether it did. Only Linux can tell."""
        if sys.platform != "linux":
            return False
        with self.in_use() as file, contextlib.suppress(OSError):
            return os.preadv(file.fileno(), [target], offset, os.RWF_NOWAIT) == len(target)
        return False

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
        self.path, self.name = path, str(path)
        self._snapshot = _SNAPSHOT.search(self._whole.as_posix())
        self.commit = self._snapshot and self._snapshot["commit"]

    @property
    def _whole(self) -> Path:
        path = self.path.absolute()
        return path.resolve() if path.name == ".." else path

    @property
    def title(self) -> str:
        """The directory's base name, whatever way it is spelled; ".." is the parent's. UTF-8 whatever the locale.

        A snapshot in the hub's cache is called as the model is, and not as its commit.
        """
        if self._snapshot and not self._snapshot["inside"]:
            return self._snapshot["name"]
        return os.fsencode(self._whole.name).decode("utf-8", "replace")

    @property
    def home(self) -> Path | None:
        """The directory itself, unless it is of the hub's cache, which is huggingface_hub's."""
        return None if self._snapshot else self.path

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


def temporary_file(content: Iterable[bytes | memoryview], failure: str) -> IO[bytes]:
    """Return a new file without a name, which is gone when it is closed.

    Raises CheckpointError when there is no place; ``failure`` is the message up to "a temporary file".
    """
    try:
        with contextlib.ExitStack() as on_failure:
            file: IO[bytes] = on_failure.enter_context(tempfile.TemporaryFile(prefix="clipgguf-"))
            for part in content:
                file.write(part)
            file.flush()
            on_failure.pop_all()
        return file
    except OSError as e:
        raise CheckpointError(f"{failure} a temporary file: {os_reason(e)}") from e
