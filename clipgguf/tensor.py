"""Where the values of a tensor come from: a view of a checkpoint, several views in turn, or rows that are computed."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from clipgguf.shape import Pattern, arranged, merged
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
        itemsize, nbytes = self.itemsize, math.prod(lengths) * self.itemsize
        axes = (shape, None) if strides in ((), (1,)) else (lengths, strides)
        for number in range(count):
            offset = self.offset + number * step * itemsize
            yield shape, View(self.name, self.dtype, axes[0], self.file, offset, nbytes, axes[1])


@dataclass(frozen=True, slots=True)
class Joined:
    """Views of one dtype, or computed tensors, one after the other along the first axis of the file's tensor."""

    parts: "tuple[View | Computed, ...]"

    @property
    def stored(self) -> tuple[View, ...]:
        """The views of the checkpoint that it is made of."""
        return tuple(view for part in self.parts for view in part.stored)

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
    much the values of other programs may differ, which have sines or logarithms of their own, and ``relative`` by how
    much besides of each value's own size.
    """

    name: str
    shape: tuple[int, ...]
    inputs: tuple[View, ...]
    rows: "Callable[[Read, int, int], NDArray[Any]]"
    within: float = 0.0
    relative: float = 0.0

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


def padded(views: Sequence[View], length: int) -> Computed:
    """Return views one after the other along the first axis, each with rows of zeros after its own up to a length."""

    def rows(read: Read, start: int, stop: int) -> "NDArray[Any]":
        import numpy as np

        values = np.zeros((stop - start, *views[0].shape[1:]), np.float16 if views[0].dtype == "F16" else np.float32)
        for number in range(start // length, -(-stop // length)):
            view, first = views[number], number * length
            there = max(start, first), min(stop, first + view.shape[0])
            if there[0] < there[1]:
                values[there[0] - start : there[1] - start] = read(view.rows(*(row - first for row in there)))
        return values

    return Computed(views[0].name, (len(views) * length, *views[0].shape[1:]), tuple(views), rows)


# What element types a checkpoint may have, by the codes of safetensors.
DTYPES = ("F64", "F32", "F16", "BF16")

Tensor = View | Joined | Computed


# Makes a tensor of the file from a checkpoint's view, its shape, the family's values by short name, and the views of
# those tensors that the rule has beside it.
Then = Callable[..., Tensor]

# Makes a tensor that no checkpoint has from the family's values. What is wrong with them, a ValueError says.
Made = Callable[[Mapping[str, Any]], Computed]
