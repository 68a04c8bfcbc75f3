"""Weights of every kind: random values that are the same everywhere, safetensors and torch files, shards and index.

Tensors are given as arrays, or as shapes alone, whose values then follow from the names and are never all in memory.
"""

import json
import math
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests import torch_bytes
from tests.json_files import write_json

ITEMSIZE = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "U8": 1}
CHUNK = 1 << 18

Shapes = dict[str, tuple[int, ...]]
Array = NDArray[Any]
Arrays = dict[str, Array]
# Of all tensors, or of each by its name.
Dtypes = str | Callable[[str], str]

_STORAGES = {
    "F64": "DoubleStorage",
    "F32": "FloatStorage",
    "F16": "HalfStorage",
    "BF16": "BFloat16Storage",
    "I64": "LongStorage",
}

# ---- values ----------------------------------------------------------------------------------------------------------


def values(seed: int, count: int) -> Iterator[NDArray[np.float32]]:
    """Yield chunks of ``count`` float32 values in all, in (-2, 2), the same on every platform and numpy release.

    Each has 24 significant bits, so that float16 and bfloat16 must round.
    """
    random = np.random.RandomState(seed)
    for start in range(0, count, CHUNK):
        integers = random.randint(-(2**24) + 1, 2**24, size=min(CHUNK, count - start), dtype=np.int32)
        yield (integers.astype(np.float32) * np.float32(2**-23)).astype(np.float32)


