"""Where the values of a tensor come from: a view of a checkpoint, several views in turn, or rows that are computed."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from clipgguf.shape import Pattern, arranged, lengths, merged, parse
from clipgguf.sources import Source

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class View:
    """Elements of a checkpoint's tensor as they lie in a source, little-endian; the tensor itself, or a part of it.

    ``dtype`` is safetensors' code ("F32", "BF16", ...); ``nbytes`` is what the elements take when they are contiguous.
    ``offset`` is where the first element lies. The elements are contiguous and row-major unless ``strides`` gives, in
    elements, the step along each axis.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Source
    offset: int
    nbytes: int
    strides: tuple[int, ...] | None = None

    @property
    def itemsize(self) -> int:
        """The bytes of one element."""
        return self.nbytes // max(1, math.prod(self.shape))

    @property
    def steps(self) -> tuple[int, ...]:
        """The step along each axis, in elements."""
        if self.strides is not None:
            return self.strides
        return tuple(math.prod(self.shape[i + 1 :]) for i in range(len(self.shape)))

    @property
    def extent(self) -> int:
        """The bytes from ``offset`` to the last element's end: ``nbytes``, but for gaps and shared elements."""
        if self.strides is None or not self.nbytes:
            return self.nbytes
        last = sum((length - 1) * stride for length, stride in zip(self.shape, self.strides, strict=True))
        return (last + 1) * self.itemsize

    @property
    def parts(self) -> "tuple[View, ...]":
        """What to read one after the other, and what of the checkpoint it is made of: the view itself."""
        return (self,)

    stored = parts

    def rows(self, start: int, stop: int) -> "View":
        """Return the rows from ``start`` up to ``stop`` along the first axis, as a view of the same bytes."""
        shape = (stop - start, *self.shape[1:])
        offset = self.offset + start * self.steps[0] * self.itemsize
        return replace(self, shape=shape, offset=offset, nbytes=math.prod(shape) * self.itemsize)

    def with_ones(self, shape: tuple[int, ...]) -> "View":
        """Return the same elements with a shape that differs in axes of length 1 alone."""
        if self.strides is None:
            return replace(self, shape=shape)
        steps = iter([step for length, step in zip(self.shape, self.strides, strict=True) if length != 1])
        return replace(self, shape=shape, strides=tuple(1 if length == 1 else next(steps) for length in shape))

    def rearranged(
        self, pattern: Pattern, parts: dict[str, int], count: int
    ) -> "Iterator[tuple[tuple[int, ...], View]]":
        """Yield a tensor's arrangements by a pattern: the shape in the file, and a view in its order.

        ``parts`` are the lengths of all parts of the pattern's axes (``shape.lengths``). With a ``count`` of more than
        1 the leading axis in the file has that length, and each of its slices is a tensor of its own.
        """
        shape, pairs = arranged(pattern, parts, self.steps)
        step = 0
        if count > 1:
            assert shape[0] == count
            shape, (_, step), pairs = shape[1:], pairs[0], pairs[1:]
        pairs = merged(pairs)
        lengths, strides = tuple(length for length, _ in pairs), tuple(stride for _, stride in pairs)
        view = replace(self, shape=lengths, strides=strides, nbytes=math.prod(lengths) * self.itemsize)
        if strides in ((), (1,)):
            view = replace(view, shape=shape, strides=None)
        for number in range(count):
            yield shape, replace(view, offset=self.offset + number * step * self.itemsize)


@dataclass(frozen=True, slots=True)
class Joined:
    """Views of one dtype, one after the other along the first axis of the file's tensor."""

    parts: tuple[View, ...]

    @property
    def stored(self) -> tuple[View, ...]:
        """The views of the checkpoint that it is made of."""
        return self.parts

    @property
    def name(self) -> str:
        """The first one's name, for messages."""
        return self.parts[0].name

    @property
    def dtype(self) -> str:
        """The dtype of all of them."""
        return self.parts[0].dtype

    @property
    def itemsize(self) -> int:
        """The bytes of one element."""
        return self.parts[0].itemsize

    @property
    def nbytes(self) -> int:
        """The bytes of all of them."""
        return sum(part.nbytes for part in self.parts)


# Reads a view: its values in its shape, as float16 for F16 and as float32 for all else.
Read = Callable[[View], "NDArray[Any]"]


@dataclass(frozen=True, slots=True)
class Computed:
    """Float32 values that are computed when their turn comes, a few rows along the first axis at a time.

    ``rows(read, start, stop)`` returns those from ``start`` up to ``stop``, from whatever it reads of ``inputs``. It
    computes in the inputs' own type where that is float16 and in float32 otherwise, as torch does. ``within`` is by how
    much the values of other programs may differ, which have sines or logarithms of their own.
    """

    name: str
    shape: tuple[int, ...]
    inputs: tuple[View, ...]
    rows: "Callable[[Read, int, int], NDArray[Any]]"
    within: float = 0.0

    dtype = "F32"
    itemsize = 4

    @property
    def parts(self) -> "tuple[Computed, ...]":
        """What to make, one after the other: all of it."""
        return (self,)

    @property
    def stored(self) -> tuple[View, ...]:
        """The views of the checkpoint that it is made of."""
        return self.inputs

    @property
    def nbytes(self) -> int:
        """The bytes of the values."""
        return 4 * math.prod(self.shape)


# What element types a checkpoint may have, by the codes of safetensors.
DTYPES = ("F64", "F32", "F16", "BF16")

Tensor = View | Joined | Computed


# Makes a tensor of the file from a checkpoint's view, its shape, and the family's values by short name.
Then = Callable[[View, tuple[int, ...], Mapping[str, Any]], Tensor]

# Makes a tensor that no checkpoint has from the family's values. What is wrong with them, a ValueError says.
Made = Callable[[Mapping[str, Any]], Computed]


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
