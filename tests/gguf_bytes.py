"""GGUF files by hand: a header's parts as bytes, so that it may lie, and real files with something changed."""

import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, quants

from clipgguf.checkpoint.gguf_file import MetadataItem

T = GGUFValueType


def string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def key(name: str | bytes, value_type: int, value: bytes) -> bytes:
    return string(name) + struct.pack("<I", value_type) + value


def array(name: str, value_type: int, count: int, values: bytes) -> bytes:
    return key(name, T.ARRAY, struct.pack("<IQ", value_type, count) + values)


def uint32(name: str, value: int) -> bytes:
    return key(name, T.UINT32, struct.pack("<I", value))


def tensor(
    name: str | bytes, shape: Sequence[int] = (4,), ggml_type: int = GGMLQuantizationType.F32, offset: int = 0
) -> bytes:
    """A tensor's entry; the shape is row-major."""
    axes = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
    return string(name) + axes + struct.pack("<IQ", ggml_type, offset)


def gguf(
    keys: Sequence[bytes] = (),
    tensors: Sequence[bytes] = (),
    data: bytes = b"",
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    key_count: int | None = None,
    tensor_count: int | None = None,
    alignment: int = 32,
) -> bytes:
    """A whole file; the counts are true unless they are given."""
    counts = (
        len(tensors) if tensor_count is None else tensor_count,
        len(keys) if key_count is None else key_count,
    )
    header = magic + struct.pack("<IQQ", version, *counts) + b"".join((*keys, *tensors))
    return header + b"\0" * (-len(header) % alignment) + data


def rewritten(
    path: Path,
    to: Path,
    *,
    without: Iterable[str] = (),
    metadata: Iterable[MetadataItem] = (),
    types: Mapping[str, GGMLQuantizationType] | None = None,
    renamed: Mapping[str, str] | None = None,
    tensors: Mapping[str, Any] | None = None,
    alignment: int | None = None,
) -> Path:
    """Write a GGUF file anew with gguf-py alone, with other metadata, or tensors of other types or names.

    ``without`` are keys and names of tensors to leave out, ``types`` element types by the end of the name, ``renamed``
    parts of names by what they become, ``tensors`` arrays to add.
    """
    reader, writer = GGUFReader(path), GGUFWriter(to, "clip")
    if alignment is not None:
        writer.add_custom_alignment(alignment)
    new = {item.key: item for item in metadata}
    left_out = {*without, *new, "general.architecture"}
    for name, field in reader.fields.items():
        if name not in left_out and not name.startswith("GGUF."):
            sub_type = field.types[-1] if field.types[0] == T.ARRAY else None
            writer.add_key_value(name, field.contents(), field.types[0], sub_type)
    for item in new.values():
        if isinstance(item.value, list):
            writer.add_key_value(item.key, item.value, T.ARRAY, item.value_type)
        else:
            writer.add_key_value(item.key, item.value, item.value_type)
    for old in reader.tensors:
        if old.name in left_out:
            continue
        name = old.name
        for part, other in (renamed or {}).items():
            if part in name:
                name = name.replace(part, other)
                break
        wanted = next((t for end, t in (types or {}).items() if old.name.endswith(end)), old.tensor_type)
        if wanted == old.tensor_type:
            writer.add_tensor(name, old.data, raw_dtype=wanted)
            continue
        shape = [int(axis) for axis in reversed(old.shape)]
        values = np.asarray(quants.dequantize(old.data, old.tensor_type), np.float32).reshape(shape)
        exact = {GGMLQuantizationType.F32: np.float32, GGMLQuantizationType.F16: np.float16}
        if wanted in exact:
            writer.add_tensor(name, values.astype(exact[wanted]))
        else:
            writer.add_tensor(name, quants.quantize(values, wanted), raw_dtype=wanted)
    for name, values in (tensors or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return to
