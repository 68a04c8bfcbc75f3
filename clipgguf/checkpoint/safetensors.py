"""One safetensors file: its header, validated by the safetensors package, as records.

The format (https://huggingface.co/docs/safetensors/index#format): 8 bytes, the header's length N as a little-endian
unsigned integer; N bytes of JSON, ``{"name": {"dtype", "shape", "data_offsets": [begin, end]}, ...}``, which may have
an entry ``__metadata__``; then the tensors' bytes, to which the offsets count from the header's end.
"""

import json
import struct
from pathlib import Path

from safetensors import SafetensorError, safe_open

from clipgguf.checkpoint.tensors import SourceTensor
from clipgguf.errors import CheckpointError, os_reason, why_no_file


def read_safetensors_header(path: Path) -> list[SourceTensor]:
    """Return what a safetensors file says that it holds, in the order of its header; reads no tensor's bytes.

    Raises CheckpointError when the file is missing, truncated or no safetensors file.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: {why_no_file(path)}")
    try:
        # Opening validates: lengths, JSON, known dtypes, offsets that cover the file once and without holes, and
        # shapes that agree with them. The package keeps the offsets to itself, so we read them once more below.
        with safe_open(path, framework="numpy"), path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
    except SafetensorError as e:
        raise CheckpointError(
            f"{path}: is truncated or no safetensors file: {e} (the file has {path.stat().st_size:,} bytes)"
        ) from e
    except OSError as e:
        raise CheckpointError(f"{path}: cannot be read: {os_reason(e)}") from e
    header.pop("__metadata__", None)
    return [
        SourceTensor(
            name=name,
            dtype=info["dtype"],
            shape=tuple(info["shape"]),
            path=path,
            offset=8 + length + info["data_offsets"][0],
            nbytes=info["data_offsets"][1] - info["data_offsets"][0],
        )
        for name, info in header.items()
    ]
