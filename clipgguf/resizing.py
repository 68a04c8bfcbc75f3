"""A table of positions resized to another grid, a few rows of the grid at a time."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from clipgguf.tensor import Computed, Read, Then, View

if TYPE_CHECKING:
    from numpy.typing import NDArray


def resized(side: str) -> Then:
    """Return the function that resizes a table (1, positions, width) to a grid whose side is the value of that name.

    It is torch's ``interpolate`` with ``mode="bilinear"`` and ``align_corners``, to the last bit of what torch computes
    without vector instructions (``upsample_bilinear2d`` in channels-last order); with them it contracts a product and a
    sum into one rounding, here and there. A table of that size is left as it is.
    """

    def then(view: View, shape: tuple[int, ...], values: Mapping[str, Any]) -> View | Computed:
        new, old = values[side], math.isqrt(shape[1])
        if old * old != shape[1]:
            raise ValueError(f"{view.name!r} has {shape[1]:,} positions, should be a square number of them")
        if new == old:
            return view
        grid = replace(view, shape=(old, old, shape[2]))

        def rows(read: Read, start: int, stop: int) -> "NDArray[Any]":
            import numpy as np

            lower, upper, near, far = _neighbours(old, new)
            made = np.empty((stop - start, new, shape[2]), np.float32)
            for row, out in enumerate(made, start):
                above, below = (read(grid.rows(n, n + 1))[0].astype(np.float32) for n in (lower[row], upper[row]))
                weights = ((a * b)[:, None] for a in (near[row], far[row]) for b in (near, far))
                neighbours = (line[at] for line in (above, below) for at in (lower, upper))
                first, second, third, fourth = (w * n for w, n in zip(weights, neighbours, strict=True))
                out[:] = first + (second + (third + fourth))
            return made

        return Computed(view.name, (new, new, shape[2]), (view,), rows)

    return then


def _neighbours(old: int, new: int) -> "tuple[NDArray[Any], ...]":
    """Return between which two of the old positions each new one lies along an axis, and the weights of both."""
    import numpy as np

    step = np.float32(old - 1) / np.float32(new - 1) if new > 1 else np.float32(0)
    place = step * np.arange(new, dtype=np.float32)
    lower = np.minimum(place.astype(np.int64), old - 1)
    far = np.clip(place - lower.astype(np.float32), np.float32(0), np.float32(1))
    return lower, np.minimum(lower + 1, old - 1), np.float32(1) - far, far
