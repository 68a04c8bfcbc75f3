"""The language of shapes: what it accepts, what it binds, and that every arrangement is the one that numpy makes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from clipgguf.shape import lengths, parse, shape_of
from clipgguf.sources.local import LocalFile
from clipgguf.tensor import View

Floats = NDArray[Any]

# A pattern, the sizes that are known, a shape in the checkpoint, and numpy's way to the file's tensors, one or several.
ARRANGEMENTS: dict[str, tuple[dict[str, int], tuple[int, ...], Callable[[Floats], list[Floats]]]] = {
    "ffn width": ({}, (5, 3), lambda a: [a]),
    "(3 width') width -> 3 width' width": ({}, (12, 4), lambda a: [a[0:4], a[4:8], a[8:12]]),
    "(3 width) -> 3 width": ({"width": 4}, (12,), lambda a: [a[0:4], a[4:8], a[8:12]]),
    "width 3 2 patch patch' -> 2 width 3 patch patch'": (
        {"patch": 7}, (4, 3, 2, 7, 7), lambda a: [a[:, :, 0], a[:, :, 1]],
    ),
    "(heads 2 half) width -> (heads half 2) width": (
        {"heads": 3}, (24, 5), lambda a: [a.reshape(3, 2, 4, 5).transpose(0, 2, 1, 3).reshape(24, 5)],
    ),
    "width (row col 3) -> width 3 row col": (
        {"row": 2, "col": 3}, (4, 18), lambda a: [a.reshape(4, 2, 3, 3).transpose(0, 3, 1, 2)],
    ),
    "n -> n 1": ({}, (6,), lambda a: [a.reshape(6, 1)]),
    "c 1 k -> c k": ({}, (6, 1, 3), lambda a: [a.reshape(6, 3)]),
    "into out -> out into": ({}, (6, 3), lambda a: [a.T]),
    "rows 2 width -> 2 rows width": ({}, (6, 2, 3), lambda a: [a[:, 0], a[:, 1]]),
    "hidden 1 3 3'": ({}, (4, 1, 3, 3), lambda a: [a]),
    "any (any' width)": ({"width": 4}, (5, 8), lambda a: [a]),
    "1 one width -> one width": ({}, (1, 1, 3), lambda a: [a[0]]),
}  # fmt: skip


@pytest.mark.parametrize("text", ARRANGEMENTS)
def test_arrangements_are_numpys(text: str) -> None:
    sizes, shape, expected = ARRANGEMENTS[text]
    array = np.arange(np.prod(shape), dtype="<f4").reshape(shape)
    pattern = parse(text)
    parts = lengths(pattern.stored, shape, sizes)
    assert parts is not None
    wanted = expected(array)
    view = View("t", "F32", shape, LocalFile(Path(__file__)), 8, array.nbytes)
    found = list(view.rearranged(pattern, parts, len(wanted)))
    assert [shape for shape, _ in found] == [part.shape for part in wanted]
    for (_, part), values in zip(found, wanted, strict=True):
        assert part.nbytes == values.nbytes
        start = (part.offset - 8) // 4
        strides = tuple(4 * step for step in part.steps)
        seen = np.lib.stride_tricks.as_strided(array.reshape(-1)[start:], part.shape, strides)
        assert seen.reshape(values.shape).tolist() == values.tolist()


@pytest.mark.parametrize("text", ["ffn width", "(3 width') width -> 3 width' width", "n -> n 1", "c 1 k -> c k"])
def test_what_is_contiguous_stays_so(text: str) -> None:
    # It is then read, or copied by the system, in one go.
    sizes, shape, expected = ARRANGEMENTS[text]
    parts = lengths(parse(text).stored, shape, sizes)
    assert parts is not None
    count = len(expected(np.zeros(shape)))
    view = View("t", "F32", shape, LocalFile(Path(__file__)), 0, 4 * int(np.prod(shape)))
    assert all(part.strides is None for _, part in view.rearranged(parse(text), parts, count))


@pytest.mark.parametrize(
    "text",
    [
        "(a",
        "a) b",
        "a b -> b",
        "a b -> b a c",
        "0",
        "-> a",
        "a()",
        "a -> b -> a",
        "a...",
        "a->",
        "a 3 3",
        "width width",
    ],
)
def test_what_is_no_pattern(text: str) -> None:
    with pytest.raises(ValueError, match="is no"):
        parse(text)


def test_sizes_are_bound_and_held() -> None:
    axes = parse("(3 width') width").stored
    assert lengths(axes, (12, 4), {}) == {"3": 3, "width'": 4, "width": 4}
    assert lengths(axes, (12, 5), {}) is None
    assert lengths(axes, (13, 4), {}) is None
    assert lengths(axes, (12, 4), {"width": 5}) is None
    assert lengths(axes, (12,), {}) is None
    assert lengths(parse("n").stored, (0,), {}) is None
    assert lengths(parse("(a b)").stored, (12,), {}) is None
    assert lengths(parse("(a b)").stored, (12,), {"a": 5}) is None
    assert shape_of(axes, {}) == (None, None)
    assert shape_of(axes, {"width": 4}) == (12, 4)
