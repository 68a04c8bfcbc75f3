"""How verification compares values: what rounds to what, and what may differ."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants

from clipgguf import convert, verify
from clipgguf.encode import SCRATCH_NBYTES, SOURCE_DTYPES, encoder
from clipgguf.verification.values import COMPARABLE, PIECE, compare_values
from tests.checkpoints import write_model
from tests.weights import to_dtype

# ---- values ----------------------------------------------------------------------------------------------------------


def special_values() -> Any:
    """Every float16 and every bfloat16, and float32 around the ties and the largest values of both."""
    bits = np.arange(1 << 16, dtype="<u4")
    singles = [bits.astype("<u2").view("<f2").astype("<f4"), (bits << 16).view("<f4")]
    singles += [((bits << 16) + offset).view("<f4") for offset in (0x7FFF, 0x8000, 0x8001, 0x1000, 0xFFF, 0x1001)]
    singles.append(np.random.RandomState(0).standard_normal(PIECE).astype("<f4"))
    return np.concatenate(singles)


def encoded(source: Any, dtype: str, ggml_type: GGMLQuantizationType) -> Any:
    codec = encoder(dtype, ggml_type)
    if codec.encode is None:
        return source.view("u1").copy()
    target = np.empty(codec.nbytes(len(source)), "u1")
    codec.encode(source.copy(), target.view(codec.target_dtype), np.empty(SCRATCH_NBYTES, "u1"))
    return target


@pytest.mark.slow
@pytest.mark.parametrize("ggml_type", [t for t in sorted(COMPARABLE) if t.name.startswith(("F", "B"))])
@pytest.mark.parametrize("dtype", SOURCE_DTYPES)
def test_what_is_special_agrees_and_one_bit_less_does_not(dtype: str, ggml_type: GGMLQuantizationType) -> None:
    with np.errstate(all="ignore"):
        source = np.ascontiguousarray(to_dtype(special_values(), dtype)).view(SOURCE_DTYPES[dtype])
        if dtype == "F64":
            source *= 1 + 2**-40  # What float32 does not hold.
    stored = encoded(source, dtype, ggml_type)
    result = compare_values(source.view("u1"), dtype, stored, ggml_type)
    assert (result.differing, result.first, result.elements) == (0, None, len(source))
    assert np.isfinite([result.worst_error, result.total_error, result.worst_of_allowed]).all()
    assert result.worst_of_allowed <= 1.0001
    assert (result.verdict == "exact") == (dtype == ggml_type.name or (dtype, ggml_type.name) in WIDER)
    units = stored.reshape(len(source), -1)
    with np.errstate(all="ignore"):
        numbers = np.count_nonzero(~np.isnan(quants.dequantize(stored, ggml_type)))
    for bit in (0, 3, 7):
        units[:, 0] ^= 1 << bit
        result = compare_values(source.view("u1"), dtype, stored, ggml_type)
        units[:, 0] ^= 1 << bit
        # What is no number may have other bits, unless it was copied.
        assert (len(source) if dtype == ggml_type.name else numbers) <= result.differing <= len(source)
        assert np.isfinite([result.worst_error, result.total_error, result.worst_of_allowed]).all()


WIDER = {("F16", "F32"), ("BF16", "F32")}


@pytest.mark.parametrize("ggml_type", [t for t in sorted(COMPARABLE) if t.name.startswith("Q")])
def test_quantized_values_of_every_size(ggml_type: GGMLQuantizationType) -> None:
    random_values = np.random.RandomState(1).standard_normal((1 << 10, 32))
    for block in (random_values, random_values * 0, np.full((1, 32), np.inf), np.full((1, 32), np.nan)):
        for scale in (1e-9, 1e-4, 1.0, 1e3, 1e6, 1e30):
            source = (block * scale).astype("<f4").reshape(-1)
            stored = encoded(source, "F32", ggml_type)
            result = compare_values(source.view("u1"), "F32", stored, ggml_type)
            assert result.differing == 0
            assert result.worst_of_allowed <= 1.001
            if scale != 1e6:  # With which some scales are too large for float16, and others are not.
                assert result.infinite == (len(source) if scale > 1e6 and block is random_values else 0)
            stored[5] ^= 16
            result = compare_values(source.view("u1"), "F32", stored, ggml_type)
            if np.isfinite(source).all() and not result.infinite:
                assert (result.differing, result.first) == (1, 0)


def test_values_that_became_infinite_are_counted(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m", dtype="F32")
    weights = model / "model.safetensors"
    content = bytearray(weights.read_bytes())
    header_length = int.from_bytes(content[:8], "little")
    name = "vision_model.encoder.layers.0.mlp.fc2.weight"
    start = json.loads(content[8 : 8 + header_length])[name]["data_offsets"][0] + 8 + header_length
    content[start : start + 16] = np.array([1e5, -1e38, np.inf, np.nan], "<f4").tobytes()
    weights.write_bytes(content)
    result = verify(convert(model, tmp_path).path, model)
    assert result.agrees
    check = next(check for check in result.tensors if check.name == "v.blk.0.ffn_up.weight")
    assert check.comparison is not None
    assert (check.verdict, check.comparison.infinite) == ("rounded", 2)
    assert check.comparison.worst_error < 0.001
    assert [w.split(" values")[0] for w in result.warnings] == ["v.blk.0.ffn_up.weight: 2"]
