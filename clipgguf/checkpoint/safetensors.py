"""One safetensors file: its header, validated by the safetensors package, as records.

The format (https://huggingface.co/docs/safetensors/index#format): 8 bytes, the header's length N as a little-endian
unsigned integer; N bytes of JSON, ``{"name": {"dtype", "shape", "data_offsets": [begin, end]}, ...}``, which may have
an entry ``__metadata__``; then the tensors' bytes, to which the offsets count from the header's end.
"""

import json
import os
from pathlib import Path

from safetensors import SafetensorError, safe_open

from clipgguf.checkpoint.tensors import SourceTensor
from clipgguf.errors import CheckpointError, os_reason, shown
from clipgguf.json_file import DuplicateKeyError, unique_object
from clipgguf.regular_file import open_regular

# A tensor takes some 120 bytes of a header, so this is enough for 70,000. The package allows 100 MB, for which Python
# would need gigabytes.
LARGEST_HEADER = 8 << 20


def read_safetensors_header(path: Path) -> list[SourceTensor]:
    """Return what a safetensors file says that it holds, in the order of its header; reads no tensor's bytes.

    Raises CheckpointError when the file is missing, truncated or no safetensors file.
    """
    with open_regular(path, CheckpointError) as file:
        try:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if length > LARGEST_HEADER:
                raise CheckpointError(
                    f"{path}: is no safetensors file: its first 8 bytes tell of a header of {length:,} bytes, "
                    f"should be {LARGEST_HEADER:,} at most (the file has {size:,} bytes)"
                )
            # Opening validates: lengths, JSON, known dtypes, offsets that cover the file once and without holes, and
            # shapes that agree with them. The package keeps the offsets to itself, so we read them once more below.
            with safe_open(path, framework="numpy"):
                header = json.loads(file.read(length), object_pairs_hook=unique_object)
        except DuplicateKeyError as e:
            # The format forbids it, and the package takes the last one in silence.
            raise CheckpointError(f"{path}: has the key {shown(e.key)} twice in its header") from e
        except (SafetensorError, ValueError) as e:  # No JSON any more: the file has changed in between.
            raise CheckpointError(
                f"{path}: is truncated or no safetensors file: {e} (the file has {size:,} bytes)"
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
