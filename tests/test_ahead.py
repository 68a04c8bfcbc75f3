"""What is read ahead: every byte in its order, once, whatever the tensors do with it, and an end at any moment."""

import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType

from clipgguf import CheckpointError, Options, convert
from clipgguf.families import _open
from clipgguf.planning import PlannedTensor, make_plan
from clipgguf.sources import FarSource, Fetch
from clipgguf.sources.ahead import MOST_IN_FLIGHT, REQUEST_NBYTES, Ahead, read_many, stream_ahead
from clipgguf.sources.web_folder import WebFolder
from clipgguf.stream import ChunkStream
from clipgguf.tensor import Computed, View
from clipgguf.writer import write_plan
from tests.family_fixtures import Fixture, fixtures, mostly_slow, named
from tests.hub_server import Fault, HubServer


class Far(FarSource):
    """Bytes far away, which count what is asked for."""

    read_cost = 1 << 20

    def __init__(self, nbytes: int, broken_at: int | None = None) -> None:
        self.name, self.size, self.broken_at = "far", nbytes, broken_at
        self.data = np.random.default_rng(1).integers(0, 256, nbytes, np.uint8).tobytes()
        self.asked: list[tuple[int, int]] = []
        self.direct: list[int] = []
        self.open = self.most_open = 0

    def read(self, offset: int, target: memoryview) -> None:
        """Fill the target."""
        self.direct.append(offset)
        target[:] = self.data[offset : offset + len(target)]

    def close(self) -> None:
        """Do nothing."""

    def fetch(self, start: int, stop: int) -> "FarFetch":
        """Ask."""
        self.asked.append((start, stop))
        self.open += 1
        self.most_open = max(self.open, self.most_open)
        return FarFetch(self, start)


class FarFetch(Fetch):
    """A range."""

    def __init__(self, file: Far, at: int) -> None:
        self.file, self.at = file, at

    def read(self, target: memoryview) -> None:
        """Fill the target."""
        if self.file.broken_at is not None and self.at + len(target) > self.file.broken_at:
            raise CheckpointError("far: the line is broken")
        target[:] = self.file.data[self.at : self.at + len(target)]
        self.at += len(target)

    def close(self) -> None:
        """Count."""
        self.file.open -= 1


def view(file: Far, offset: int, rows: int, columns: int, strides: tuple[int, ...] | None = None) -> View:
    return View("t", "F32", (rows, columns), file, offset, 4 * rows * columns, strides)


def read(part: View, offset: int = 0, nbytes: int | None = None) -> bytes:
    target = bytearray(part.extent if nbytes is None else nbytes)
    part.file.read(part.offset + offset, memoryview(target))
    return bytes(target)


