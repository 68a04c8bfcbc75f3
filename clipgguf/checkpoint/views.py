"""Views of a file's elements that are not contiguous: transposed matrices, rows of wider ones."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipgguf.checkpoint.tensors import SourceBytes

# A view with gaps is read with what lies between, unless that is so many times what is wanted.
SPARSE = 8
# Below that many bytes, a read costs the same whatever its size.
SMALL_READ = 1 << 12


def blocks(shape: tuple[int, ...], strides: tuple[int, ...], elements: int) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Yield a strided view in row-major order as blocks of so many elements at most: offset in bytes, and shape.

    A block's shape has the view's innermost axes, the outermost of them in part.
    """
    row = math.prod(shape[1:])
    if row > elements:
        for i in range(shape[0]):
            for start, block in blocks(shape[1:], strides[1:], elements):
                yield i * strides[0] + start, block
        return
    rows = elements // row
    for i in range(0, shape[0], rows):
        yield i * strides[0], (min(rows, shape[0] - i), *shape[1:])


def gather(
    file: SourceBytes, offset: int, target: NDArray[Any], strides: tuple[int, ...], span: NDArray[np.uint8]
) -> None:
    """Fill an array from a strided view of a file, reading ranges of it into ``span``."""
    reach = [(length - 1) * stride for length, stride in zip(target.shape, strides, strict=True)]
    extent = target.itemsize + sum(reach)
    if extent <= max(SMALL_READ, min(len(span), SPARSE * target.nbytes)):
        file.read(offset, span[:extent].data)
        target[...] = np.ndarray(target.shape, target.dtype, span.data, strides=strides)
        return
    axis = reach.index(max(reach))
    length = target.shape[axis]
    # What is dense is only too large, and is halved; of what is sparse, each part is read by itself.
    step = -(-length // 2) if extent <= SPARSE * target.nbytes else 1
    for start in range(0, length, step):
        part = target[(*(slice(None),) * axis, slice(start, start + step))]
        gather(file, offset + start * strides[axis], part, strides, span)
