"""Objects of S3, Google Cloud Storage and Azure as sources, over obstore, which knows how they are asked and signed.

The first answer's ETag goes with every other request (If-Match, RFC 9110, 13.1.1), and is compared besides: not every
store that speaks S3 looks at it.
"""

import contextlib
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import obstore
from obstore.exceptions import BaseError

from clipgguf.errors import CheckpointError
from clipgguf.regular_file import NO_MODEL_FILES, STAND_INS
from clipgguf.sources import File, Folder
from clipgguf.sources.address import StoreAddress
from clipgguf.sources.callers import CALLERS
from clipgguf.sources.expected import Files
from clipgguf.sources.fetch import PIECE_NBYTES, Body
from clipgguf.sources.ranged import NOTHING, RangedFile
from clipgguf.sources.store_client import asked, open_store
from clipgguf.sources.tries import LineError, MissingError, tried


class ObjectBody:
    """The bytes of an answer, which a thread of the callers' waits for: obstore lets nobody interrupt it."""

    def __init__(self, address: StoreAddress, result: Any) -> None:
        """Take obstore's answer."""
        self._address = address
        self._stream = iter(()) if result is None else result.stream(min_chunk_size=1)
        self._piece = memoryview(b"")
        self._next: Future[bytearray] | None = None
        self._error: LineError | None = None
        self._is_ended = False

    def read(self, nbytes: int) -> bytes:
        """Return the next bytes, at most so many. Raises LineError when the line breaks."""
        if not self._piece:
            self._next = CALLERS.submit(self._more)
            if self._is_ended:
                raise LineError("reading was ended")
            self._piece = memoryview(self._next.result())
        piece, self._piece = self._piece[:nbytes], self._piece[nbytes:]
        return bytes(piece)

    def _more(self) -> bytearray:
        """Return a piece of some size, a smaller one where the line breaks or the body ends."""
        stream, data = self._stream, bytearray()
        while len(data) < PIECE_NBYTES and self._error is None:
            try:
                if not (part := asked(self._address, lambda: next(stream, b""))):
                    break
                data += part
            except LineError as e:
                self._error = e
        if self._error is not None and not data:
            raise self._error
        return data

    def wake(self) -> None:
        """Have a thread that waits for bytes go on."""
        self._is_ended = True
        if self._next is not None:
            with contextlib.suppress(InvalidStateError):
                self._next.set_exception(LineError("reading was ended"))

    def close(self) -> None:
        """End the request, when nobody waits for it any more."""
        self._stream, self._piece = iter(()), memoryview(b"")


class ObjectFile(RangedFile):
    """An object, which must stay as it is."""

    def __init__(self, address: StoreAddress, client: Any, refused: Mapping[bytes, str] = NOTHING) -> None:
        """Ask for its beginning. Raises CheckpointError when there is none, or what is ``refused``."""
        self._address, self._client = address, client
        self._version: str | None = None
        self._tag: str | None = None
        super().__init__(str(address), refused)

    @property
    def version(self) -> str | None:
        """The object's ETag, where it stands for its bytes (RFC 9110, 8.8.1: a strong one); else None."""
        return self._tag if self._tag is not None and not self._tag.startswith("W/") else None

    def answer(self, start: int, stop: int) -> tuple[Body, int]:
        """Ask once for a range; return an answer that begins at its first byte, and the byte where it ends.

        Raises LineError when it is worth to ask again, CheckpointError when it is not.
        """
        options = {"range": (start, stop)} | ({"if_match": self._tag} if self._tag else {})
        try:
            result = asked(self._address, lambda: obstore.get(self._client, self._address.key, options=options))
        except MissingError:
            raise
        except CheckpointError:
            # Of an object without any bytes there is no range.
            if self.size < 0 and self._is_empty():
                self.size = 0
                return ObjectBody(self._address, None), 0
            raise
        meta, end = result.meta, result.range[1]
        version = meta["e_tag"] or f"{meta['last_modified']}"
        if self.size < 0:
            self.size, self._version, self._tag = meta["size"], version, meta["e_tag"]
        elif meta["size"] != self.size:
            what = f"it has changed: it had {self.size:,} bytes, and now {meta['size']:,}"
            raise CheckpointError(f"{self.name}: cannot be read: {what}")
        elif version != self._version:
            what = "it has changed: the store answers with another version (ETag) than before"
            raise CheckpointError(f"{self.name}: cannot be read: {what}")
        return ObjectBody(self._address, result), end

    def _is_empty(self) -> bool:
        try:
            return bool(obstore.head(self._client, self._address.key)["size"] == 0)
        except (BaseError, OSError):
            return False


