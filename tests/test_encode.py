"""Element types: every rounding compared with numpy's own cast, bit for bit, with compiled encoders and without."""

from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants
from numpy.typing import NDArray

from clipgguf.element_types import BF16, F16, F32
from clipgguf.encode import SCRATCH_NBYTES, encoder, scales_to_little_endian
from tests.hard_values import float32_patterns

pytestmark = pytest.mark.usefixtures("encoders")


def encode(dtype: str, target: Any, source: NDArray[Any]) -> tuple[NDArray[Any], int]:
    codec = encoder(dtype, target)
    assert codec.encode is not None
    out = np.full(len(source), 0x55, codec.target_dtype)
    return out, codec.encode(source.copy(), out, np.full(SCRATCH_NBYTES, 0x55, np.uint8))


@pytest.mark.parametrize("is_finite", [True, False], ids=["in range", "everything"])
def test_f32_to_f16_rounds_as_numpy_does(is_finite: bool) -> None:
    source = float32_patterns()
    if is_finite:  # Without anything that sends a block down the careful path.
        source = source[np.abs(source) < 65520]
    with np.errstate(all="ignore"):
        expected = source.astype(np.float16)
    out, overflows = encode("F32", F16, source)
    np.testing.assert_array_equal(out.view(np.uint16), expected.view(np.uint16))
    assert overflows == np.count_nonzero(np.isinf(expected) & np.isfinite(source))


def test_f32_to_f16_of_random_bits() -> None:
    bits = np.random.RandomState(1).randint(0, 1 << 32, size=1_000_003, dtype=np.uint64).astype(np.uint32)
    source = bits.view(np.float32)
    source = source[np.abs(source) < 65520]
    np.testing.assert_array_equal(
        encode("F32", F16, source)[0].view(np.uint16), source.astype(np.float16).view(np.uint16)
    )


@pytest.mark.parametrize("is_finite", [True, False], ids=["in range", "everything"])
def test_f32_to_bf16_rounds_as_gguf_does(is_finite: bool) -> None:
    source = float32_patterns()
    if is_finite:
        source = source[np.isfinite(source)]
    expected = quants.quantize(source.reshape(1, -1), BF16).view(np.uint16).reshape(-1)
    out, overflows = encode("F32", BF16, source)
    np.testing.assert_array_equal(out, expected)
    assert overflows == np.count_nonzero((expected & 0x7FFF == 0x7F80) & np.isfinite(source)) > 0


@pytest.mark.parametrize("target", [F16, F32])
def test_every_bf16_value(target: Any) -> None:
    source = np.arange(1 << 16, dtype=np.uint16)
    single = (source.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(all="ignore"):
        expected = single.astype(encoder("BF16", target).target_dtype)
    out, overflows = encode("BF16", target, source)
    np.testing.assert_array_equal(out.view(np.uint8), expected.view(np.uint8))
    assert overflows == np.count_nonzero(np.isinf(expected) & np.isfinite(single))


def test_every_f16_value_widens_exactly() -> None:
    source = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    out, overflows = encode("F16", F32, source)
    np.testing.assert_array_equal(out, source.astype(np.float32))
    assert overflows == 0


def test_f64_goes_through_f32() -> None:
    # Just above the middle between two float16 values, and on it once it is a float32.
    source = np.array([1 + 2**-11 + 2**-40, 1e300, 70000.0, -np.inf])
    out, overflows = encode("F64", F16, source)
    np.testing.assert_array_equal(out, np.array([1, np.inf, np.inf, -np.inf], np.float16))
    assert overflows == 2


def test_the_callers_float_errors_are_left_alone() -> None:
    source = np.array([1e-8, 7e4, np.inf, np.nan, 1e-45], np.float32)
    with np.errstate(all="raise"):
        assert encode("F32", F16, source)[1] == 1
        assert np.geterr()["over"] == "raise"


@pytest.mark.parametrize("name", ["Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0"])
def test_scales_of_a_big_endian_machine_are_turned_around(name: str) -> None:
    target = GGMLQuantizationType[name]
    single = np.random.RandomState(1).standard_normal((1, 320)).astype(np.float32)
    little = quants.quantize(single, target).reshape(10, -1)
    scales = 2 if name.endswith("_1") else 1
    big = little.copy()
    # What gguf-py does with the scales, there: the same float16 values, viewed as the machine has them.
    big[:, : 2 * scales] = little[:, : 2 * scales].copy().view("<f2").astype(">f2").view(np.uint8)
    assert (big != little).any()
    scales_to_little_endian(big, target, "big")
    np.testing.assert_array_equal(big, little)
    scales_to_little_endian(big, target, "little")
    np.testing.assert_array_equal(big, little)
