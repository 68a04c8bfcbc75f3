"""Shapes as einops writes them: what a tensor's axes are called, and how they are arranged anew for the file.

    "ffn width"                                                   two axes
    "(3 width') width -> 3 width' width"                          a fused qkv, cut in three
    "width 3 2 patch patch' -> 2 width 3 patch patch'"            a kernel for each of two frames
    "(heads 2 half) width -> (heads half 2) width"                another order of rows inside a head

Left of the arrow is the shape in the checkpoint, right of it that in the file; without an arrow they are the same. An
axis is a word, a number, or several of these in parentheses, the last one running fastest. ``width'`` is another axis
of the size ``width``: each name stands once on a side. The word ``any`` is no size: each tensor has its own length
there. Axes are only ever reordered, split and joined, so that every arrangement is a matter of strides; an axis of
length 1 may be left out or added.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

# The parts of one axis in order, as words and numbers.
Axis = tuple[str, ...]

_PART = r"(?:[A-Za-z_]\w*|[1-9]\d*)'*"
_AXES = re.compile(rf"(?:(?:{_PART}|\({_PART}(?: {_PART})*\))(?:\s+|$))*")


@dataclass(frozen=True, slots=True)
class Pattern:
    """A shape's axes in the checkpoint, ``stored``, and in the file, ``written``."""

    stored: tuple[Axis, ...]
    written: tuple[Axis, ...]


@cache
def parse(text: str) -> Pattern:
    """Read a pattern; ValueError when it is none, or when its sides have not the same parts."""
    stored, arrow, written = text.partition("->")
    sides = _axes(stored), _axes(written if arrow else stored)
    left, right = (sorted(part for axis in side for part in axis if part != "1") for side in sides)
    if left != right or len(set(left)) != len(left):
        raise ValueError(f"{text!r} is no pattern of a shape: each axis should stand once on either side")
    return Pattern(*sides)


def _axes(side: str) -> tuple[Axis, ...]:
    side = side.strip()
    if not _AXES.fullmatch(side):
        raise ValueError(f"{side!r} is no shape: it should have words, whole numbers and parentheses")
    return tuple(tuple(axis.strip("()").split()) for axis in re.findall(r"\([^)]*\)|\S+", side))


def size_name(part: str) -> str | None:
    """Return the name of the size that a part of an axis has; None for a number and for ``any``."""
    name = part.rstrip("'")
    return None if name.isdecimal() or name == "any" else name


def lengths(axes: tuple[Axis, ...], shape: tuple[int, ...], sizes: Mapping[str, int]) -> dict[str, int] | None:
    """Return the length of each part of axes with this shape; None when it does not fit or sizes are lacking."""
    if len(axes) != len(shape):
        return None
    known = dict(sizes)
    found: dict[str, int] = {}
    for axis, length in zip(axes, shape, strict=True):
        values = {part: _size(part, known) for part in axis}
        given = [value for value in values.values() if value is not None]
        if length < 1 or min(given, default=1) < 1 or len(values) - len(given) > 1:
            return None
        rest, left_over = divmod(length, math.prod(given))
        if left_over or (rest > 1 and len(given) == len(values)):
            return None
        for part, value in values.items():
            found[part] = rest if value is None else value
            if (name := size_name(part)) is not None:
                known.setdefault(name, found[part])
    return found


def with_ones_of(axes: tuple[Axis, ...], shape: tuple[int, ...], sizes: Mapping[str, int]) -> tuple[int, ...] | None:
    """Return a shape with the axes of length 1 that axes have, and no others; None when the others are not as many."""
    right = shape_of(axes, sizes)
    rest = squeeze(shape)
    if len(rest) != sum(length != 1 for length in right):
        return None
    others = iter(rest)
    return tuple(1 if length == 1 else next(others) for length in right)


def shape_of(axes: tuple[Axis, ...], sizes: Mapping[str, int]) -> tuple[int | None, ...]:
    """Return the lengths of axes; None for one with a part whose size is not known."""

    def length(axis: Axis) -> int | None:
        values = [value for part in axis if (value := _size(part, sizes)) is not None]
        return math.prod(values) if len(values) == len(axis) else None

    return tuple(map(length, axes))


def _size(part: str, sizes: Mapping[str, int]) -> int | None:
    name = part.rstrip("'")
    return int(name) if name.isdecimal() else sizes.get(name)


def squeeze(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return a shape without its axes of length 1."""
    return tuple(axis for axis in shape if axis != 1)


def arranged(
    pattern: Pattern, parts: Mapping[str, int], steps: tuple[int, ...]
) -> tuple[tuple[int, ...], list[tuple[int, int]]]:
    """Return the shape that a tensor has in the file, and its elements in that order as (length, step) pairs.

    ``parts`` are what ``lengths`` gives, ``steps`` those along the axes of the checkpoint's tensor, in elements.
    """
    step_of: dict[str, int] = {}
    for axis, step in zip(pattern.stored, steps, strict=True):
        for part in reversed(axis):
            step_of[part] = step
            step *= parts[part]
    shape = tuple(math.prod(parts.get(part, 1) for part in axis) for axis in pattern.written)
    return shape, [(parts[part], step_of[part]) for axis in pattern.written for part in axis if part != "1"]


def merged(pairs: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return (length, step) pairs with those that run on into each other as one, and without those of length 1."""
    found: list[tuple[int, int]] = []
    for length, step in pairs:
        if length == 1:
            continue
        if found and found[-1][1] == length * step:
            length *= found.pop()[0]
        found.append((length, step))
    return found


def shape_text(shape: tuple[int | None, ...]) -> str:
    """Return a shape as messages have it; an axis of None may have any length."""
    return f"({', '.join('any' if axis is None else str(axis) for axis in shape)})"
