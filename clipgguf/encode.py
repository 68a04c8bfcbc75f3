"""Encoders: pure functions from a chunk of source elements to the bytes of a GGML type.

They are numpy's steps; where ``clipgguf.kernels`` has compiled code, that goes before them.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants
from numpy.typing import NDArray

from clipgguf.element_types import BF16, F16, F32
from clipgguf.kernels import compiled

# Source elements, by safetensors' dtype codes; little-endian as the format is. numpy has no bfloat16: it is the upper
# half of a float32, and is carried here as the 16-bit integer with its bits.
SOURCE_DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
}
TARGET_DTYPES: dict[GGMLQuantizationType, np.dtype[Any]] = {
    F32: np.dtype("<f4"),
    F16: np.dtype("<f2"),
    BF16: np.dtype("<u2"),
}

_BYTE = np.dtype(np.uint8)

# Elements that a step with intermediate arrays works on at a time. Few enough that these stay in the processor's cache;
# many, because after each step threads wait for each other to get hold of the interpreter.
_BLOCK = 1 << 17
# gguf-py's quantization makes about ten intermediate arrays.
_QUANTIZED_AT_ONCE = 1 << 14
# What an encoder needs for intermediate arrays, in bytes: a block of 32-bit integers, and one of 16 bits.
SCRATCH_NBYTES = _BLOCK * (4 + 2)


Encode = Callable[[NDArray[Any], NDArray[Any], NDArray[np.uint8]], int]


@dataclass(frozen=True, slots=True)
class Encoder:
    """How chunks of one source dtype become chunks of one GGML type.

    ``encode(source, target, scratch)`` fills ``target`` from as many elements of ``source``, which it may overwrite
    unless it is read-only, and returns how many finite values became infinite; ``scratch`` has SCRATCH_NBYTES. It is
    None when the bytes are the same and need no encoding. Safe to call from several threads.
    """

    source_dtype: np.dtype[Any]
    target_dtype: np.dtype[Any]
    encode: Encode | None
    # Elements that are encoded together, and the bytes that they take.
    block_elements: int
    block_nbytes: int

    def nbytes(self, elements: int) -> int:
        """Return the bytes that so many elements take, a whole number of blocks."""
        return elements // self.block_elements * self.block_nbytes

    def elements(self, source_nbytes: int, target_nbytes: int) -> int:
        """Return the most elements, whole blocks, that fit so many bytes before and so many after they are encoded."""
        read = source_nbytes // (self.block_elements * self.source_dtype.itemsize)
        return min(read, target_nbytes // self.block_nbytes) * self.block_elements


@cache
def encoder(source_dtype: str, target: GGMLQuantizationType) -> Encoder:
    """Return the encoder from a safetensors dtype, or the name of a GGML type, to a GGML type.

    Raises KeyError for a pair that has none.
    """
    if source_dtype == target.name:
        dtype = SOURCE_DTYPES.get(source_dtype, _BYTE)
        return Encoder(dtype, dtype, None, 1, dtype.itemsize)
    dtype = TARGET_DTYPES.get(target, _BYTE)
    block = (1, dtype.itemsize) if target in TARGET_DTYPES else GGML_QUANT_SIZES[target]
    encode = compiled(source_dtype, target.name, numpy_encode(source_dtype, target), *block)
    return Encoder(SOURCE_DTYPES[source_dtype], dtype, encode, *block)


def numpy_encode(source_dtype: str, target: GGMLQuantizationType) -> Encode:
    """Return numpy's encoder between two types that differ, to whose bits all others are held; KeyError as above."""
    return _ENCODE[source_dtype, target] if target in TARGET_DTYPES else _quantizer(source_dtype, target)


