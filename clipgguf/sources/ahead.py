"""What tensors need from far away, as one stream of bytes in the order of the tensors, asked for ahead.

Up to MOST_IN_FLIGHT requests of REQUEST_NBYTES are under way, and their bodies are read one after the other: what comes
early waits in the system's socket buffers, and no memory of ours grows with it.
"""

import contextlib
import io
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import IO, TYPE_CHECKING, Any

from clipgguf.errors import CheckpointError
from clipgguf.sources import FarSource, Fetch, Source
from clipgguf.sources.local import OpenedSource, temporary_file
from clipgguf.tensor import Computed, Read, View

if TYPE_CHECKING:
    from numpy.typing import NDArray

# More than these, or larger ones, do not make a line of 100 MB/s and 50 ms faster (measured).
MOST_IN_FLIGHT = 16
REQUEST_NBYTES = 2 << 20
# What is read in another order than it comes in is kept for so long: so much of it in memory, more in a file.
SPOOLED_NBYTES = 1 << 20

Part = View | Computed


def stream_ahead(parts: Iterable[Part]) -> "Ahead | None":
    """Return the stream for parts in their order; None when nothing is far away."""
    found = [part for part in parts if part.nbytes]
    return Ahead(found) if any(isinstance(view.file, FarSource) for part in found for view in part.stored) else None


def read_many(file: FarSource, ranges: Sequence[tuple[int, int]]) -> dict[int, bytes]:
    """Return the bytes of small ranges by where they start, read many at a time; CheckpointError as ``read`` raises it.

    What lies so close together that reading on costs less than another request is read as one.
    """
    together: list[list[tuple[int, int]]] = []
    end = 0
    for start, stop in sorted(ranges):
        if together and start < end + file.read_cost // MOST_IN_FLIGHT and stop - together[-1][0][0] < REQUEST_NBYTES:
            together[-1].append((start, stop))
        else:
            together.append([(start, stop)])
        end = max(end, stop)
    found: dict[int, bytes] = {}
    left, under_way = iter(together), deque[tuple[Fetch, list[tuple[int, int]]]]()
    try:
        while True:
            while len(under_way) < MOST_IN_FLIGHT and (group := next(left, None)) is not None:
                under_way.append((file.fetch(group[0][0], max(stop for _, stop in group)), group))
            if not under_way:
                return found
            fetch, group = under_way[0]
            first = group[0][0]
            data = bytearray(max(stop for _, stop in group) - first)
            fetch.read(memoryview(data))
            found.update((start, bytes(data[start - first : stop - first])) for start, stop in group)
            under_way.popleft()[0].close()
    finally:
        for fetch, _ in under_way:
            fetch.close()


class Ahead:
    """The stream, of ``nbytes``. ``taken`` gives out its parts in order, in one thread; they may be read in any."""

    def __init__(self, parts: Sequence[Part]) -> None:
        """Take all parts that ``taken`` will be asked for, in order. Nothing is asked for before the first is read."""
        shares: list[Share] = []
        self._parts = deque((part, [self._share(shares, part, view) for view in part.stored]) for part in parts)
        end = 0
        for share in shares:
            share.position, end = end, end + share.stop - share.start
        self.nbytes = end
        self._ranges = _requests([(share.file, share.start, share.stop) for share in shares])
        self._under_way: deque[tuple[Fetch, list[int]]] = deque()
        self._change = threading.Condition()
        self._position = 0
        self._error: BaseException | None = None

    def _share(self, shares: "list[Share]", part: Part, view: View) -> "Share | None":
        """Add what a view needs of the stream; None when it is not far away."""
        if not isinstance(view.file, FarSource) or not view.nbytes:
            return None
        is_kept = isinstance(part, Computed) or part.strides is not None
        start, stop = view.offset, view.offset + view.extent
        last = shares[-1] if shares else None
        is_like_last = is_kept and last is not None and last.is_kept and last.file is view.file
        # Several slices of a tensor, which lie interleaved.
        if is_like_last and last is not None and start < last.stop and stop > last.start:
            last.start, last.stop = min(start, last.start), max(stop, last.stop)
            return last
        shares.append(Kept(self, view.file, start, stop) if is_kept else Share(self, view.file, start, stop))
        return shares[-1]

    def taken(self, part: Part) -> Part:
        """Return the next part, with its bytes taken from the stream where they are far away."""
        if not part.nbytes:
            return part
        given, shares = self._parts.popleft()
        assert given is part
        if isinstance(part, View):
            return part if shares[0] is None else replace(part, file=shares[0].source)
        files = [view.file if share is None else share.source for view, share in zip(part.inputs, shares, strict=True)]

        def rows(read: Read, start: int, stop: int) -> "NDArray[Any]":
            for file in files:  # In the stream's order, whatever theirs is.
                with file.in_use():
                    pass
            return part.rows(lambda view: read(_stand_in(view, part.inputs, files)), start, stop)

        return replace(part, rows=rows)

    def read(self, position: int, target: memoryview) -> bool:
        """Fill ``target`` when its turn in the stream comes; return whether it has not been before."""
        with self._change:
            self._change.wait_for(lambda: self._error is not None or self._position >= position)
            if self._error is not None:
                raise CheckpointError(*getattr(self._error, "problems", ["reading was ended"])) from self._error
            if self._position > position:
                return False
        try:
            self._fill(target)
        except BaseException as e:
            self.close(e)
            raise
        with self._change:
            self._position += len(target)
            self._change.notify_all()
        return True

    def _fill(self, target: memoryview) -> None:
        """Read on in the stream. There is one thread at a time whose turn it is."""
        while target:
            self._ask()
            fetch, left = self._under_way[0]
            part = target[: left[0]]
            fetch.read(part)
            target = target[len(part) :]
            left[0] -= len(part)
            if not left[0]:
                with self._change:
                    self._under_way.popleft()
                fetch.close()
        self._ask()

    def _ask(self) -> None:
        with self._change:
            while self._error is None and len(self._under_way) < MOST_IN_FLIGHT:
                if (wanted := next(self._ranges, None)) is None:
                    break
                file, start, stop = wanted
                self._under_way.append((file.fetch(start, stop), [stop - start]))

    def close(self, error: BaseException | None = None) -> None:
        """End all requests; who waits for bytes gets an error."""
        with self._change:
            self._error = self._error or error or CheckpointError("reading was ended")
            self._change.notify_all()
            under_way = tuple(self._under_way)
        for fetch, _ in under_way:
            fetch.close()