def test_what_is_adjacent_is_joined_and_cut() -> None:
    file = Far(9 * REQUEST_NBYTES)
    parts = [
        view(file, 64, 1, 16),
        view(file, 128, 1, REQUEST_NBYTES // 2),
        view(file, 0, 1, 16),
        view(file, 9999, 0, 1),
    ]
    ahead = stream_ahead(parts)
    assert ahead is not None
    assert file.asked == []
    taken = [ahead.taken(part) for part in parts]
    for part, new in zip(parts, taken, strict=True):
        assert isinstance(new, View)
        assert read(new) == file.data[part.offset : part.offset + part.nbytes]
    bounds = [64, 64 + REQUEST_NBYTES, 64 + 2 * REQUEST_NBYTES, 128 + 2 * REQUEST_NBYTES]
    assert file.asked == [*pairwise(bounds), (0, 64)]
    assert (file.open, file.direct) == (0, [9999])  # Where there is nothing to read.
    # Once more, it is read by itself.
    assert isinstance(taken[0], View)
    assert read(taken[0]) == file.data[64:128]
    assert file.direct == [9999, 64]


def test_many_requests_are_under_way_and_no_more() -> None:
    file = Far(40 * REQUEST_NBYTES)
    part = view(file, 0, 1, file.size // 4)
    new = Ahead([part]).taken(part)
    assert isinstance(new, View)
    for at in range(0, file.size, 1 << 20):
        assert read(new, at, 1 << 20) == file.data[at : at + (1 << 20)]
    assert file.most_open == MOST_IN_FLIGHT
    assert len(file.asked) == 40


def test_threads_wait_for_their_turn() -> None:
    file = Far(64 * 1000)
    parts = [view(file, at, 1, 250) for at in range(0, file.size, 1000)]
    ahead = Ahead(parts)
    taken = [ahead.taken(part) for part in parts]
    found: dict[int, bytes] = {}

    def work(number: int) -> None:
        new = taken[number]
        assert isinstance(new, View)
        found[number] = read(new)

    threads = [threading.Thread(target=work, args=(number,)) for number in reversed(range(len(parts)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert b"".join(found[number] for number in range(len(parts))) == file.data
    assert file.direct == []


@pytest.mark.parametrize("rows", [30, 3000])
def test_interleaved_slices_come_once(rows: int) -> None:
    file = Far(rows * 600 + 50)
    slices = [view(file, 50 + 200 * n, rows, 50, (150, 1)) for n in range(3)]
    ahead = Ahead(slices)
    for old, new in zip(slices, [ahead.taken(part) for part in slices], strict=True):
        assert isinstance(new, View)
        for row in (rows - 1, 0):
            assert read(new, row * 600, 200) == file.data[old.offset + row * 600 :][:200]
    assert sum(stop - start for start, stop in file.asked) == file.size - 50
    assert file.direct == []


def test_computed_tensors_may_read_in_any_order() -> None:
    file = Far(80_000)
    one, other = view(file, 0, 100, 100), view(file, 40_000, 100, 100)
    last = view(file, 0, 1, 5)

    def rows(read: object, start: int, stop: int) -> "np.ndarray[tuple[int, ...], np.dtype[np.float32]]":
        assert callable(read)
        return np.asarray(read(other.rows(start, stop)) + read(one.rows(start, stop)))

    part = Computed("c", (100, 100), (one, other), rows)
    ahead = Ahead([part, last])
    new, after = ahead.taken(part), ahead.taken(last)
    assert isinstance(new, Computed) and isinstance(after, View)

    def plain(part: View) -> "np.ndarray[tuple[int, ...], np.dtype[np.int64]]":
        return np.frombuffer(read(part), "<u4").astype(np.int64)

    for start in (90, 0):
        assert np.array_equal(new.rows(plain, start, start + 10), part.rows(plain, start, start + 10))
    assert read(after) == file.data[:20]
    assert len(file.asked) == 2


def test_an_error_is_everybodys() -> None:
    file = Far(3000, broken_at=1000)
    parts = [view(file, at, 1, 250) for at in (0, 1000, 2000)]
    ahead = Ahead(parts)
    taken = [ahead.taken(part) for part in parts]
    problems: list[str] = []

    def work() -> None:
        assert isinstance(taken[2], View)
        with pytest.raises(CheckpointError) as caught:
            read(taken[2])
        problems.append(str(caught.value))

    thread = threading.Thread(target=work)
    thread.start()
    assert isinstance(taken[0], View) and isinstance(taken[1], View)
    read(taken[0])
    with pytest.raises(CheckpointError, match="far: the line is broken"):
        read(taken[1])
    thread.join()
    assert problems == ["far: the line is broken"]
    assert file.open == 0


@pytest.mark.parametrize("shape", [(1500, 1301), (30, 20)])
def test_transposed_tensors_come_once(shape: tuple[int, int]) -> None:
    rows, columns = shape
    file = Far(4 * rows * columns + 12)
    name, f32 = "t", GGMLQuantizationType.F32
    across = View(name, "F32", (columns, rows), file, 12, 4 * rows * columns, (1, columns))
    after = view(file, 0, 1, 3)
    tensors = [PlannedTensor(v, name, v.shape, f32, v.nbytes) for v in (across, across, after)]
    with ChunkStream(tensors, 3) as stream:
        found = b"".join(bytes(chunk.data) for chunk in stream if isinstance(chunk.data, memoryview))
    matrix = np.frombuffer(file.data[12:], "<u4").reshape(rows, columns).T.tobytes()
    assert found == 2 * matrix + file.data[:12]
    # Both have the bytes at the same time.
    assert sum(stop - start for start, stop in file.asked) == file.size
    assert (file.direct, file.open) == ([], 0)


def test_many_small_ranges_are_read_together() -> None:
    file = Far(40 << 20)
    ranges = [(at, at + 40) for at in range(0, file.size, 1 << 20)]
    close = [(100 + at, 140 + at) for at in range(0, 60_000, 100)]
    found = read_many(file, [*close, *ranges])
    assert found == {start: file.data[start:stop] for start, stop in (*ranges, *close)}
    assert (len(file.asked), file.open, file.most_open) == (40, 0, MOST_IN_FLIGHT)
    assert read_many(file, []) == {}
    broken = Far(9000, broken_at=5000)
    with pytest.raises(CheckpointError, match="the line is broken"):
        read_many(broken, [(0, 10), (8000, 8010)])
    assert broken.open == 0


# ---- the real thing --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    with HubServer(tmp_path_factory.mktemp("root")) as server:
        yield server


@pytest.mark.parametrize("fixture", mostly_slow(), ids=named)
def test_every_family_over_a_line(fixture: Fixture, hub: HubServer, tmp_path: Path) -> None:
    model = fixture.write(hub.root / "o" / fixture.name, "BF16", shards=2)
    expected = convert(model, tmp_path / "a.gguf").path.read_bytes()
    plan = make_plan(_open(WebFolder(f"{hub.plain}/o/{fixture.name}"), Options(), None), "f16")
    write_plan(plan, tmp_path / "b.gguf", threads=3)
    assert (tmp_path / "b.gguf").read_bytes() == expected


def test_a_stream_ends_at_once(hub: HubServer, tmp_path: Path) -> None:
    fixture = fixtures()[0]
    fixture.write(hub.root / "o" / "stalled", "BF16")
    model = _open(WebFolder(f"{hub.plain}/o/stalled"), Options(), None)
    hub.faults.append(Fault("stall", "stalled/*.safetensors", seconds=5, times=99))
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt), ChunkStream(make_plan(model, "f16").tensors, 2) as stream:
        chunks = iter(stream)
        timer = threading.Timer(0.5, stream._ahead.close if stream._ahead else print)
        timer.start()
        try:
            next(chunks)
        except CheckpointError:
            raise KeyboardInterrupt from None
    assert time.monotonic() - started < 3
    hub.faults.clear()
