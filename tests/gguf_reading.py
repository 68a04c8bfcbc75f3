"""GGUF files as gguf-py's own reader has them, each read once and in forms that tests compare."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """A tensor: its shape, from the innermost axis as GGUF counts, its values as stored, and where they are."""

    tensor_type: GGMLQuantizationType
    shape: list[int]
    data: NDArray[Any]
    data_offset: int
    n_bytes: int


@dataclass(frozen=True, slots=True, eq=False)
class Contents:
    """A file's metadata, their types and its tensors, by name and in the file's order."""

    metadata: dict[str, Any]
    types: dict[str, list[GGUFValueType]]
    tensors: dict[str, Tensor]


def read(path: Path) -> Contents:
    """Return what a file holds, which is not read again while it is the same file."""
    status = path.stat()
    return _read(path, status.st_ino, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=4)
def _read(path: Path, *_: int) -> Contents:
    reader = GGUFReader(path)
    # Copies, so that nothing keeps the file mapped: Windows replaces no file that is.
    tensors = {
        t.name: Tensor(t.tensor_type, t.shape.tolist(), t.data.copy(), t.data_offset, t.n_bytes) for t in reader.tensors
    }
    fields = {name: field for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    return Contents(
        {name: field.contents() for name, field in fields.items()},
        {name: field.types for name, field in fields.items()},
        tensors,
    )


def tensors(path: Path) -> dict[str, tuple[GGMLQuantizationType, list[int], bytes]]:
    """Return the type, the shape and the bytes of each tensor, to be compared with another file's."""
    return {name: (t.tensor_type, t.shape, t.data.tobytes()) for name, t in read(path).tensors.items()}


def value(path: Path, key: str) -> Any:
    """Return a metadata value, None where there is none."""
    return read(path).metadata.get(key)
