"""Joined and computed tensors go through the stream as views do, to every type and in any number of chunks."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants
from numpy.typing import NDArray

from clipgguf.jobs import SOURCE_NBYTES
from clipgguf.planning import PlannedTensor
from clipgguf.sources.local import LocalFile
from clipgguf.stream import ChunkStream
from clipgguf.tensor import Computed, Joined, Read, Tensor, View, padded
from clipgguf.transforms import in_parts, plus, reordered, softplus, summed

TYPES = (GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.BF16, GGMLQuantizationType.Q8_0)
# Several chunks in each part, and a last one that is not full.
ROWS, WIDTH = SOURCE_NBYTES // 4 // 96 + 7, 160


def stored(path: Path, dtype: str = "<f4", seed: int = 0) -> tuple[View, NDArray[Any]]:
    """Write a matrix into a file of its own; return a view of it, and its values."""
    values = np.random.default_rng(seed).standard_normal((ROWS, WIDTH)).astype(dtype)
    path.write_bytes(values.tobytes())
    return View(
        path.name, {"<f4": "F32", "<f2": "F16"}[dtype], (ROWS, WIDTH), LocalFile(path), 0, values.nbytes
    ), values


def streamed(source: Tensor, shape: tuple[int, ...], ggml_type: GGMLQuantizationType) -> bytes:
    block, nbytes = GGML_QUANT_SIZES[ggml_type]
    planned = PlannedTensor(source, "t", shape, ggml_type, int(np.prod(shape)) // block * nbytes)
    with ChunkStream([planned], 2) as stream:
        return b"".join(bytes(chunk.data) for chunk in stream if isinstance(chunk.data, memoryview))


@pytest.mark.parametrize("dtype", ["<f4", "<f2"])
@pytest.mark.parametrize("ggml_type", TYPES, ids=lambda kind: kind.name)
def test_padded(ggml_type: GGMLQuantizationType, dtype: str, tmp_path: Path) -> None:
    parts = [stored(tmp_path / str(seed), dtype, seed) for seed in range(3)]
    lengths, most = (ROWS, 1, ROWS - 5), ROWS + 3
    made = padded([view.rows(0, rows) for rows, (view, _) in zip(lengths, parts, strict=True)], most)
    right = np.zeros((3, most, WIDTH), np.float32)
    for number, (rows, (_, values)) in enumerate(zip(lengths, parts, strict=True)):
        right[number, :rows] = values[:rows]
    assert made.shape == (3 * most, WIDTH)
    assert streamed(made, right.shape, ggml_type) == quants.quantize(right, ggml_type).tobytes()


@pytest.mark.parametrize("ggml_type", TYPES, ids=lambda kind: kind.name)
def test_joined(ggml_type: GGMLQuantizationType, tmp_path: Path) -> None:
    parts = [stored(tmp_path / f"{n}", seed=n) for n in range(3)]
    whole = np.concatenate([values for _, values in parts])
    joined = Joined(tuple(view for view, _ in parts))
    assert joined.nbytes == whole.nbytes
    assert streamed(joined, whole.shape, ggml_type) == quants.quantize(whole, ggml_type).tobytes()


@pytest.mark.parametrize("ggml_type", TYPES, ids=lambda kind: kind.name)
@pytest.mark.parametrize("dtype", ["<f4", "<f2"])
def test_plus(dtype: str, ggml_type: GGMLQuantizationType, tmp_path: Path) -> None:
    view, values = stored(tmp_path / "x", dtype)
    # In half precision where the source is, as torch computes it.
    expected = (values + values.dtype.type(1)).astype(np.float32)
    source = plus(1)(view, values.shape, {})
    assert streamed(source, values.shape, ggml_type) == quants.quantize(expected, ggml_type).tobytes()


@pytest.mark.parametrize("dtype", ["<f4", "<f2"])
def test_softplus(dtype: str, tmp_path: Path) -> None:
    view = stored(tmp_path / "x", dtype)[0]
    some = np.array([-np.inf, -200, -20, -1, 0, 1, 19.98, 20, 20.02, 90, np.inf], dtype)
    (tmp_path / "x").write_bytes(some.tobytes())
    view = replace(view, shape=some.shape, nbytes=some.nbytes)
    expected = np.array([x if x > 20 else math.log1p(math.exp(x)) for x in map(float, some)]).astype(dtype)
    made = streamed(softplus(view, some.shape, {}), some.shape, GGMLQuantizationType.F32)
    assert made == expected.astype(np.float32).tobytes()


@pytest.mark.parametrize("ggml_type", TYPES, ids=lambda kind: kind.name)
def test_reordered(ggml_type: GGMLQuantizationType, tmp_path: Path) -> None:
    view, values = stored(tmp_path / "x", "<f2")
    count = next(n for n in range(5, ROWS) if ROWS % n == 0)
    order = np.random.default_rng(1).permutation(count)
    expected = values.reshape(-1, count, WIDTH)[:, order].reshape(values.shape).astype(np.float32)
    source = reordered(lambda values: order.tolist())(view, values.shape, {})
    assert streamed(source, values.shape, ggml_type) == quants.quantize(expected, ggml_type).tobytes()


@pytest.mark.parametrize("ggml_type", TYPES, ids=lambda kind: kind.name)
def test_parts_with_shapes_of_their_own(ggml_type: GGMLQuantizationType, tmp_path: Path) -> None:
    view, values = stored(tmp_path / "x")
    heads = "(heads 3 2) width -> (heads 2 3) width"
    view, values = view.rows(0, 4 * 12), values[: 4 * 12]
    made = in_parts(heads, "(2 6) width -> (6 2) width", heads, "rows width")(view, values.shape, {"vision.heads": 2})
    assert isinstance(made, Joined)
    first, second, third, last = np.split(values, 4)

    def in_heads(part: NDArray[Any]) -> NDArray[Any]:
        return part.reshape(2, 3, 2, WIDTH).swapaxes(1, 2).reshape(12, WIDTH)

    other = second.reshape(2, 6, WIDTH).swapaxes(0, 1).reshape(12, WIDTH)
    expected = np.concatenate([in_heads(first), other, in_heads(third), last])
    assert streamed(made, values.shape, ggml_type) == quants.quantize(expected, ggml_type).tobytes()


def test_parts_that_do_not_fit(tmp_path: Path) -> None:
    view = stored(tmp_path / "x")[0]
    with pytest.raises(ValueError, match=r"'x' has parts of shape \(6, 160\), which is no \(heads 4\) width"):
        in_parts("(heads 4) width -> (4 heads) width")(view.rows(0, 6), (6, WIDTH), {"vision.heads": 2})


@pytest.mark.parametrize("ggml_type", TYPES, ids=lambda kind: kind.name)
@pytest.mark.parametrize("dtype", ["<f4", "<f2"])
def test_summed(dtype: str, ggml_type: GGMLQuantizationType, tmp_path: Path) -> None:
    view, values = stored(tmp_path / "x", dtype)
    frames = values.reshape(ROWS, 5, 32)
    view = replace(view, shape=frames.shape)
    source = summed(1)(view, frames.shape, {})
    # Rounded once, also in half precision.
    single = sum(frames[:, n].astype(np.float32) for n in range(5))
    expected = np.asarray(single).astype(dtype).astype(np.float32)
    assert streamed(source, expected.shape, ggml_type) == quants.quantize(expected, ggml_type).tobytes()


def test_rows_are_asked_for_in_order_and_cover_all(tmp_path: Path) -> None:
    asked: list[tuple[int, int]] = []

    def rows(read: Read, start: int, stop: int) -> NDArray[Any]:
        asked.append((start, stop))
        return np.arange(start, stop, dtype=np.float32)[:, None] + np.zeros((1, WIDTH), np.float32)

    source = Computed("made", (ROWS, WIDTH), (stored(tmp_path / "x")[0],), rows)
    expected = np.repeat(np.arange(ROWS, dtype=np.float32), WIDTH)
    assert streamed(source, (ROWS, WIDTH), GGMLQuantizationType.F32) == expected.tobytes()
    assert min(start for start, _ in asked) == 0
    assert max(stop for _, stop in asked) == ROWS
    assert all((stop - start) * WIDTH * 4 <= SOURCE_NBYTES + 2 * WIDTH * 4 for start, stop in asked)
