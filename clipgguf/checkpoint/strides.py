"""Views of a file's elements that are not contiguous: in which blocks they are read, and what that costs."""

import itertools
import math
from collections.abc import Iterator
from functools import lru_cache

# A view with gaps is read with what lies between, unless that is so many times what is wanted.
SPARSE = 16
# About as many bytes are read in the time that one more read takes; what lies closer together is read at once.
SMALL_READ = 1 << 16
# How many bytes of a view that is brought into order are in memory at a time.
BAND_NBYTES = 1 << 19

Axes = tuple[int, ...]


def blocks(shape: Axes, elements: int) -> Iterator[tuple[Axes, Axes]]:
    """Yield an array in row-major order as blocks of so many elements at most: where they begin, and their shapes.

    A block has the innermost axes whole, the next one in part, and of those outside it one index each.
    """
    axis = _cut_axis(shape, elements)
    if axis < 0:
        yield (0,) * len(shape), shape
        return
    whole = shape[axis + 1 :]
    rows = elements // math.prod(whole)
    for outside in itertools.product(*map(range, shape[:axis])):
        for start in range(0, shape[axis], rows):
            count = min(rows, shape[axis] - start)
            yield (*outside, start, *(0 for _ in whole)), (*(1 for _ in outside), count, *whole)


def _cut_axis(shape: Axes, elements: int) -> int:
    """Return the axis that blocks of so many elements have in part, or -1 when one has everything."""
    axis = len(shape) - 1
    while axis >= 0 and math.prod(shape[axis:]) <= elements:
        axis -= 1
    return axis


def extent(shape: Axes, strides: Axes, itemsize: int) -> int:
    """Return the bytes from a view's first element to the end of its last."""
    return itemsize + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))


def split(shape: Axes, strides: Axes, itemsize: int, room: int) -> tuple[int, int] | None:
    """Return along which axis to split a view, and into parts of what length; None when it is read at once.

    ``room`` is how many bytes can be read at once. Strides are in bytes.
    """
    total, nbytes = extent(shape, strides, itemsize), math.prod(shape) * itemsize
    if total <= max(SMALL_READ, min(room, SPARSE * nbytes)):
        return None
    reach = [(length - 1) * stride for length, stride in zip(shape, strides, strict=True)]
    axis = reach.index(max(reach))
    # What is dense is only too large; of what is sparse, parts are read that leave out as much as they can.
    most = room if total <= SPARSE * nbytes else SMALL_READ
    return axis, max(1, (most - (total - reach[axis])) // strides[axis] + 1)


@lru_cache(1024)
def _cost_of_block(shape: Axes, strides: Axes, itemsize: int, room: int) -> int:
    parts = split(shape, strides, itemsize, room)
    if parts is None:
        return extent(shape, strides, itemsize) + SMALL_READ
    return _cost_of_parts(shape, strides, itemsize, room, *parts)


def _cost_of_parts(shape: Axes, strides: Axes, itemsize: int, room: int, axis: int, length: int) -> int:
    """Return the cost of a block that is cut along an axis into parts of a length."""
    count, rest = divmod(shape[axis], length)
    return sum(
        times * _cost_of_block((*shape[:axis], part, *shape[axis + 1 :]), strides, itemsize, room)
        for times, part in ((count, length), (1, rest))
        if part
    )


def cost(shape: Axes, strides: Axes, itemsize: int, elements: int, room: int) -> int:
    """Return the bytes that blocks of so many elements read, each as ``split`` has it, and SMALL_READ for each time."""
    axis = _cut_axis(shape, elements)
    if axis < 0:
        return _cost_of_block(shape, strides, itemsize, room)
    rows = elements // math.prod(shape[axis + 1 :])
    inside = (*(1,) * axis, *shape[axis:])
    return math.prod(shape[:axis]) * _cost_of_parts(inside, strides, itemsize, room, axis, rows)


def stored_order(shape: Axes, strides: Axes) -> Axes:
    """Return a view's axes as its elements lie in the file, without those along which they are repeated."""
    axes = [axis for axis, (length, stride) in enumerate(zip(shape, strides, strict=True)) if length > 1 and stride]
    return tuple(sorted(axes, key=lambda axis: -strides[axis]))


def stored_cost(shape: Axes, strides: Axes, itemsize: int) -> int:
    """Return what it takes to read a view once, in the order in which its elements lie in the file."""
    order = stored_order(shape, strides)
    stored_shape, stored_strides = tuple(shape[axis] for axis in order), tuple(strides[axis] for axis in order)
    return cost(stored_shape, stored_strides, itemsize, BAND_NBYTES // itemsize, BAND_NBYTES)
