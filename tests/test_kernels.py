"""The compiled encoders: numpy's bits and counts for all that is hard, and numpy's code where they cannot be had.

CLIPGGUF_FUZZ says how many values are tried, CLIPGGUF_FUZZ_SEED makes others: a scheduled run has 25 million for each
element type, and every float32 there is for those that are no quants.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray

from clipgguf import kernels
from clipgguf.encode import SCRATCH_NBYTES, SOURCE_DTYPES, TARGET_DTYPES, encoder, numpy_encode
from clipgguf.kernels.build import build
from tests.conftest import Run, looked_for_anew
from tests.hard_values import KINDS, float32_patterns, hard_blocks
from tests.weights import to_dtype

COUNT = int(os.environ.get("CLIPGGUF_FUZZ", "2000"))
SEED = int(os.environ.get("CLIPGGUF_FUZZ_SEED", "0"))
TARGETS = ("F32", "F16", "BF16", "Q8_0", "Q5_0", "Q5_1", "Q4_0", "Q4_1")
PAIRS = [(dtype, target) for dtype in SOURCE_DTYPES for target in TARGETS if dtype != target]
both = pytest.mark.parametrize("plain", [False, True], ids=["best", "plain"])
every_pair = pytest.mark.parametrize(
    ("dtype", "target"), [pytest.param(*pair, marks=pytest.mark.slow if pair[0] == "F64" else ()) for pair in PAIRS]
)


@pytest.fixture
def _compiled(library: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(kernels, "LIBRARY", library)
    monkeypatch.delenv("CLIPGGUF_PURE", raising=False)
    monkeypatch.setattr(kernels, "LEFT_TO_NUMPY", 256)  # As little as may be, so that nothing hides behind a NaN.
    with looked_for_anew():
        yield


compiled_here = pytest.mark.usefixtures("_compiled")


def agree(dtype: str, target: str, source: NDArray[Any], *, plain: bool) -> None:
    """Hold the compiled encoder to numpy's: bytes, count, and nothing written behind the target."""
    kind = GGMLQuantizationType[target]
    elements, nbytes = GGML_QUANT_SIZES[kind]
    in_numpy = numpy_encode(dtype, kind)
    compiled = kernels.compiled(dtype, target, in_numpy, elements, nbytes, plain=plain)
    assert compiled is not in_numpy
    size = len(source) // elements * nbytes
    results = []
    scratch = np.empty(SCRATCH_NBYTES, np.uint8)
    for encode in (in_numpy, compiled):
        out = np.full(size + 64, 0x55, np.uint8)
        count = encode(source.copy(), out[:size].view(TARGET_DTYPES.get(kind, np.uint8)), scratch)
        results.append((out, count))
    (expected, expected_count), (found, found_count) = results
    if (expected != found).any():
        at = int(np.flatnonzero(expected != found)[0]) // nbytes * elements
        block = source[at : at + elements]
        raise AssertionError((dtype, target, at, block.tolist(), block.tobytes().hex()))
    assert found_count == expected_count