def _quantizer(source_dtype: str, target: GGMLQuantizationType) -> Encode:
    """Return the encoder to a type that gguf-py quantizes to; its bytes are the reference."""
    to_f32 = None if source_dtype == "F32" else _ENCODE[source_dtype, F32]
    elements, nbytes = GGML_QUANT_SIZES[target]

    def quantize(source: NDArray[Any], out: NDArray[Any], scratch: NDArray[np.uint8]) -> int:
        count = 0
        for start in range(0, len(source), _QUANTIZED_AT_ONCE):
            part = source[start : start + _QUANTIZED_AT_ONCE]
            single = part
            if to_f32 is not None:
                single = np.empty(len(part), np.float32)
                count += to_f32(part, single, scratch)
            with np.errstate(all="ignore"):
                # As one row: gguf-py goes through rows sixteen at a time.
                blocks = quants.quantize(single.reshape(1, -1), target).reshape(-1, nbytes)
                scales_to_little_endian(blocks, target, sys.byteorder)
                count += _infinite_scales(single.reshape(-1, elements), blocks, target)
            out[start // elements * nbytes :][: blocks.size] = blocks.reshape(-1)
        return count

    return quantize


# How many float16 values each block of a quantized type begins with: a scale, and an offset where there is one.
_SCALES = {"Q8_0": 1, "Q5_0": 1, "Q4_0": 1, "Q5_1": 2, "Q4_1": 2}


def scales_to_little_endian(blocks: NDArray[np.uint8], target: GGMLQuantizationType, byteorder: str) -> None:
    """Turn the scales of blocks around, in place, if gguf-py has written them as a big-endian machine does."""
    if byteorder == "big":
        scales = blocks[:, : 2 * _SCALES[target.name]]
        scales[:] = scales.reshape(len(blocks), -1, 2)[:, :, ::-1].reshape(scales.shape)


def _infinite_scales(single: NDArray[np.float32], blocks: NDArray[np.uint8], target: GGMLQuantizationType) -> int:
    """Return how many finite values are lost because their block's scale or offset is too large for its float16."""
    scales = np.ascontiguousarray(blocks[:, : 2 * _SCALES[target.name]]).view("<f2")
    lost = np.isinf(scales).any(axis=1)
    return int(np.count_nonzero(np.isfinite(single[lost]))) if lost.any() else 0


def _cast(source: NDArray[Any], target: NDArray[Any], scratch: NDArray[np.uint8]) -> int:
    """Round to nearest even; the processor's overflow flag tells whether anything became infinite."""
    try:
        with np.errstate(all="ignore", over="raise"):
            np.copyto(target, source, casting="unsafe")
    except FloatingPointError:
        with np.errstate(all="ignore"):
            np.copyto(target, source, casting="unsafe")
            return int(np.count_nonzero(np.isinf(target) & np.isfinite(source)))
    return 0


# The bits of float32's 2**15, from which on rounding may give infinity, and of 2**-14, float16's smallest normal value.
_LARGE = 0x47000000
_SMALLEST_NORMAL = np.full(_BLOCK, 0x38800000, "<u4")


def _f32_to_f16(source: NDArray[Any], target: NDArray[Any], scratch: NDArray[np.uint8]) -> int:
    """Round to nearest even with vector instructions, 2.5 times as fast as numpy's cast, which goes value by value.

    Adding 2**(e + 13) to a magnitude of exponent e makes the processor round it to 11 significant bits, float16's,
    and leaves these as the sum's lowest bits. With an exponent of at least -14 it is the rounding of subnormals. What
    is added has float16's exponent in its own lowest bits, so that the sum's are float16's; of an even number there,
    rounding takes no notice.
    """
    bits, halves = source.view("<u4"), target.view("<u2")
    # The magnitudes take the place of the source; where that is read-only, half of the scratch is theirs.
    step = _BLOCK if source.flags.writeable else _BLOCK // 2
    addends, lower_halves = scratch[: 4 * step].view("<u4"), scratch[4 * step : 6 * step].view("<u2")
    magnitudes = scratch[6 * step : 10 * step].view("<u4")
    count = 0
    for start in range(0, len(source), step):
        x, half = bits[start : start + step], halves[start : start + step]
        addend, lower_half = addends[: len(x)], lower_halves[: len(x)]
        magnitude = x if source.flags.writeable else magnitudes[: len(x)]
        np.bitwise_and(x, 0x7F800000, out=addend)
        if int(addend.max()) >= _LARGE:  # Something infinite, no number, or perhaps too large.
            count += _cast(source[start : start + step], target[start : start + step], scratch)
            continue
        # With an array, because with a number numpy compares value by value.
        np.maximum(addend, _SMALLEST_NORMAL[: len(x)], out=addend)
        # Of the exponent field E: (E << 23) + (13 << 23) above, and below ((E - 113) << 10), which is float16's but for
        # the one that the leading significant bit adds to it.
        np.right_shift(addend, 13, out=addend)
        np.multiply(addend, (1 << 13) + 1, out=addend)
        np.add(addend, (13 << 23) - (113 << 10), out=addend)
        np.right_shift(x, 16, out=half, casting="unsafe")
        np.bitwise_and(half, 0x8000, out=half)  # The sign.
        np.bitwise_and(x, 0x7FFFFFFF, out=magnitude)
        np.add(magnitude.view("<f4"), addend.view("<f4"), out=addend.view("<f4"))
        np.copyto(lower_half, addend, casting="unsafe")
        np.add(half, lower_half, out=half)
    return count


def _f32_to_bf16(source: NDArray[Any], target: NDArray[Any], scratch: NDArray[np.uint8]) -> int:
    """Round to nearest even; NaNs become quiet. gguf-py's arithmetic, a block at a time."""
    bits, halves = source.view("<u4"), target.view("<u2")
    scratch_bits = scratch[: 4 * _BLOCK].view("<u4")
    count = 0
    for start in range(0, len(source), _BLOCK):
        x = bits[start : start + _BLOCK]
        odd = scratch_bits[: len(x)]
        np.bitwise_and(x, 0x7FFFFFFF, out=odd)
        largest = int(odd.max())
        if largest > 0x7F800000:
            x = np.where(odd > 0x7F800000, (x & 0xFFFF0000) | 0x400000, x)
        if largest >= 0x7F7F8000:  # From here on up to infinity, finite values become infinite.
            count += int(np.count_nonzero((odd >= 0x7F7F8000) & (odd < 0x7F800000)))
        np.right_shift(x, 16, out=odd)
        np.bitwise_and(odd, 1, out=odd)
        np.add(odd, 0x7FFF, out=odd)
        np.add(x, odd, out=odd)
        np.right_shift(odd, 16, out=odd)
        np.copyto(halves[start : start + _BLOCK], odd, casting="unsafe")
    return count


def _in_two_steps(to_f32: Encode, from_f32: Encode) -> Encode:
    """Return the encoder that goes through float32, as a model that was loaded in float32 goes.

    From float64, rounding once instead would differ in rare last bits.
    """

    def encode(source: NDArray[Any], target: NDArray[Any], scratch: NDArray[np.uint8]) -> int:
        count = 0
        single = np.empty(min(len(source), _BLOCK), "<f4")
        for start in range(0, len(source), _BLOCK):
            part = source[start : start + _BLOCK]
            count += to_f32(part, single[: len(part)], scratch)
            count += from_f32(single[: len(part)], target[start : start + _BLOCK], scratch)
        return count

    return encode


def _bf16_to_f32(source: NDArray[Any], target: NDArray[Any], scratch: NDArray[np.uint8]) -> int:
    _widen_bf16(source, target)
    return 0


def _widen_bf16(source: NDArray[Any], target: NDArray[Any]) -> None:
    np.left_shift(source, 16, out=target.view("<u4"), dtype=np.uint32, casting="unsafe")


def widened(source: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    """Return values of a safetensors dtype as float32, in their shape."""
    if dtype != "BF16":
        return source.astype(np.float32)
    single = np.empty(source.shape, np.float32)
    _widen_bf16(source, single)
    return single


@cache
def _bf16_to_f16_table() -> tuple[NDArray[np.float16], NDArray[np.bool_]]:
    """Return the float16 of all 65,536 bfloat16 values, and which of them are finite but have an infinite float16."""
    singles = np.empty(1 << 16, "<f4")
    _widen_bf16(np.arange(1 << 16, dtype=np.uint16), singles)
    with np.errstate(all="ignore"):
        halves = singles.astype("<f2")
    return halves, np.isinf(halves) & np.isfinite(singles)


def _bf16_to_f16(source: NDArray[Any], target: NDArray[Any], scratch: NDArray[np.uint8]) -> int:
    # A 16-bit source has so few values that looking them up is exact, and quicker than shifting and rounding.
    halves, overflows = _bf16_to_f16_table()
    count = 0
    for start in range(0, len(source), _BLOCK):  # numpy widens the indices to 64 bits, a block at a time.
        indices, block = source[start : start + _BLOCK], target[start : start + _BLOCK]
        np.take(halves, indices, out=block, mode="clip")
        # 0x7C00 and more are the infinities, and what is no number.
        if int((block.view("<u2") & 0x7FFF).max()) >= 0x7C00:
            count += int(np.count_nonzero(overflows[indices]))
    return count


_ENCODE: dict[tuple[str, GGMLQuantizationType], Encode] = {
    ("F64", F32): _cast,
    ("F64", F16): _in_two_steps(_cast, _f32_to_f16),
    ("F64", BF16): _in_two_steps(_cast, _f32_to_bf16),
    ("F32", F16): _f32_to_f16,
    ("F32", BF16): _f32_to_bf16,
    ("F16", F32): _cast,
    ("F16", BF16): _in_two_steps(_cast, _f32_to_bf16),
    ("BF16", F32): _bf16_to_f32,
    ("BF16", F16): _bf16_to_f16,
}