@dataclass(frozen=True, slots=True)
class _Listing:
    """What is right under a prefix: sizes of objects and names of folders."""

    sizes: Mapping[str, int]
    folders: frozenset[str]


class StoreFolder(Folder):
    """The objects whose keys begin alike."""

    def __init__(self, address: StoreAddress, client: Any) -> None:
        """Take what the keys begin with, which need not be there."""
        prefix = address.key.rstrip("/")
        self.address, self._client = replace(address, key=f"{prefix}/" if prefix else ""), client
        self.name = str(self.address)
        self._files = Files(lambda file: ObjectFile(self._of(file), client, NO_MODEL_FILES))

    def _of(self, name: str) -> StoreAddress:
        return replace(self.address, key=self.address.key + name)

    @property
    def title(self) -> str:
        """The last part of the keys' beginning, the bucket's name where there is none."""
        return self.address.key.rstrip("/").rpartition("/")[2] or self.address.bucket

    @cached_property
    def listing(self) -> _Listing:
        """What the store lists. Raises CheckpointError when it does not."""
        client, address, prefix = self._client, self.address, self.address.key
        ask = CALLERS.submit(
            lambda: tried(
                self.name, lambda: asked(address, lambda: obstore.list_with_delimiter(client, prefix or None))
            )
        )
        found = ask.result()
        sizes = {entry["path"].removeprefix(prefix): entry["size"] for entry in found["objects"]}
        return _Listing(sizes, frozenset(name.rstrip("/").removeprefix(prefix) for name in found["common_prefixes"]))

    def __contains__(self, file: str) -> bool:
        """Return whether the store has an object or a folder of this name."""
        inside, _, name = file.rpartition("/")
        if inside:
            return name in self.folder(inside)
        return name in self.listing.sizes or name in self.listing.folders

    def open(self, file: str) -> ObjectFile:
        """Open a file. Raises CheckpointError when it is missing or none that a model has."""
        return self._files.get(file)

    def expect(self, files: Iterable[str], one_of: Iterable[str] = ()) -> None:
        """Open files at the same time, as far as they are there."""
        here, others = ([name for name in names if name in self.listing.sizes] for names in (files, one_of))
        self._files.expect([*here, *others[:1]])

    def open_any(self, file: str) -> ObjectFile:
        """Open a file that need not be a model's."""
        return ObjectFile(self._of(file), self._client, STAND_INS)

    def name_of(self, file: str) -> str:
        """Return a file's address."""
        return self.name + file

    def folder(self, name: str) -> "StoreFolder":
        """Return a folder inside, or beside where ``name`` begins with "../"."""
        if name.startswith("../"):
            above = self.address.key.rstrip("/").rpartition("/")[0]
            return StoreFolder(replace(self.address, key=f"{above}/{name[3:]}" if above else name[3:]), self._client)
        return StoreFolder(self._of(name), self._client)


def store_place(address: StoreAddress, *, is_file: bool) -> Folder | File:
    """Return what an address names: a file, or a folder. Raises CheckpointError when the store has no such folder."""
    client = open_store(address)
    if is_file and address.key and not address.key.endswith("/"):
        above, _, name = address.key.rpartition("/")
        return StoreFolder(replace(address, key=above), client).file(name)
    folder = StoreFolder(address, client)
    if not (folder.listing.sizes or folder.listing.folders):
        raise CheckpointError(f"{folder}: is missing: the store has nothing whose name begins so")
    return folder
