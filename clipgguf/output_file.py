"""A file that appears under its name when it is complete: a temporary one beside it, locked while it is written."""

import contextlib
import os
import re
import shutil
import stat
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from clipgguf.errors import OutputError, os_reason
from clipgguf.partial_file import RECORD_NAME, is_kept, kept_nbytes, record_of

if sys.platform != "win32":
    import fcntl

if TYPE_CHECKING:
    from typing_extensions import Buffer

# A name of its own, and not one made from the file's, which may already be as long as names can be.
TEMPORARY_NAME = re.compile(r"\.clipgguf-[0-9a-f]{16}\.tmp")
# Windows removes no file that is open, so that no lock is needed there; but just before it is renamed it is closed.
WINDOWS_GRACE_SECONDS = 60
# What one call of the system takes: 1,024 on Linux and macOS.
MOST_PARTS = 512


@contextlib.contextmanager
def replacing(path: Path, nbytes: int) -> Iterator[Path]:
    """Give the path of a new file to write about ``nbytes`` to; it replaces ``path`` when the block ends in success.

    Missing directories are made. A file that is replaced gives the new one its mode and, where the system lets us, its
    owner. Raises OutputError when the disk has too little room, and for any OSError, also of the block; then, as after
    Ctrl-C, nothing new is left behind, unless the block has made a record of what is there (``partial_file``).
    """
    temporary = path.with_name(f".clipgguf-{os.urandom(8).hex()}.tmp")
    made: list[Path] = []
    try:
        if path.is_dir():
            raise OutputError(f"{path}: is a directory, should be a file name")
        try:
            for missing in reversed([d for d in path.parents if not d.exists()]):
                with contextlib.suppress(FileExistsError):  # Another process was quicker.
                    missing.mkdir()
                    made.append(missing)
            remove_leftovers(path.parent)
            check_room(path, nbytes - kept_nbytes(path), path.parent)
            with _locked(temporary):
                _take_after(path, temporary)
                yield temporary
                temporary.replace(path)
        except BaseException:
            if is_kept(temporary):
                raise
            with contextlib.suppress(OSError):  # Not even the directory is there, or may be searched.
                temporary.unlink()
            for directory in reversed(made):
                with contextlib.suppress(OSError):  # Somebody else has put something there in the meantime.
                    directory.rmdir()
            raise
    except OSError as e:
        raise OutputError(f"{path}: cannot be written: {os_reason(e)}") from e


def _take_after(path: Path, temporary: Path) -> None:
    """Give a new file the owner and the mode of the one that it will replace, before anything is in it."""
    if sys.platform == "win32":  # There is no owner to keep, and the only mode is read-only.
        return
    with contextlib.suppress(OSError):  # Nothing is replaced; or the file system has no modes.
        old, new = path.stat(), temporary.stat()
        if (old.st_uid, old.st_gid) != (new.st_uid, new.st_gid):
            with contextlib.suppress(PermissionError):  # Only root can give a file away.
                os.chown(temporary, old.st_uid, old.st_gid)
        # It has to be written to, whatever the old one allowed.
        temporary.chmod(stat.S_IMODE(old.st_mode) | stat.S_IRUSR | stat.S_IWUSR)


def remove_leftovers(directory: Path) -> None:
    """Remove temporary files of killed processes, known by the missing lock; what cannot be removed stays.

    What a conversion may go on with stays for a while.
    """
    with contextlib.suppress(OSError):  # A directory that may be written to, but not listed.
        for path in directory.iterdir():
            with contextlib.suppress(OSError):
                if TEMPORARY_NAME.fullmatch(path.name) and not is_kept(path):
                    _remove_unless_in_use(path)
                    record_of(path).unlink(missing_ok=True)
                elif RECORD_NAME.fullmatch(path.name) and not path.with_suffix(".tmp").exists():
                    path.unlink()


def check_room(path: Path, nbytes: int, directory: Path) -> None:
    """Raise OutputError when the disk of a directory has no room for ``path``, a file of so many bytes."""
    usage = shutil.disk_usage(directory)
    if usage.total and usage.free < nbytes:  # Some network file systems know nothing of their size.
        raise OutputError(f"{path}: needs {nbytes:,} bytes, its disk has {usage.free:,} free")


if sys.platform == "win32":

    @contextlib.contextmanager
    def _locked(path: Path) -> Iterator[None]:
        """Make a new file; while it is open, nobody can remove it."""
        path.touch(exist_ok=False)
        yield

    def _remove_unless_in_use(path: Path) -> None:
        if time.time() - path.stat().st_mtime > WINDOWS_GRACE_SECONDS:
            path.unlink()

else:

    @contextlib.contextmanager
    def _locked(path: Path) -> Iterator[None]:
        """Make a new file, and hold a lock on it where there are locks."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
        file = os.open(path, flags, 0o666)
        try:
            with contextlib.suppress(OSError):  # A file system without locks: nobody will lock the file to remove it.
                fcntl.flock(file, fcntl.LOCK_EX)
                while not path.exists():  # Somebody was quicker with a lock, and took the file for a leftover.
                    os.close(file)
                    file = os.open(path, flags, 0o666)
                    fcntl.flock(file, fcntl.LOCK_EX)
            yield
        finally:
            os.close(file)

    def _remove_unless_in_use(path: Path) -> None:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            if stat.S_ISREG(os.fstat(file).st_mode):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
        finally:
            os.close(file)


class PlacedFile:
    """A file that is written at any position and from any thread; a context manager that closes it."""

    def __init__(self, path: Path) -> None:
        """Open a file that is there. Raises OSError."""
        self._file = path.open("r+b", buffering=0)
        self._turn = threading.Lock()

    def __enter__(self) -> "PlacedFile":
        """Return the file itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self._file.close()

    def fileno(self) -> int:
        """Return the system's number of it."""
        return self._file.fileno()

    def write(self, position: int, parts: "Sequence[Buffer]") -> None:
        """Write parts one after the other, from a position on. Raises OSError."""
        for first in range(0, len(parts), MOST_PARTS):
            position = self._write(position, parts[first : first + MOST_PARTS])

    def _write(self, position: int, parts: "Sequence[Buffer]") -> int:
        end = position + sum(len(memoryview(part)) for part in parts)
        if hasattr(os, "pwritev"):
            position += os.pwritev(self.fileno(), parts, position)
        if position < end:  # There is no such function; or a disk that is full takes a part, and says why of the rest.
            rest = memoryview(b"".join(parts))[position - end :]
            with self._turn:
                self._file.seek(position)
                while rest:
                    rest = rest[self._file.write(rest) :]
        return end

    def finish(self, size: int) -> None:
        """Give the file its size, and wait until it is on disk. Raises OSError."""
        self._file.truncate(size)
        os.fsync(self.fileno())
