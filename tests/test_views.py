"""Views that are not contiguous: every value in its place, and never one call for each."""

import os
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from clipgguf.checkpoint.strides import BAND_NBYTES, blocks, cost, extent
from clipgguf.checkpoint.views import OrderedBlocks, StridedBlocks
from clipgguf.encode import SCRATCH_NBYTES
from clipgguf.errors import CheckpointError
from clipgguf.sources.local import LocalFile

Floats = NDArray[np.float32]

# As many float32 as a chunk to float16 has.
ELEMENTS = 1 << 18
VIEWS = {
    "transposed": ((700, 900), (1, 700)),
    "transposed-large": ((1500, 1301), (1, 1500)),
    "columns-of-a-wider": ((700, 900), (1000, 1)),
    "every-hundredth": ((700, 90), (9_000, 100)),
    "reversed": ((3, 50, 70, 11), (1, 3, 150, 10_500)),
    "permuted": ((30, 50, 70, 3), (10_500, 3, 150, 1)),
    "one-row-expanded": ((300, 4000), (0, 1)),
    "columns-expanded": ((2000, 700), (1, 0)),
    "expanded-and-transposed": ((40, 3, 500, 7), (1, 0, 280, 40)),
    "windows": ((1000, 600), (1, 1)),
    "windows-of-rows": ((200, 50, 60), (60, 60, 1)),
    "one": ((1, 1), (7, 13)),
    "one-row": ((1, 600_000), (7, 1)),
    "two-long-rows": ((2, 600_000), (1, 2)),
    "many-short-rows": ((600_000, 2), (1, 600_000)),
    "far-apart": ((50, 3), (70_000, 20_000)),
}


def make(tmp_path: Path, shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[StridedBlocks, Floats]:
    """Return a view of a file in which every value is another, and the values that it should have."""
    stored = np.arange(extent(shape, strides, 1) + 5, dtype="<f4")
    path = tmp_path / "stored"
    stored.tofile(path)
    expected = np.lib.stride_tricks.as_strided(stored[5:], shape, [4 * s for s in strides])
    view = StridedBlocks(LocalFile(path), 20, stored.dtype, shape, tuple(4 * s for s in strides))
    return view, expected


def check(view: StridedBlocks | OrderedBlocks, expected: Floats, elements: int) -> None:
    span = np.empty(SCRATCH_NBYTES, np.uint8)
    for start, shape in blocks(expected.shape, elements):
        target = np.full(shape, -1, "<f4")
        view.read_block(start, target, span)
        place = tuple(slice(begin, begin + length) for begin, length in zip(start, shape, strict=True))
        np.testing.assert_array_equal(target, expected[place])


@pytest.mark.parametrize("elements", [ELEMENTS, 10_000])
@pytest.mark.parametrize(("shape", "strides"), VIEWS.values(), ids=VIEWS)
def test_views_are_read(shape: tuple[int, ...], strides: tuple[int, ...], elements: int, tmp_path: Path) -> None:
    view, expected = make(tmp_path, shape, strides)
    check(view, expected, elements)
    ordered = OrderedBlocks(view)
    check(ordered, expected, elements)
    ordered.close()
    view.file.close()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The bytes that each read asked for."""
    counted: list[int] = []
    read = LocalFile._read_some

    def count(self: LocalFile, file: object, offset: int, target: memoryview) -> int:
        counted.append(len(target))
        return read(self, file, offset, target)  # type: ignore[arg-type]

    monkeypatch.setattr("clipgguf.sources.local.OpenedSource._read_some", count)
    return counted


@pytest.mark.parametrize(("shape", "strides"), VIEWS.values(), ids=VIEWS)
def test_what_a_view_costs_is_what_is_read(
    shape: tuple[int, ...], strides: tuple[int, ...], calls: list[int], tmp_path: Path
) -> None:
    view, expected = make(tmp_path, shape, strides)
    check(view, expected, ELEMENTS)
    assert sum(calls) + len(calls) * (1 << 16) == cost(shape, view.strides, 4, ELEMENTS, SCRATCH_NBYTES)
    view.file.close()


# What a model has, and what nobody would save: long rows, huge strides, neighbours that are read elsewhere.
LARGE = {
    "fc2": ((1024, 4096), (1, 1024)),
    "fc2-of-bigG": ((1664, 8192), (1, 1664)),
    "two-rows": ((2, 2 << 20), (1, 2)),
    "sixteen-long-rows": ((16, 1 << 19), (1, 16)),
    "sixty-four-long-rows": ((64, 1 << 18), (1, 64)),
    "kernel": ((512, 16, 16, 64), (64, 64 * 512 * 16, 64 * 512, 1)),
    "scattered": ((64, 64, 64, 64), (1, 64**2, 64, 64**3)),
    "every-thousandth": ((1024, 16), (1000, 1_024_000)),
}


@pytest.mark.parametrize(("shape", "strides"), LARGE.values(), ids=LARGE)
def test_reads_are_few(shape: tuple[int, ...], strides: tuple[int, ...], calls: list[int], tmp_path: Path) -> None:
    path = tmp_path / "stored"
    path.touch()
    size = extent(shape, strides, 1) * 4
    os.truncate(path, size)
    view = StridedBlocks(LocalFile(path), 0, np.dtype("<f4"), shape, tuple(4 * s for s in strides))
    far = view.is_far_from_order(ELEMENTS, SCRATCH_NBYTES)
    reader = OrderedBlocks(view) if far else view
    span, target = np.empty(SCRATCH_NBYTES, np.uint8), np.empty(ELEMENTS, "<f4")
    for start, block in blocks(shape, ELEMENTS):
        reader.read_block(start, target[: int(np.prod(block))].reshape(block), span)
    nbytes = 4 * int(np.prod(shape))
    assert sum(calls) <= 17 * size
    assert len(calls) <= size / 4096 + 4 * (nbytes / BAND_NBYTES) ** 2
    view.file.close()
    if isinstance(reader, OrderedBlocks):
        reader.close()


def read_first(view: OrderedBlocks) -> None:
    view.read_block((0, 0), np.empty((1, 1301), "<f4"), np.empty(SCRATCH_NBYTES, np.uint8))


def test_a_view_without_a_place_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    view, _ = make(tmp_path, *VIEWS["transposed-large"])
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    words = r"stored: a tensor of shape \(1500, 1301\) is not contiguous, and cannot be put into order in a temporary"
    with pytest.raises(CheckpointError, match=words):
        read_first(OrderedBlocks(view))
    view.file.close()


def test_a_view_whose_file_becomes_shorter(tmp_path: Path) -> None:
    view, _ = make(tmp_path, *VIEWS["transposed-large"])
    os.truncate(tmp_path / "stored", 1 << 20)
    with pytest.raises(CheckpointError, match=r"stored: .* the file has become shorter"):
        read_first(OrderedBlocks(view))
    view.file.close()


def test_blocks_cover_an_array_once_and_in_order() -> None:
    for shape in ((5, 3), (7, 600, 1000), (2, 1 << 18), (3, 1 << 19), (1 << 20,), (2, 3, 1 << 19), (1, 3, 1, 4)):
        strides = [int(np.prod(shape[axis + 1 :])) for axis in range(len(shape))]
        end = 0
        for start, block in blocks(shape, 1 << 18):
            assert len(start) == len(block) == len(shape)
            assert int(np.prod(block)) <= 1 << 18
            assert sum(i * stride for i, stride in zip(start, strides, strict=True)) == end
            end += int(np.prod(block))
        assert end == int(np.prod(shape))
