"""What rules do to tensors beyond another order of axes: each makes the file's values from the checkpoint's."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from clipgguf.shape import lengths, parse
from clipgguf.tensor import Computed, Joined, Read, Then, View

if TYPE_CHECKING:
    from numpy.typing import NDArray


def row(value: str) -> Then:
    """Return a rule's ``then`` that takes one row of a table: the one whose number is the value of that name."""

    def then(view: View, shape: tuple[int, ...], values: Mapping[str, Any]) -> View:
        number = values[value]
        if number >= shape[0]:
            raise ValueError(f"{view.name!r} has {shape[0]:,} rows, row {number:,} is asked for")
        return replace(view.rows(number, number + 1), shape=shape[1:])

    return then


def rows_from(start: int) -> Then:
    """Return a rule's ``then`` that leaves out the first rows of a table."""

    def then(view: View, shape: tuple[int, ...], values: Mapping[str, Any]) -> View:
        return view.rows(start, shape[0])

    return then


def reordered(order: Callable[[Mapping[str, Any]], Sequence[int]]) -> Then:
    """Return the function that puts the rows of a tensor in another order, so many at a time: those of a head.

    ``order`` gives for each of them the number of the checkpoint's, from the family's values. What a pattern can say is
    cheaper to read; this is for all else.
    """

    def then(view: View, shape: tuple[int, ...], values: Mapping[str, Any]) -> Computed:
        numbers = order(values)
        count = len(numbers)

        def rows(read: Read, start: int, stop: int) -> "NDArray[Any]":
            wanted = [n - n % count + numbers[n % count] for n in range(start, stop)]
            first = min(wanted)
            return read(view.rows(first, max(wanted) + 1))[[n - first for n in wanted]]

        return Computed(view.name, shape, (view,), rows)

    return then


def in_parts(*shapes: str) -> Then:
    """Return the function that cuts the leading axis into equal parts, and arranges each by a shape of its own.

    The shapes, as Rules have them, leave the length of the leading axis as it is; sizes are those of the vision tower.
    """

    def then(view: View, shape: tuple[int, ...], values: Mapping[str, Any]) -> Joined:
        sizes = {name.removeprefix("vision."): value for name, value in values.items() if type(value) is int}
        rows = shape[0] // len(shapes)
        views: list[View] = []
        for number, text in enumerate(shapes):
            part, pattern = view.rows(number * rows, (number + 1) * rows), parse(text)
            parts = lengths(pattern.stored, part.shape, sizes)
            if parts is None:
                raise ValueError(
                    f"{view.name!r} has parts of shape {part.shape}, which is no {text.partition(' ->')[0]}"
                )
            views.extend(found for _, found in part.rearranged(pattern, parts, 1))
        return Joined(tuple(views))

    return then


def summed(axis: int) -> Then:
    """Return the function that adds up a tensor's values along an axis, which is not the first one."""

    def then(view: View, shape: tuple[int, ...], values: Mapping[str, Any]) -> Computed:
        def rows(read: Read, start: int, stop: int) -> "NDArray[Any]":
            values = read(view.rows(start, stop))
            # As torch adds halves, in single precision.
            added: NDArray[Any] = values.sum(axis, dtype="float32").astype(values.dtype)
            return added

        return Computed(view.name, (*shape[:axis], *shape[axis + 1 :]), (view,), rows)

    return then


def softplus(view: View, shape: tuple[int, ...], values: Mapping[str, Any]) -> Computed:
    """A rule's ``then`` that makes log(1 + e^x) of every x, and leaves those above 20 as they are, as torch does.

    The values are rounded rightly; of torch's in single precision, every fifth is off by one in the last bit, which is
    below 2e-6 of what is below 20.
    """

    def rows(read: Read, start: int, stop: int) -> "NDArray[Any]":
        import numpy as np

        values = read(view.rows(start, stop))
        x = values.astype(np.float64)
        made: NDArray[Any] = np.where(x > 20, x, np.log1p(np.exp(np.minimum(x, 20)))).astype(values.dtype)
        return made

    return Computed(view.name, shape, (view,), rows, within=2e-6)


def plus(constant: int) -> Then:
    """Return a rule's ``then`` that adds a constant to every value, as Gemma's norms want 1."""

    def then(view: View, shape: tuple[int, ...], values: Mapping[str, Any]) -> Computed:
        def rows(read: Read, start: int, stop: int) -> "NDArray[Any]":
            values = read(view.rows(start, stop))
            values += values.dtype.type(constant)
            return values

        return Computed(view.name, shape, (view,), rows)

    return then
