"""Batch norms folded into a factor and a summand; that the bytes are the reference's is seen by the families."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from clipgguf import CheckpointError
from clipgguf.batch_norm import folded
from clipgguf.families.bases import MTMD
from clipgguf.family import Family
from clipgguf.matching import Match
from clipgguf.planning import PlannedTensor
from clipgguf.sources.local import LocalFile, LocalFolder
from clipgguf.stream import ChunkStream
from clipgguf.table import Section, Value
from clipgguf.tensor import View

# More than one chunk of a stream.
WIDTH = 1 << 19
FAMILY = Family(
    title="A family",
    base=MTMD,
    values=(Value("vision.width", "hidden_size", 8),),
    sections=(Section("net.", "v.", folded("norm", "conv_norm")),),
)
NAMES = ("weight", "bias", "running_mean", "running_var")
Values = dict[str, NDArray[Any]]


def norm(width: int = WIDTH, halves: Sequence[str] = ()) -> Values:
    random = np.random.default_rng(0)
    found = {name: random.standard_normal(width).astype("<f2" if name in halves else "<f4") for name in NAMES}
    found["running_var"] = np.abs(found["running_var"])
    return found


def match(directory: Path, arrays: Values, width: int = WIDTH) -> Match:
    directory.mkdir(exist_ok=True)
    views: dict[str, View] = {}
    for name, array in arrays.items():
        (directory / name).write_bytes(array.tobytes())
        dtype = {"<f4": "F32", "<f2": "F16", "<i8": "I64"}[array.dtype.str]
        file = LocalFile(directory / name)
        views[f"net.norm.{name}"] = View(f"net.norm.{name}", dtype, array.shape, file, 0, array.nbytes)
    return Match(FAMILY, views, {"vision.width": width}, LocalFolder(directory), "config.json")


def found_in(matched: Match) -> dict[str, NDArray[np.float32]]:
    matched.find(ignore_unknown=False)
    planned = [
        PlannedTensor(output.source, output.name, output.shape, GGMLQuantizationType.F32, 4 * WIDTH)
        for output in matched.outputs
    ]
    data: dict[str, bytes] = {}
    with ChunkStream(planned, 2) as stream:
        for chunk in stream:
            assert isinstance(chunk.data, memoryview)
            data[chunk.tensor.name] = data.get(chunk.tensor.name, b"") + bytes(chunk.data)
    return {name: np.frombuffer(values, "<f4") for name, values in data.items()}


@pytest.mark.parametrize("halves", [(), ("weight", "bias")], ids=["single", "mixed"])
def test_it_is_the_norm(halves: tuple[str, ...], tmp_path: Path) -> None:
    arrays = norm(halves=halves)
    found = found_in(match(tmp_path, arrays))
    assert list(found) == ["v.conv_norm.weight", "v.conv_norm.bias"]
    weight, bias, mean, variance = (array.astype(np.float64) for array in arrays.values())
    for x in (-3.0, 0.0, 2.0):
        right = (x - mean) / np.sqrt(variance + 1e-5) * weight + bias
        mine = found["v.conv_norm.weight"] * x + found["v.conv_norm.bias"]
        assert np.allclose(mine, right, rtol=1e-5, atol=1e-4)


def test_halves_are_rounded_at_each_step(tmp_path: Path) -> None:
    arrays = norm(halves=NAMES)
    found = found_in(match(tmp_path, arrays))
    half = np.float16
    root = np.sqrt((arrays["running_var"] + half(1e-5)).astype(np.float64)).astype(half)
    factor = (arrays["weight"].astype(np.float64) / root).astype(half)
    product = (arrays["running_mean"].astype(np.float64) * factor).astype(half)
    assert np.array_equal(found["v.conv_norm.weight"], factor.astype(np.float32))
    assert np.array_equal(found["v.conv_norm.bias"], (arrays["bias"] - product).astype(np.float32))


def test_what_makes_no_number_says_nothing(tmp_path: Path) -> None:
    arrays = norm()
    arrays["running_var"][:3] = -1, -1e-5, np.inf
    found = found_in(match(tmp_path, arrays))["v.conv_norm.weight"]
    assert np.isnan(found[0])
    assert found[2] == 0
    assert np.isfinite(found[3:]).all()


@pytest.mark.parametrize("name", NAMES)
def test_each_is_asked_for(name: str, tmp_path: Path) -> None:
    arrays = norm(8)
    del arrays[name]
    with pytest.raises(CheckpointError) as caught:
        match(tmp_path, arrays, 8).find(ignore_unknown=False)
    assert caught.value.problems[0] == (
        f"{tmp_path}: no file has tensor 'net.norm.{name}', config.json asks for it with shape (8)"
    )
    # Those that only it would have been read with are no strangers because of that.
    assert len(caught.value.problems) == 1


def test_each_must_fit(tmp_path: Path) -> None:
    arrays = {**norm(8), "running_mean": np.zeros(9, np.float32), "running_var": np.zeros(8, np.int64)}
    with pytest.raises(CheckpointError) as caught:
        match(tmp_path, arrays, 8).find(ignore_unknown=False)
    mean, variance = (f"{tmp_path / name}: tensor 'net.norm.{name}'" for name in ("running_mean", "running_var"))
    assert sorted(caught.value.problems) == [
        f"{mean} has shape (9), config.json asks for (8)",
        f"{variance} is of type I64, supported are F64, F32, F16, BF16",
    ]
