"""One safetensors file: its header, validated by the safetensors package, as records.

The format (https://huggingface.co/docs/safetensors/index#format): 8 bytes, the header's length N as a little-endian
unsigned integer; N bytes of JSON, ``{"name": {"dtype", "shape", "data_offsets": [begin, end]}, ...}``, which may have
an entry ``__metadata__``; then the tensors' bytes, to which the offsets count from the header's end.
"""

import json
import mmap
import operator
from itertools import accumulate
from typing import Any, NoReturn

from safetensors import SafetensorError, safe_open

from clipgguf.errors import CheckpointError, os_reason, shown
from clipgguf.json_file import DuplicateKeyError, unique_object
from clipgguf.sources import Source, SourceIO
from clipgguf.sources.local import LocalFile
from clipgguf.tensor import View

# A tensor takes some 120 bytes of a header, so this is enough for 70,000. The package allows 100 MB, for which Python
# would need gigabytes.
LARGEST_SAFETENSORS_HEADER = 8 << 20
# How files of torch.save begin: as zip archives, and those of before as pickles.
_TORCH_MAGIC = (b"PK\x03\x04", b"\x80\x02")
# How many bits an element has, by its dtype.
_BITS = {
    dtype: bits
    for bits, dtypes in {
        4: ("F4",),
        6: ("F6_E2M3", "F6_E3M2"),
        8: ("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E5M2FNUZ", "F8_E4M3FNUZ"),
        16: ("I16", "U16", "F16", "BF16"),
        32: ("I32", "U32", "F32"),
        64: ("I64", "U64", "F64", "C64"),
    }.items()
    for dtype in dtypes
}


def read_safetensors_header(source: Source) -> list[View]:
    """Return what a safetensors file says that it holds, in its order; CheckpointError when it is truncated or none."""
    file, name, size = SourceIO(source), source.name, source.size
    head = file.read(8)
    length = int.from_bytes(head, "little")
    if length > LARGEST_SAFETENSORS_HEADER:
        if head.startswith(_TORCH_MAGIC):
            raise CheckpointError(f"{name}: is a file of torch.save, and should have a name that ends in .bin")
        raise CheckpointError(
            f"{name}: is no safetensors file: its first 8 bytes tell of a header of {length:,} bytes, "
            f"should be {LARGEST_SAFETENSORS_HEADER:,} at most (the file has {size:,} bytes)"
        )
    try:
        is_judged = isinstance(source, LocalFile) and _is_judged_by_the_package(source)
        check = None if is_judged else _no_constant
        header = json.loads(file.read(length), object_pairs_hook=unique_object, parse_constant=check)
        if not is_judged:
            check_header(header, size - 8 - length)
        header.pop("__metadata__", None)
        return [_record(source, 8 + length, name, info) for name, info in header.items()]
    except DuplicateKeyError as e:
        # The format forbids it, and the package takes the last one in silence.
        raise CheckpointError(f"{name}: has the key {shown(e.args[0])} twice in its header") from e
    except (SafetensorError, ValueError, RecursionError) as e:  # No JSON any more: the file has changed in between.
        raise CheckpointError(f"{name}: is truncated or no safetensors file: {e} (the file has {size:,} bytes)") from e
    except OSError as e:
        raise CheckpointError(f"{name}: cannot be read: {os_reason(e)}") from e


def _is_judged_by_the_package(file: LocalFile) -> bool:
    """Have the package validate a file; return False where it cannot, because the file is too large to be mapped.

    It maps the whole file into the process's addresses, for which there may be less room than the file takes
    (``ulimit -v``, 32 bits). It checks lengths, JSON, dtypes, offsets that cover the file once and without holes, and
    shapes that agree with them; the offsets it keeps to itself. Raises SafetensorError or OSError.
    """
    try:
        with safe_open(file.path, framework="numpy"):
            return True
    except (MemoryError, OSError, SafetensorError):  # Which of them it is depends on the package's version.
        try:
            with file.in_use() as opened:
                mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ).close()
        except (OSError, ValueError):
            if file.size:
                return False
        raise


def _record(source: Source, start: int, name: str, info: Any) -> View:
    """Return the record of an entry of the header, which ends at ``start``."""
    # The package also takes a list of the three values, and an object with the dtype for its key.
    if not isinstance(info, dict) or not isinstance(info["dtype"], str):
        raise _wrong_entry(name, info)
    begin, end = info["data_offsets"]
    return View(name, info["dtype"], tuple(info["shape"]), source, start + begin, end - begin)


def check_header(header: Any, nbytes: int) -> None:
    """Raise ValueError where a header is not what the package asks for; so many bytes of tensors follow it."""
    if not isinstance(header, dict):
        raise ValueError("the header is no JSON object")
    json.dumps(header, ensure_ascii=False).encode()  # Fails for a lone surrogate.
    tensors = dict(header)
    metadata = tensors.pop("__metadata__", None)
    is_text = isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())
    if metadata is not None and not is_text:
        raise ValueError(f"__metadata__ is {shown(metadata)}, should be an object of strings")
    for name, info in tensors.items():
        if not _is_entry(info):
            raise _wrong_entry(name, info)
    position = 0
    for name, info in sorted(tensors.items(), key=lambda item: item[1]["data_offsets"]):
        # The package counts in 64 bits, in this order.
        sizes = list(accumulate((*info["shape"], _BITS[info["dtype"]]), operator.mul, initial=1))
        begin, end = info["data_offsets"]
        if begin != position or (end - begin) * 8 != sizes[-1] or max(sizes) >= 2**64:
            raise ValueError(
                f"tensor {shown(name)} of shape {shown(info['shape'])} in {info['dtype']} has the offsets {begin:,} to "
                f"{end:,}, should have {position:,} to {position + sizes[-1] // 8:,}"
            )
        position = end
    if position != nbytes:
        raise ValueError(f"its tensors end at byte {position:,} of {nbytes:,} after the header")


def _is_entry(info: Any) -> bool:
    """Return whether something in a header has the form of a tensor's entry."""
    if not isinstance(info, dict) or not isinstance(info.get("dtype"), str) or info["dtype"] not in _BITS:
        return False
    shape, offsets = info.get("shape"), info.get("data_offsets")
    if not isinstance(shape, list) or not isinstance(offsets, list) or len(offsets) != 2:
        return False
    return all(type(number) is int and 0 <= number < 2**64 for number in (*shape, *offsets))


def _wrong_entry(name: str, info: Any) -> ValueError:
    return ValueError(f"tensor {shown(name)} is {shown(info)}, should be an object with dtype, shape and data_offsets")


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")
