"""Files in torch's format as our reader has them: their values, and the line that refuses one."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from clipgguf.checkpoint.torch_zip import read_torch_file
from clipgguf.errors import CheckpointError
from clipgguf.regular_file import NO_MODEL_FILES
from clipgguf.sources.local import LocalFile
from clipgguf.tensor import View
from tests.torch_bytes import (
    storage,
    tensor,
)

FIXTURES = Path(__file__).parent / "fixtures" / "torch"
GOOD = sorted((FIXTURES / "good").glob("*.bin"))
TRACE = "clipgguf-was-here"

# numpy's type for each of safetensors' codes; unsigned integers with the same bits where it has none.
NUMPY_DTYPES = {
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "F64": "<f8",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U8": "u1",
    "U16": "<u2",
    "BOOL": "?",
    "C64": "<c8",
    "F8_E4M3": "u1",
    "F8_E5M2": "u1",
}

FOUR = {"0": np.arange(4, dtype="<f4").tobytes()}
WEIGHT = tensor(storage("0", 4), 0, (4,), (1,))


def values(source: View) -> NDArray[Any]:
    """Return a tensor's elements by what its record says, and nothing else."""
    dtype = np.dtype(NUMPY_DTYPES[source.dtype])
    if not source.nbytes:
        return np.empty(source.shape, dtype)
    strides = None if source.strides is None else [stride * dtype.itemsize for stride in source.strides]
    storage = source.file
    stored = np.empty(source.extent, np.uint8)
    try:
        storage.read(source.offset, stored.data)
    finally:
        storage.close()
    return np.ndarray(source.shape, dtype, stored.data, strides=strides).copy()


def one(path: Path) -> NDArray[Any]:
    """Return the values of a file's only tensor."""
    (source,) = read_torch_file(LocalFile(path))
    return values(source)


def problem(path: Path) -> str:
    """Return the one line that refuses a file, without the path that it begins with."""
    with pytest.raises(CheckpointError) as caught:
        read_torch_file(LocalFile(path, NO_MODEL_FILES))
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert message.isprintable()
    assert len(message) < 1000
    return message.removeprefix(f"{path}: ")


# What is said of a global that nothing needs.
NOTHING = "which is nothing that a checkpoint of tensors needs; refused"
