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
    axis, inner = len(shape), 1
    while axis and inner * shape[axis - 1] <= elements:
        axis -= 1
        inner *= shape[axis]
    if not axis:
        yield (0,) * len(shape), shape
        return
    axis -= 1
    rows = elements // inner
    whole = shape[axis + 1 :]
    for outside in itertools.product(*map(range, shape[:axis])):
        for start in range(0, shape[axis], rows):
            count = min(rows, shape[axis] - start)
            yield (*outside, start, *(0 for _ in whole)), (*(1 for _ in outside), count, *whole)


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
    axis, length = parts
    count, rest = divmod(shape[axis], length)

    def part(length: int) -> int:
        return _cost_of_block((*shape[:axis], length, *shape[axis + 1 :]), strides, itemsize, room)

    return count * part(length) + (part(rest) if rest else 0)


def cost(shape: Axes, strides: Axes, itemsize: int, elements: int, room: int) -> int:
    """Return what it takes to read a view in blocks of so many elements, each as ``split`` has it.

    That is in bytes: those that are read, and SMALL_READ for each time.
    """
    inside = itertools.accumulate(reversed(shape), lambda a, b: a * b)
    whole = sum(1 for product in inside if product <= elements)
    axis = len(shape) - whole - 1
    if axis < 0:
        return _cost_of_block(shape, strides, itemsize, room)
    rows = elements // math.prod(shape[axis + 1 :])
    count, rest = divmod(shape[axis], rows)

    def block(rows: int) -> int:
        return _cost_of_block((*(1,) * axis, rows, *shape[axis + 1 :]), strides, itemsize, room)

    return math.prod(shape[:axis]) * (count * block(rows) + (block(rest) if rest else 0))


def stored_order(shape: Axes, strides: Axes) -> Axes:
    """Return a view's axes as its elements lie in the file, without those along which they are repeated."""
    axes = [axis for axis, (length, stride) in enumerate(zip(shape, strides, strict=True)) if length > 1 and stride]
    return tuple(sorted(axes, key=lambda axis: -strides[axis]))


def stored_cost(shape: Axes, strides: Axes, itemsize: int) -> int:
    """Return what it takes to read a view once, in the order in which its elements lie in the file."""
    order = stored_order(shape, strides)
    stored_shape, stored_strides = tuple(shape[axis] for axis in order), tuple(strides[axis] for axis in order)
    return cost(stored_shape, stored_strides, itemsize, BAND_NBYTES // itemsize, BAND_NBYTES)
