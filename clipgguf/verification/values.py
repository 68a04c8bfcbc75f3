"""Compare what a GGUF file stores with the source that it was made of, value by value and in bounded memory.

Nothing here goes through ``clipgguf.encode``, whose work is to be checked: a float is right when it is nearer to its
source than half a unit, ties and the like are rounded by numpy and gguf-py, and gguf-py quantizes.
"""

import math
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Singles = NDArray[np.float32]
Floats = NDArray[Any]
_Indices = NDArray[np.intp]

# How many values are compared at a time: a whole number of blocks of every type, and few enough that the intermediate
# arrays, about ten, stay in the processor's cache.
PIECE = 1 << 15


@dataclass(frozen=True, slots=True)
class Comparison:
    """How the first ``elements`` values of a tensor agree with their source.

    ``differing`` counts values, or blocks of a quantized type, whose bytes are not those that rounding the source to
    the type gives; ``first`` is the row-major index of the first value of the first of them. ``infinite`` counts values
    that are finite in the source and not in the file. Errors are absolute, of the values that are finite on both sides:
    the worst one, their sum, and the worst in relation to what the type allows (1 is all of it).
    """

    elements: int = 0
    differing: int = 0
    first: int | None = None
    infinite: int = 0
    worst_error: float = 0.0
    total_error: float = 0.0
    worst_of_allowed: float = 0.0

    @property
    def verdict(self) -> Literal["exact", "rounded", "differs"]:
        """Whether the file has the source's very values, these rounded to its type, or others."""
        if self.differing:
            return "differs"
        return "rounded" if self.worst_error or self.infinite else "exact"

    @property
    def mean_error(self) -> float:
        """The mean absolute error."""
        return self.total_error / self.elements if self.elements else 0.0

    def followed_by(self, other: "Comparison") -> "Comparison":
        """Return the comparison of these values and those that come after them."""
        first = None if other.first is None else self.elements + other.first
        return Comparison(
            elements=self.elements + other.elements,
            differing=self.differing + other.differing,
            first=first if self.first is None else self.first,
            infinite=self.infinite + other.infinite,
            worst_error=max(self.worst_error, other.worst_error),
            total_error=self.total_error + other.total_error,
            worst_of_allowed=max(self.worst_of_allowed, other.worst_of_allowed),
        )


class _Stored:
    """Values as a GGML type has them: bytes, a row for each value or block, and the float32 that they stand for."""

    def __init__(self, data: Bytes, ggml_type: GGMLQuantizationType) -> None:
        self.ggml_type = ggml_type
        self.units = data.reshape(-1, GGML_QUANT_SIZES[ggml_type][1])
        self.values: Singles = _values(data, ggml_type)

    def rounded(self, values: Singles) -> "_Stored":
        """Return what float32 values become in the same type, by numpy or gguf-py."""
        # As one row: gguf-py goes through rows sixteen at a time.
        return _Stored(
            quants.quantize(values.reshape(1, -1), self.ggml_type).reshape(-1).view(np.uint8), self.ggml_type
        )

    def differing(self, right: "_Stored") -> _Indices:
        """Return which values or blocks have other bytes than the right ones; but a NaN may be any."""
        if np.array_equal(right.units, self.units):
            return np.empty(0, np.intp)
        no_numbers = (np.isnan(right.values) & np.isnan(self.values)).reshape(len(self.units), -1).all(axis=1)
        return np.flatnonzero((right.units != self.units).any(axis=1) & ~no_numbers)


@dataclass(frozen=True, slots=True)
class _Float:
    """A floating-point type: two to the bits of its significand, and its smallest normal value.

    It allows an error of half a unit in the last place: the power of two below a value, divided by ``scale``.
    """

    scale: float
    smallest: float

    def powers(self, values: Singles) -> Singles:
        """Return the powers of two below the values."""
        # A float32 with nothing but its exponent is one. The maximum is taken with an array, because with a number
        # numpy compares value by value.
        powers = (values.view("<u4") & 0x7F800000).view("<f4")
        np.maximum(powers, np.full(len(powers), self.smallest, "<f4"), out=powers)
        return powers

    def check(self, values: Singles, stored: _Stored, error: Singles) -> tuple[_Indices, Floats]:
        """Return where ``stored`` is not what rounding the values gives, and the powers of two below these."""
        powers = self.powers(values)
        # What is nearer than half a unit is right. Ties, zeros with their sign, and what is not finite are rare, and
        # are rounded once more.
        rare = np.flatnonzero(~((error / powers < 1 / self.scale) & (stored.values != 0)))
        if not len(rare):
            return rare, powers
        again = _Stored(stored.units[rare].reshape(-1), stored.ggml_type)
        return rare[again.differing(again.rounded(values[rare]))], powers


