"""GGUF files as sources: metadata and tensors of one, read by gguf-py's GGUFReader.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import GGUFEndian, GGUFReader, GGUFValueType

from clipgguf.checkpoint.tensors import SourceTensor
from clipgguf.errors import CheckpointError, os_reason, why_no_file


@dataclass(frozen=True, slots=True)
class MetadataItem:
    """One key of a file's metadata; ``value_type`` is that of the elements where the value is a sequence."""

    key: str
    value_type: GGUFValueType
    value: Any


@dataclass(frozen=True, slots=True)
class GGUFFile:
    """What a GGUF file says that it holds; a tensor's dtype is the name of its GGML type."""

    path: Path
    metadata: tuple[MetadataItem, ...]
    tensors: tuple[SourceTensor, ...]

    def value(self, key: str) -> Any:
        """Return the value of a metadata key, or None without it."""
        return next((item.value for item in self.metadata if item.key == key), None)


def read_gguf(path: Path) -> GGUFFile:
    """Read the header of a little-endian GGUF file; no tensor's bytes.

    Raises CheckpointError when the file is missing, truncated or no GGUF file.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: {why_no_file(path)}")
    size = path.stat().st_size
    try:
        reader = GGUFReader(path)
        # The reader's own entries are about the header itself: GGUF.version, GGUF.tensor_count, GGUF.kv_count.
        fields = [field for name, field in reader.fields.items() if not name.startswith("GGUF.")]
        metadata = tuple(MetadataItem(field.name, field.types[-1], field.contents()) for field in fields)
        tensors = tuple(
            SourceTensor(
                name=tensor.name,
                dtype=tensor.tensor_type.name,
                shape=tuple(int(axis) for axis in reversed(tensor.shape)),
                path=path,
                offset=int(tensor.data_offset),
                nbytes=int(tensor.n_bytes),
            )
            for tensor in reader.tensors
        )
    except OSError as e:
        raise CheckpointError(f"{path}: cannot be read: {os_reason(e)}") from e
    except Exception as e:  # A damaged file makes the reader fail in any of numpy's and its own ways.
        raise CheckpointError(f"{path}: is truncated or no GGUF file: {e} (the file has {size:,} bytes)") from e
    if reader.endianess != GGUFEndian.LITTLE:
        raise CheckpointError(f"{path}: is a big-endian GGUF file, supported is little-endian")
    CheckpointError.raise_all(
        f"{path}: tensor {tensor.name!r} ends at byte {tensor.offset + tensor.nbytes:,}, the file has {size:,}"
        for tensor in tensors
        if tensor.offset + tensor.nbytes > size
    )
    return GGUFFile(path, metadata, tensors)
