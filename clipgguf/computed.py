"""Computed tensors as if their values lay in a file, made where they are read."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipgguf.checkpoint.views import gather
from clipgguf.encode import SOURCE_DTYPES, widened
from clipgguf.tensor import Computed, View

# What a strided input is read through.
_SPAN_NBYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class ComputedBytes:
    """The float32 bytes of a computed tensor, row-major; safe to read from several threads."""

    tensor: Computed

    def read(self, offset: int, target: memoryview) -> None:
        """Fill ``target``, of single bytes, from ``offset`` on; CheckpointError when an input is unreadable."""
        # Whole rows are computed, also where a part of one is asked for.
        row = self.tensor.nbytes // self.tensor.shape[0]
        start, stop = offset // row, -(-(offset + len(target)) // row)
        values = np.ascontiguousarray(self.tensor.rows(self._values, start, stop), "<f4")
        target[:] = values.reshape(-1).view(np.uint8)[offset - start * row :][: len(target)].data

    def _values(self, view: View) -> NDArray[Any]:
        """Return the values of a part of an input, as float16 for F16 and as float32 for all else."""
        raw = np.empty(view.shape, SOURCE_DTYPES[view.dtype])
        if view.strides is None:
            view.file.read(view.offset, raw.reshape(-1).view(np.uint8).data)
        else:
            strides = tuple(step * raw.itemsize for step in view.strides)
            gather(view.file, view.offset, raw, strides, np.empty(_SPAN_NBYTES, np.uint8))
        return raw if view.dtype == "F16" else widened(raw, view.dtype)
