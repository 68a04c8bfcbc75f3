"""Where the bytes of a model lie: files and folders of them, on this machine or elsewhere."""

import io
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from typing_extensions import Buffer


class Source(Protocol):
    """The bytes of one file, at any offset and from any thread."""

    name: str  # What messages call it.
    size: int
    read_cost: int  # How many bytes could be read in the time that one more request takes.

    def __str__(self) -> str:
        """Return the name, so that messages can have the source itself."""
        return self.name

    @property
    def version(self) -> str | None:
        """What these bytes have in common with no others of that name; None where nothing tells them from others."""
        return None

    def read(self, offset: int, target: memoryview) -> None:
        """Fill ``target``, of single bytes, with those from ``offset`` on; CheckpointError when they cannot be read."""

    def close(self) -> None:
        """Give back what reading takes, until the next time; those that are reading keep it till they are done."""

    def in_use(self) -> AbstractContextManager[object]:
        """Keep for so long what reading takes. Raises CheckpointError when there is nothing to read any more."""
        return nullcontext()

    def window(self, offset: int, nbytes: int) -> AbstractContextManager[memoryview | None]:
        """Give a byte range mapped into memory, for so long and only to be read; None where it has to be read."""
        return nullcontext()

    def read_at_once(self, offset: int, target: memoryview) -> bool:
        """Fill ``target`` as read does if that needs no wait; return whether it did, else it may be filled in part."""
        return False


class Fetch(Protocol):
    """A range of a source that was asked for, and comes in order."""

    def read(self, target: memoryview) -> None:
        """Fill ``target`` with the next bytes. Raises CheckpointError when they do not come."""

    def close(self) -> None:
        """End it, whether or not all was read; also while another thread reads, which then gets an error."""


class FarSource(Source):
    """A source over a line on which one request takes long, so that many are sent before their bytes are needed."""

    def fetch(self, start: int, stop: int) -> Fetch:
        """Ask for a range, without waiting for it."""
        raise NotImplementedError


class Folder(Protocol):
    """The files of a model by name: a directory, or what is like one elsewhere. ``name`` is what messages call it."""

    name: str
    # The revision that was asked for, and the commit that is read, of what has any.
    revision: str | None = None
    commit: str | None = None
    # The files that were looked for, and count as missing because they may not be read.
    refused: "Sequence[str]" = ()

    @property
    def title(self) -> str:
        """The model's name where nothing else says it."""
        return self.name

    @property
    def home(self) -> Path | None:
        """The directory that files made of it go into unless they are asked for elsewhere; None without one."""
        return None

    def __str__(self) -> str:
        """Return the name, so that messages can have the folder itself."""
        return self.name

    def __contains__(self, file: str) -> bool:
        """Return whether there is something of this name, readable or not."""

    def expect(self, files: "Iterable[str]", one_of: "Iterable[str]" = ()) -> None:
        """Learn which files will be looked for soon, and of others the first that is there.

        Where opening one takes long, they are opened at the same time.
        """
        return

    def open(self, file: str) -> Source:
        """Open a file. Raises CheckpointError when it is missing or none that a model has."""

    def open_any(self, file: str) -> Source:
        """Open a file that need not be one that a model has; CheckpointError when it is missing."""
        return self.open(file)

    def name_of(self, file: str) -> str:
        """Return what messages call a file of this name, also where there is none."""

    def folder(self, name: str) -> "Folder":
        """Return a folder inside, or beside where ``name`` begins with "../"; it need not be there."""

    def file(self, name: str) -> "File":
        """Return a file by name; it need not be there."""
        return File(self, name)


@dataclass(frozen=True, slots=True)
class File:
    """A file of a folder, by its name; it need not be there."""

    folder: Folder
    name: str

    def __str__(self) -> str:
        """Return what messages call it."""
        return self.folder.name_of(self.name)

    @property
    def is_present(self) -> bool:
        """Whether there is something of this name, readable or not."""
        return self.name in self.folder

    def open(self) -> Source:
        """Open it. Raises CheckpointError when it is missing or none that a model has."""
        return self.folder.open(self.name)


class SourceIO(io.RawIOBase):
    """A source as an unbuffered file with a position; reads as much as is asked for, and less only at its end."""

    def __init__(self, source: Source, position: int = 0) -> None:
        """Take the source and where to begin."""
        self._source = source
        self._position = position

    def readable(self) -> bool:
        """Return that this can be read."""
        return True

    def seekable(self) -> bool:
        """Return that the position can be set."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Set the position. Raises ValueError for one before the beginning."""
        position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._source.size}[whence]
        if position < 0:
            raise ValueError(f"negative seek position {position}")
        self._position = position
        return position

    def readinto(self, buffer: "Buffer") -> int:
        """Fill a buffer, as far as the source goes, and return how many bytes that were."""
        target = memoryview(buffer).cast("B")[: max(0, self._source.size - self._position)]
        if len(target):
            self._source.read(self._position, target)
        self._position += len(target)
        return len(target)

    def read(self, size: int | None = -1, /) -> bytes:
        """Read so many bytes, all that are left without a number; never more memory than there are bytes."""
        left = max(0, self._source.size - self._position)
        target = bytearray(left if size is None or size < 0 else min(size, left))
        self.readinto(target)
        return bytes(target)