def _requests(ranges: Iterable[tuple[FarSource, int, int]]) -> Iterator[tuple[FarSource, int, int]]:
    """Yield ranges to ask for: what is adjacent in the stream and in its file is joined, and then cut."""
    last: tuple[FarSource, int, int] | None = None
    for file, start, stop in ranges:
        if last is not None and last[0] is file and last[2] == start:
            start = last[1]
        elif last is not None:
            yield last
        while stop - start > REQUEST_NBYTES:
            yield file, start, start + REQUEST_NBYTES
            start += REQUEST_NBYTES
        last = file, start, stop
    if last is not None:
        yield last


class Share(Source):
    """A range of a file, from where the stream has it, at the offsets that its bytes have in the file."""

    is_kept = False

    def __init__(self, ahead: Ahead, file: FarSource, start: int, stop: int, position: int = 0) -> None:
        """Take the range, and where the stream has it."""
        self.ahead, self.file, self.start, self.stop, self.position = ahead, file, start, stop, position
        self.name, self.size, self.read_cost = file.name, file.size, file.read_cost

    @property
    def source(self) -> Source:
        """What it is read from."""
        return self

    def read(self, offset: int, target: memoryview) -> None:
        """Fill ``target`` from the stream, from the file itself when that is not for the first time."""
        if not self.ahead.read(self.position + offset - self.start, target):
            self.file.read(offset, target)

    def close(self) -> None:
        """Do nothing: there are others in the stream."""


class Kept(Share):
    """A range that is read in another order, or several times."""

    is_kept = True

    @cached_property
    def source(self) -> Source:
        """What it is read from, and gone when nobody has that or this any more."""
        return _Spool(Share(self.ahead, self.file, self.start, self.stop, self.position))


class _Spool(OpenedSource):
    """The bytes of a range in memory, or in a temporary file where there are many."""

    def __init__(self, share: Share) -> None:
        super().__init__(share.name, share.size)
        self._share, self._length = share, share.stop - share.start
        self._bytes: memoryview | None = None
        self._taking = threading.Lock()
        self.stays_open = True

    @property
    def origin(self) -> Source:
        return self._share.file

    def _open(self) -> IO[bytes]:
        what = f"{self.name}: a tensor of {self._length:,} bytes cannot be kept in"
        return temporary_file(self._pieces(), what)

    def _pieces(self) -> Iterator[memoryview]:
        buffer = memoryview(bytearray(min(SPOOLED_NBYTES, self._length)))
        for at in range(0, self._length, len(buffer)):
            piece = buffer[: self._length - at]
            self._share.read(self._share.start + at, piece)
            yield piece

    @contextlib.contextmanager
    def in_use(self) -> Iterator[IO[bytes]]:
        """Have the bytes for so long."""
        if self._length > SPOOLED_NBYTES:
            with super().in_use() as file:
                yield file
            return
        with self._taking:
            if self._bytes is None:
                self._bytes = next(self._pieces())
        yield io.BytesIO()

    def read(self, offset: int, target: memoryview) -> None:
        """Fill ``target``, at the offsets of the range's file."""
        at = offset - self._share.start
        with self.in_use():
            if self._bytes is None:
                super().read(at, target)
            else:
                target[:] = self._bytes[at : at + len(target)]


def _stand_in(view: View, inputs: Sequence[View], files: Sequence[Source]) -> View:
    """Return a part of one of the inputs with its bytes where that input's are."""
    for old, file in zip(inputs, files, strict=True):
        if view.file is old.file and old.offset <= view.offset and view.offset + view.extent <= old.offset + old.extent:
            return replace(view, file=file)
    return view