def as_source(values: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    with np.errstate(all="ignore"):
        source = np.ascontiguousarray(to_dtype(values, dtype)).view(SOURCE_DTYPES[dtype])
        if dtype == "F64":
            source *= 1 + 2**-40  # What float32 does not hold.
    return source


@compiled_here
@both
@every_pair
def test_what_decides_about_rounding(dtype: str, target: str, plain: bool) -> None:
    if dtype in ("F16", "BF16"):
        source = np.arange(1 << 16, dtype=np.uint16).view(SOURCE_DTYPES[dtype])
    else:
        source = as_source(float32_patterns(), dtype)
    agree(dtype, target, source, plain=plain)
    # With nothing that is left to numpy, so that all of it is seen.
    with np.errstate(all="ignore"):
        single = source if dtype != "BF16" else (source.astype(np.uint32) << 16).view(np.float32)
        source = source[abs(single) < 32768]
    agree(dtype, target, source[: len(source) // 32 * 32], plain=plain)


@compiled_here
@both
@every_pair
def test_hard_values(dtype: str, target: str, plain: bool) -> None:
    agree(dtype, target, as_source(hard_blocks(1, 300 * len(KINDS)), dtype), plain=plain)


@pytest.mark.slow
@compiled_here
@both
@pytest.mark.parametrize("target", TARGETS[1:])
def test_many_hard_values(target: str, plain: bool) -> None:
    left = 1250 * COUNT // 32
    for seed in range(SEED, SEED + 1_000_000):
        agree("F32", target, hard_blocks(seed, min(left, 1 << 13)), plain=plain)
        left -= 1 << 13
        if left <= 0:
            break


@pytest.mark.slow
@pytest.mark.skipif(COUNT < 20_000, reason="minutes: .ci/fuzz has it")
@compiled_here
@both
@pytest.mark.parametrize("target", ["F16", "BF16"])
def test_every_float32(target: str, plain: bool) -> None:
    step = 1 << 22
    for start in range(0, 1 << 32, step):
        # From 2**16 on, numpy does it, and takes a microsecond for every float16 that becomes infinite.
        if target == "F16" and start & 0x7FFFFFFF >= 0x47800000 and start % (32 * step):
            continue
        bits = np.arange(start, start + step, dtype=np.uint32)
        agree("F32", target, bits.view(np.float32), plain=plain)


@compiled_here
@every_pair
def test_every_length(dtype: str, target: str) -> None:
    values = np.random.default_rng(1).standard_normal(2048).astype(np.float32)
    step = 32 if target.startswith("Q") else 1
    for length in (*range(0, 544, step), 2016, 2048):
        agree(dtype, target, as_source(values[:length], dtype), plain=False)


@compiled_here
@pytest.mark.parametrize("target", TARGETS[1:])
def test_what_is_left_to_numpy_leaves_the_rest(target: str) -> None:
    values = np.random.default_rng(1).standard_normal(256 * 40).astype(np.float32)
    for place, value in ((3, np.nan), (256 * 7, np.inf), (256 * 9 - 1, 7e4), (256 * 30 + 5, -3.4e38), (-1, 1e9)):
        values[place] = value
    kind = GGMLQuantizationType[target]
    elements, nbytes = GGML_QUANT_SIZES[kind]
    parts: list[int] = []

    def in_numpy(source: NDArray[Any], out: NDArray[Any], scratch: NDArray[np.uint8]) -> int:
        parts.append(len(source))
        return numpy_encode("F32", kind)(source, out, scratch)

    def left_to_numpy(values: NDArray[np.float32]) -> int:
        agree("F32", target, values, plain=False)
        parts.clear()
        out = np.empty(len(values) // elements * nbytes, np.uint8).view(TARGET_DTYPES.get(kind, np.uint8))
        kernels.compiled("F32", target, in_numpy, elements, nbytes)(values, out, np.empty(SCRATCH_NBYTES, np.uint8))
        assert set(parts) <= {256}
        return len(parts)

    assert left_to_numpy(values) == (3 if target == "BF16" else 5)
    # What an infinite inverse gives is another whole number on another kind of processor.
    assert left_to_numpy(np.full(512, 1e-40, np.float32)) == (2 if target in ("Q8_0", "Q5_0", "Q4_0") else 0)
    tiny = np.tile(np.array([0, 1e-40], np.float32), 256)
    assert left_to_numpy(tiny) == (2 if target.startswith("Q") else 0)


@compiled_here
def test_what_is_not_aligned_goes_through_numpy() -> None:
    raw = np.zeros(4 * 64 + 1, np.uint8)
    source = raw[1:].view(np.float32)
    source[:] = np.arange(64)
    out = np.empty(64, np.float16)
    encode = kernels.compiled("F32", "F16", numpy_encode("F32", GGMLQuantizationType.F16), 1, 2)
    assert encode(source, out, np.empty(SCRATCH_NBYTES, np.uint8)) == 0
    np.testing.assert_array_equal(out, np.arange(64))


# ---- where they cannot be had ----------------------------------------------------------------------------------------


def another_machines(library: bytes) -> bytes:
    """The library of a machine of another kind, as far as its header says: e_machine of ELF."""
    return library[:18] + b"\x02\x00" + library[20:]


BROKEN: dict[str, Callable[[bytes], bytes | None]] = {
    "none": lambda library: None,
    "empty": lambda library: b"",
    "no library": lambda library: b"print('hello')\n",
    "cut off": lambda library: library[:40],
    "another machine's": another_machines,
    "another version's": lambda library: library.replace(b"clipgguf_encode_", b"clipgguf_decode_"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_library_that_is_not_ours_is_left_alone(
    kind: str, library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / library.name
    made = BROKEN[kind](library.read_bytes())
    if made is not None:
        path.write_bytes(made)
    monkeypatch.setattr(kernels, "LIBRARY", path)
    monkeypatch.delenv("CLIPGGUF_PURE", raising=False)
    with looked_for_anew():
        assert kernels.encoders() == "numpy"
        target = GGMLQuantizationType.F16
        assert encoder("F32", target).encode is numpy_encode("F32", target)
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(sys.platform == "win32", reason="the compilers are scripts")
@pytest.mark.parametrize(
    "script", ["exit 1", "exit 0", 'while [ "$1" != -o ]; do shift; done; echo broken >"$2"', None]
)
def test_a_compiler_that_does_not_work_leaves_nothing(
    script: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    compiler = tmp_path / "cc"
    if script is not None:
        compiler.write_text(f"#!/bin/sh\n{script}\n")
        compiler.chmod(0o755)
    target = tmp_path / "out" / "encode.so"
    target.parent.mkdir()
    target.write_bytes(b"of an older version")
    monkeypatch.setenv("CC", str(compiler))
    assert not build(target)
    assert list(target.parent.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_the_environment_asks_for_numpy(run_alone: Run) -> None:
    result = run_alone("--version", env={**os.environ, "CLIPGGUF_PURE": "1"})
    assert result.stdout.endswith("(numpy)\n")
    assert result.stderr == ""


@pytest.mark.usefixtures("encoders")
def test_a_conversion_says_which_run(model: Path, run: Run, encoders: str) -> None:
    for words in ((), ("--dry-run",)):
        assert json.loads(run(model, "--json", *words).stdout)["encoders"] == encoders