@dataclass(frozen=True, slots=True)
class _Blocks:
    """A quantized type: a value is its level times the block's scale, and for some types plus the block's offset.

    It allows an error of so many ``steps`` from one level to the next, and of what rounding scale and offset to float16
    does to a value of the highest level.
    """

    steps: float
    levels: int
    has_offset: bool = False
    scale: float = 1.0

    def check(self, values: Singles, stored: _Stored, error: Singles) -> tuple[_Indices, Floats]:
        """Return which blocks are not what rounding the values gives, and the error that is allowed in each."""
        rounded = stored.rounded(values)
        halves = np.ascontiguousarray(rounded.units[:, : 4 if self.has_offset else 2]).view("<f2").astype("<f4")
        scale = np.abs(halves[:, 0])
        allowed = self.steps * scale + self.levels * _half_unit(scale)
        if self.has_offset:
            allowed += _half_unit(np.abs(halves[:, 1]))
        return stored.differing(rounded), allowed


def _half_unit(values: Singles) -> Floats:
    """Return the most by which rounding to float16 changes such values."""
    units: Floats = np.maximum(values * np.float32(2**-11), np.float32(2**-25))
    return units


# The types whose rounding is known here. Of q5_0's and q4_0's levels there is one less above zero than below, where the
# largest value of the block goes; one as large with the other sign is a whole step off.
_TYPES: dict[GGMLQuantizationType, _Float | _Blocks] = {
    GGMLQuantizationType.F32: _Float(2.0**24, 2.0**-126),
    GGMLQuantizationType.F16: _Float(2.0**11, 2.0**-14),
    GGMLQuantizationType.BF16: _Float(2.0**8, 2.0**-126),
    GGMLQuantizationType.Q8_0: _Blocks(0.5, 127),
    GGMLQuantizationType.Q5_1: _Blocks(0.5, 31, has_offset=True),
    GGMLQuantizationType.Q5_0: _Blocks(1.0, 16),
    GGMLQuantizationType.Q4_1: _Blocks(0.5, 15, has_offset=True),
    GGMLQuantizationType.Q4_0: _Blocks(1.0, 8),
}
COMPARABLE = frozenset(_TYPES)


def compare_values(
    source: Bytes,
    source_dtype: str,
    data: Bytes,
    ggml_type: GGMLQuantizationType,
    within: tuple[float, float] = (0.0, 0.0),
) -> Comparison:
    """Compare values of a safetensors dtype with the bytes of a GGML type in COMPARABLE, whole blocks of it.

    A copy must have the source's very bits, or differ by ``within`` where others compute the values otherwise: by the
    first, and by the second times its own size. What was rounded must have the bits that rounding gives; but where that
    is no number, any that is none will do: which one depends on the processor.
    """
    is_copy = source_dtype == ggml_type.name
    if is_copy and np.array_equal(source.view("<u2"), data.view("<u2")):
        return Comparison(len(data) // GGML_QUANT_SIZES[ggml_type][1])
    kind = _TYPES[ggml_type]
    with np.errstate(all="ignore"):
        values = _values(source, GGMLQuantizationType[source_dtype])
        single = values.astype("<f4", copy=False)  # From float64 by way of float32, as a model is loaded.
        stored = _Stored(data, ggml_type)
        error = np.abs(single - stored.values)
        if is_copy:
            assert isinstance(kind, _Float)
            wrong = np.flatnonzero((source.reshape(stored.units.shape) != stored.units).any(axis=1))
            if any(within):
                wrong = wrong[~(error[wrong] <= within[0] + within[1] * np.abs(single[wrong]))]
            allowed: Floats = kind.powers(single)
        else:
            wrong, allowed = kind.check(single, stored, error)
        # What is wrong may be so by more than float32 can hold.
        if len(wrong) or values is not single:
            error = np.abs(np.subtract(values, stored.values, dtype=np.float64))
        infinite, worst = 0, float(error.max())
        if not math.isfinite(worst):
            infinite = int(np.count_nonzero(np.isfinite(values) & ~np.isfinite(stored.values)))
            error[~np.isfinite(error)] = 0
            worst = float(error.max())
        block = len(values) // len(stored.units)
        worst_ones = error if block == 1 else error.reshape(-1, block).max(axis=1)
        return Comparison(
            elements=len(values),
            differing=len(wrong),
            first=int(wrong[0]) * block if len(wrong) else None,
            infinite=infinite,
            worst_error=worst,
            total_error=float(error.sum(dtype=np.float64)) if worst else 0.0,
            # Of a block whose scale is no number, nothing is said.
            worst_of_allowed=float(np.fmax.reduce(worst_ones / allowed)) * kind.scale if worst else 0.0,
        )


@cache
def _all_f16() -> Singles:
    """Return the values of all 65,536 float16: looking them up is twice as fast as numpy's cast."""
    return np.arange(1 << 16, dtype="<u2").view("<f2").astype("<f4")


def _values(data: Bytes, ggml_type: GGMLQuantizationType) -> Floats:
    """Return the values that bytes of a GGML type stand for, but for F64 as float32."""
    if ggml_type == GGMLQuantizationType.F64:
        return data.view("<f8")
    if ggml_type == GGMLQuantizationType.F16:
        return _all_f16().take(data.view("<u2"), mode="clip")
    values: Floats = quants.dequantize(data.reshape(1, -1), ggml_type).reshape(-1)
    return values