def to_dtype(chunk: NDArray[np.float32], dtype: str) -> Array:
    """Return values as the bytes of a safetensors dtype (bf16 by rounding towards zero, which is exact enough)."""
    if dtype == "BF16":
        return (chunk.view("<u4") >> 16).astype("<u2")
    return chunk.astype({"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "U8": "u1"}[dtype])


def random_array(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return values in (-2, 2), which follow from the name and the shape."""
    return np.concatenate(list(values(zlib.crc32(name.encode()), math.prod(shape)))).reshape(shape)


@cache
def tensor_values(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return the values of a tensor by its canonical name, the same on every platform; nobody may change them in place.

    Their scale is such that every block changes the features: about 1 / sqrt(inputs) for weights, 1 for norms.
    """
    values = random_array(name, shape)
    if len(shape) == 1 and name.endswith(".weight"):  # A norm's.
        values = values * np.float32(0.125) + np.float32(1)
    elif len(shape) < 2:
        values = values * np.float32(0.125)
    elif name.endswith("embedding.weight") and len(shape) == 2:
        values = values * np.float32(0.5)
    else:
        values = values * np.float32(1 / math.sqrt(math.prod(shape[1:])))
    values = np.asarray(values)
    values.flags.writeable = False
    return values


def arrays_of(shapes: Shapes) -> Arrays:
    """Return the values of tensors by canonical name."""
    return {name: tensor_values(name, shape) for name, shape in shapes.items()}


# ---- one file --------------------------------------------------------------------------------------------------------


def safetensors_header(header: Mapping[str, Any]) -> bytes:
    """Return a safetensors file's beginning: the header's length and its JSON, padded to 8 bytes."""
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _header(shapes: Shapes, dtypes: Mapping[str, str], nbytes: Mapping[str, int]) -> dict[str, Any]:
    """Return the header of tensors that lie one after the other."""
    header: dict[str, Any] = {}
    offset = 0
    for name, shape in shapes.items():
        end = offset + nbytes[name]
        header[name] = {"dtype": dtypes[name], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    return header


def write_safetensors(path: Path, shapes: Shapes, dtype: Dtypes = "F32", seed: int = 0) -> None:
    """Write a safetensors file of random tensors; each tensor's values depend on its name and the seed alone."""
    codes = {name: dtype if isinstance(dtype, str) else dtype(name) for name in shapes}
    nbytes = {name: math.prod(shape) * ITEMSIZE[codes[name]] for name, shape in shapes.items()}
    with path.open("wb") as file:
        file.write(safetensors_header({"__metadata__": {"format": "pt"}, **_header(shapes, codes, nbytes)}))
        for name, shape in shapes.items():
            make = _remembered if nbytes[name] <= CHUNK else _random_bytes
            file.writelines(make(name, math.prod(shape), codes[name], seed))


def _random_bytes(name: str, count: int, code: str, seed: int) -> Iterator[bytes]:
    tensor_seed = (seed * 1_000_003 + sum(i * b for i, b in enumerate(name.encode(), 1))) % 2**32
    for chunk in values(tensor_seed, count):
        yield to_dtype(chunk, code).tobytes()


@lru_cache(maxsize=4096)
def _remembered(*about: Any) -> tuple[bytes, ...]:
    """Return the bytes of a small tensor, as hundreds of tests write them."""
    return tuple(_random_bytes(*about))


def write_sparse_safetensors(path: Path, shapes: Shapes, dtype: str = "F32") -> None:
    """Write a safetensors file whose tensors are one hole: it takes no disk and no time to make."""
    nbytes = {name: math.prod(shape) * ITEMSIZE[dtype] for name, shape in shapes.items()}
    beginning = safetensors_header(_header(shapes, dict.fromkeys(shapes, dtype), nbytes))
    path.write_bytes(beginning)
    os.truncate(path, len(beginning) + sum(nbytes.values()))


def write_file(path: Path, arrays: Mapping[str, Array], dtype: Dtypes = "F32") -> Path:
    """Write a safetensors file, or one in torch's format if it is called anything else; integers are stored as I64."""
    codes: dict[str, str] = {}
    data: dict[str, bytes] = {}
    for name, array in arrays.items():
        if np.issubdtype(array.dtype, np.integer):
            code, raw = "I64", array.astype("<i8").tobytes()
        else:
            code = dtype if isinstance(dtype, str) else dtype(name)
            raw = bytes(array.size) if code.startswith("F8") else to_dtype(np.ascontiguousarray(array), code).tobytes()
        codes[name], data[name] = code, raw
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        shapes = {name: array.shape for name, array in arrays.items()}
        header = _header(shapes, codes, {name: len(raw) for name, raw in data.items()})
        path.write_bytes(b"".join((safetensors_header({"__metadata__": {"format": "pt"}, **header}), *data.values())))
        return path
    records, storages = {}, {}
    for key, (name, array) in enumerate(arrays.items()):
        where = torch_bytes.storage(str(key), array.size, _STORAGES[codes[name]])
        strides = tuple(math.prod(array.shape[axis + 1 :]) for axis in range(array.ndim))
        records[name] = torch_bytes.tensor(where, 0, array.shape, strides)
        storages[str(key)] = data[name]
    path.write_bytes(torch_bytes.checkpoint(torch_bytes.mapping(records), storages))
    return path


# ---- one file or shards ----------------------------------------------------------------------------------------------


def write_shards(
    directory: Path,
    names: Sequence[str],
    write: Callable[[Path, Sequence[str]], object],
    *,
    shards: int = 1,
    suffix: str = ".safetensors",
    variant: str | None = None,
    stem: str | None = None,
) -> None:
    """Have ``write`` write one file of all tensors, or shards over which they are dealt out in turn, and the index.

    A ``variant`` stands in the names where transformers puts it (``_add_variant`` in its ``modeling_utils.py``).
    """
    stem = stem or ("model" if suffix == ".safetensors" else "pytorch_model")
    dotted = f".{variant}" if variant else ""
    if shards == 1:
        write(directory / f"{stem}{dotted}{suffix}", names)
        return
    weight_map: dict[str, str] = {}
    for number in range(shards):
        file = f"{stem}{dotted}-{number + 1:05}-of-{shards:05}{suffix}"
        part = names[number::shards]
        write(directory / file, part)
        weight_map |= dict.fromkeys(part, file)
    write_json(directory / f"{stem}{suffix}.index{dotted}.json", {"metadata": {}, "weight_map": weight_map})


def write_random_weights(
    directory: Path, shapes: Shapes, dtype: Dtypes = "F32", *, shards: int = 1, seed: int = 0
) -> None:
    """Write the weights of a directory as transformers does, in the order of ``shapes``, of random values."""

    def write(path: Path, names: Sequence[str]) -> None:
        write_safetensors(path, {name: shapes[name] for name in names}, dtype, seed)

    write_shards(directory, list(shapes), write, shards=shards)


def write_weights(
    directory: Path, arrays: Mapping[str, Array], *, dtype: Dtypes = "F32", reverse: bool = False, **places: Any
) -> None:
    """Write the weights of a directory, in the order of their names; the keywords are those of ``write_shards``."""

    def write(path: Path, names: Sequence[str]) -> None:
        write_file(path, {name: arrays[name] for name in names}, dtype)

    write_shards(directory, sorted(arrays, reverse=reverse), write, **places)
