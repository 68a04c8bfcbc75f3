"""Read views of a file's elements that are not contiguous: transposed matrices, rows of wider ones."""

import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from clipgguf.checkpoint.strides import (
    BAND_NBYTES,
    SPARSE,
    Axes,
    blocks,
    cost,
    extent,
    split,
    stored_cost,
    stored_order,
)
from clipgguf.sources import Source
from clipgguf.sources.local import OpenedSource, temporary_file

_MAKING_BANDS = threading.Lock()


@dataclass(frozen=True, slots=True)
class StridedBlocks:
    """Elements of a file at ``offset``, with the step along each axis in bytes."""

    file: Source
    offset: int
    dtype: np.dtype[Any]
    shape: Axes
    strides: Axes

    def read_block(self, start: Axes, target: NDArray[Any], span: NDArray[np.uint8]) -> None:
        """Fill an array with the block of its shape that begins at an index, reading ranges into ``span``."""
        with self.file.in_use():
            gather(self.file, self.offset_of(start), target, self.strides, span)

    def offset_of(self, index: Axes) -> int:
        """Return where an element lies in the file."""
        return self.offset + sum(i * stride for i, stride in zip(index, self.strides, strict=True))

    def is_far_from_order(self, elements: int, room: int) -> bool:
        """Return whether blocks of so many elements, ``room`` bytes read at once, read all over and over again."""
        direct = cost(self.shape, self.strides, self.dtype.itemsize, elements, room)
        return direct > SPARSE * stored_cost(self.shape, self.strides, self.dtype.itemsize)


def gather(file: Source, offset: int, target: NDArray[Any], strides: Axes, span: NDArray[np.uint8]) -> None:
    """Fill an array from a strided view of a file, reading ranges of it into ``span``."""
    parts = split(target.shape, strides, target.itemsize, len(span))
    if parts is None:
        file.read(offset, span[: extent(target.shape, strides, target.itemsize)].data)
        target[...] = np.ndarray(target.shape, target.dtype, span.data, strides=strides)
        return
    axis, length = parts
    for start in range(0, target.shape[axis], length):
        part = target[(*(slice(None),) * axis, slice(start, start + length))]
        gather(file, offset + start * strides[axis], part, strides, span)


@dataclass(frozen=True, slots=True)
class _Band:
    """A block of a view, for which the axes may be in any order; its elements are row-major from ``offset`` on."""

    start: Axes
    shape: Axes
    offset: int


class OrderedBlocks(OpenedSource):
    """A view whose elements lie far apart in the file, in a temporary file where they lie closer together.

    Of a large transposed matrix, a row's elements lie everywhere, and each block of a few rows would need all of the
    file. So it is read once, as it lies there, in bands of BAND_NBYTES, and each is written as rows. A block has a run
    of elements in each band.
    """

    def __init__(self, view: StridedBlocks) -> None:
        """Take a view, which is read when this is used."""
        super().__init__(view.file.name, math.prod(view.shape) * view.dtype.itemsize)
        self._view = view
        self._order = stored_order(view.shape, view.strides)
        self._bands = tuple(self._make_bands())

    def _make_bands(self) -> Iterator[_Band]:
        offset, rank, itemsize = 0, len(self._view.shape), self._view.dtype.itemsize
        lengths = tuple(self._view.shape[axis] for axis in self._order)
        for stored_start, stored_shape in blocks(lengths, BAND_NBYTES // itemsize):
            start, shape = [0] * rank, [1] * rank
            for axis, first, length in zip(self._order, stored_start, stored_shape, strict=True):
                start[axis], shape[axis] = first, length
            yield _Band(tuple(start), tuple(shape), offset)
            offset += math.prod(shape) * itemsize

    def _open(self) -> IO[bytes]:
        what = f"{self.name}: a tensor of shape {self._view.shape} is not contiguous, and cannot be put into order in"
        # One at a time: its memory comes on top of the threads' buffers. Before its turn it is sure that the bytes are
        # there: those from far away come in order, and an earlier view may still wait for its turn.
        with self._view.file.in_use(), _MAKING_BANDS:
            return temporary_file(self._read_bands(), what)

    def _read_bands(self) -> Iterator[memoryview]:
        view, order = self._view, self._order
        span = np.empty(BAND_NBYTES, np.uint8)
        stored, ordered = (np.empty(BAND_NBYTES // view.dtype.itemsize, view.dtype) for _ in range(2))
        strides = tuple(view.strides[axis] for axis in order)
        # The axes in the view's order again, by their places in the stored one.
        places = sorted(range(len(order)), key=order.__getitem__)
        for band in self._bands:
            shape = tuple(band.shape[axis] for axis in order)
            part = stored[: math.prod(shape)].reshape(shape)
            gather(view.file, view.offset_of(band.start), part, strides, span)
            part = part.transpose(places)
            elements = ordered[: part.size]
            np.copyto(elements.reshape(part.shape), part)
            yield elements.view(np.uint8).data

    def read_block(self, start: Axes, target: NDArray[Any], span: NDArray[np.uint8]) -> None:
        """Fill an array as StridedBlocks does; it must be one of ``blocks``, and ``span`` have BAND_NBYTES."""
        with self.in_use():
            for band in self._bands:
                self._read_from(band, start, target, span)

    def _read_from(self, band: _Band, start: Axes, target: NDArray[Any], span: NDArray[np.uint8]) -> None:
        """Fill what a block and a band have in common."""
        into: list[slice] = [slice(None)] * target.ndim
        shape = [1] * target.ndim
        first = 0
        for axis, length in enumerate(band.shape):
            first *= length
            if axis in self._order:
                begin = max(band.start[axis], start[axis])
                end = min(band.start[axis] + length, start[axis] + target.shape[axis])
                if begin >= end:
                    return
                into[axis] = slice(begin - start[axis], end - start[axis])
                shape[axis] = end - begin
                first += begin - band.start[axis]
        nbytes = math.prod(shape) * target.itemsize
        self.read(band.offset + first * target.itemsize, span[:nbytes].data)
        target[tuple(into)] = span[:nbytes].view(target.dtype).reshape(shape)
