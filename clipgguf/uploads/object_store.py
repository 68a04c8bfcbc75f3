"""A file that is uploaded to an object store while it is made: a GGUF file is written from front to back.

An upload of several parts becomes an object when it is completed (Amazon S3 API Reference, "CompleteMultipartUpload";
Google's XML API and Azure's block lists are alike), and until then nothing of it can be seen.
"""

from collections.abc import Callable
from concurrent.futures import TimeoutError as FutureTimeoutError
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import obstore
from obstore.exceptions import BaseError

from clipgguf.errors import CheckpointError, OutputError
from clipgguf.jobs import Chunk
from clipgguf.planning import Plan
from clipgguf.sources.address import StoreAddress
from clipgguf.sources.callers import CALLERS
from clipgguf.sources.store_client import open_store, why
from clipgguf.sources.tries import MOST_TRIES
from clipgguf.stream import ChunkStream
from clipgguf.workers import thread_count
from clipgguf.writer import Layout, Progress, follow

T = TypeVar("T")

if TYPE_CHECKING:
    from typing_extensions import Buffer

# A part, of which stores take 10,000 at most: 84 GB. One is filled while the others are under way.
PART_NBYTES = 8 << 20
PARTS_UNDER_WAY = 2
# What is collected before a thread hands it to obstore: there may be many small tensors.
_SMALL_NBYTES = 1 << 16
# How long the end of an upload that failed is waited for, in seconds. The store may have been what failed.
_ABORT_SECONDS = 5.0


def upload(
    plan: Plan, address: StoreAddress, *, threads: int | None = None, progress: Progress | None = None
) -> dict[str, int]:
    """Upload the file that a plan describes; see ``uploads.upload_plan``."""
    layout, overflows = Layout.of(plan), dict[str, int]()
    with ChunkStream(plan.tensors, thread_count(threads)) as stream, _Upload(address) as file:
        for part in layout.header:
            file.send(part)

        def take(number: int, position: int, chunk: Chunk) -> None:
            assert isinstance(chunk.data, memoryview)
            file.send(bytes(position - file.sent))
            file.send(chunk.data)

        follow(plan, stream, layout, take, overflows, progress)
        file.send(bytes(layout.size - file.sent))
    return overflows


def object_size(address: StoreAddress) -> int | None:
    """Return the bytes of an object, None where there is none; OutputError when the store does not say."""
    client = _client(address)

    def ask() -> int | None:
        try:
            return int(obstore.head(client, address.key)["size"])
        except FileNotFoundError:
            return None

    return _done(address, ask)


class _Upload:
    """An upload; a context manager that completes it, or aborts it after an error."""

    def __init__(self, address: StoreAddress) -> None:
        self.address = address
        self.sent = 0
        self._kept = bytearray()
        self._writer: Any = None

    def __enter__(self) -> "_Upload":
        client = _client(self.address)
        self._writer = obstore.open_writer(
            client, self.address.key, buffer_size=PART_NBYTES, max_concurrency=PARTS_UNDER_WAY
        )
        return self

    def send(self, data: "Buffer") -> None:
        """Send what comes next, soon. Raises OutputError when the store does not take it."""
        nbytes = len(memoryview(data))
        self.sent += nbytes
        if len(self._kept) + nbytes <= _SMALL_NBYTES:
            self._kept += data
            return
        self._send_kept()
        writer = self._writer
        _done(self.address, lambda: writer.write(data))

    def _send_kept(self) -> None:
        if self._kept:
            kept, self._kept = self._kept, bytearray()
            writer = self._writer
            _done(self.address, lambda: writer.write(kept))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        writer = self._writer
        if error is None:
            try:
                self._send_kept()
            except BaseException as e:
                self._abort(e)
                raise
            _done(self.address, lambda: writer.__exit__(None, None, None))
            return
        self._abort(error)

    def _abort(self, error: BaseException) -> None:
        writer = self._writer
        ending = CALLERS.submit(lambda: writer.__exit__(type(error), error, None))
        try:
            ending.exception(_ABORT_SECONDS)
        except FutureTimeoutError:
            return


def _client(address: StoreAddress) -> Any:
    try:
        return open_store(address, retries=MOST_TRIES - 1)
    except CheckpointError as e:
        raise OutputError(*e.problems) from e


def _done(address: StoreAddress, do: Callable[[], T]) -> T:
    """Have something done by a thread that can be left, as obstore lets nobody interrupt it. Raises OutputError."""
    try:
        return CALLERS.submit(do).result()
    except (BaseError, OSError, ValueError) as e:
        raise OutputError(f"{address}: cannot be written: {why(address, e)[0]}") from e
