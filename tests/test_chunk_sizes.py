"""Chunks of every source dtype and every type, for tensors of about as many elements as each limit in the code."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants
from numpy.typing import NDArray

from clipgguf import Options, convert, encode
from clipgguf.element_types import OUTTYPES, tensor_nbytes
from clipgguf.jobs import BUFFER_NBYTES, SOURCE_NBYTES, SourceRange
from clipgguf.planning import PlannedTensor
from clipgguf.sources.local import LocalFile
from clipgguf.stream import LEAST_RANGE, RANGE_NBYTES, ChunkStream
from clipgguf.tensor import View
from clipgguf.verification import verify
from clipgguf.verification.tensors import Pair, compare_tensors
from clipgguf.verification.values import PIECE
from tests.checkpoints import Clip, Text, Vision, write_model
from tests.weights import ITEMSIZE, to_dtype, values

DTYPES = ("F64", "F32", "F16", "BF16")
# A row, a whole number of blocks of every type.
ROW = 32


def types() -> list[GGMLQuantizationType]:
    return [ggml_type for ggml_type, _ in OUTTYPES.values()]


def limits(dtype: str, ggml_type: GGMLQuantizationType) -> Iterator[int]:
    """Yield numbers of elements at which the code begins something new."""
    itemsize = ITEMSIZE[dtype]
    block, nbytes = GGML_QUANT_SIZES[ggml_type]
    yield from (encode._QUANTIZED_AT_ONCE, encode._BLOCK)
    yield from (SOURCE_NBYTES // itemsize, BUFFER_NBYTES // nbytes * block, LEAST_RANGE // itemsize)
    yield BUFFER_NBYTES // itemsize


def sizes(dtype: str, ggml_type: GGMLQuantizationType) -> list[int]:
    """Return whole rows: the last that ends before each limit and the first that ends after it, and few."""
    about = {limit // ROW * ROW + step for limit in limits(dtype, ggml_type) for step in (0, ROW)}
    return sorted({ROW, *about})


def expected(single: NDArray[np.float32], source: NDArray[Any], dtype: str, ggml_type: GGMLQuantizationType) -> bytes:
    """Return what numpy and gguf-py make of a whole tensor at once."""
    if dtype == ggml_type.name:
        return source.tobytes()
    if ggml_type == GGMLQuantizationType.F16:
        return single.astype("<f2").tobytes()
    return quants.quantize(single.reshape(-1, ROW), ggml_type).tobytes()


def as_float32(source: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    if dtype == "BF16":
        return (source.astype("<u4") << 16).view("<f4")
    return source.astype("<f4")


def planned(source: View, ggml_type: GGMLQuantizationType) -> PlannedTensor:
    elements = source.nbytes // source.itemsize
    return PlannedTensor(source, source.name, source.shape, ggml_type, tensor_nbytes(elements, ggml_type))


def streamed(tensors: Iterable[PlannedTensor], *, ranges: bool = False) -> dict[str, bytes]:
    """Return the bytes of all tensors by name, after making sure that every chunk has whole blocks."""
    found: dict[str, bytearray] = {}
    with ChunkStream(list(tensors), 2, ranges=ranges) as chunks:
        for chunk in chunks:
            assert chunk.nbytes % GGML_QUANT_SIZES[chunk.tensor.ggml_type][1] == 0
            data = chunk.data
            if isinstance(data, SourceRange):
                assert data.nbytes <= RANGE_NBYTES
                copied = memoryview(bytearray(data.nbytes))
                data.file.read(data.offset, copied)
                data = copied
            else:
                assert len(data) <= BUFFER_NBYTES
            found.setdefault(chunk.tensor.name, bytearray()).extend(data)
    return {name: bytes(data) for name, data in found.items()}


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, NDArray[Any]]]:
    """The same random values in every dtype: a file of them, and an array."""
    directory = tmp_path_factory.mktemp("stored")
    single = np.concatenate(list(values(1, 1 << 20)))
    files = {}
    for dtype in DTYPES:
        array = to_dtype(single, dtype)
        (directory / dtype).write_bytes(array.tobytes())
        files[dtype] = directory / dtype, array
    return files


@pytest.mark.slow
@pytest.mark.parametrize("ggml_type", types(), ids=lambda ggml_type: str(ggml_type.name))
@pytest.mark.parametrize("dtype", DTYPES)
def test_chunks_are_parts_of_the_whole(
    dtype: str, ggml_type: GGMLQuantizationType, stored: dict[str, tuple[Path, NDArray[Any]]]
) -> None:
    path, array = stored[dtype]
    counts = sizes(dtype, ggml_type)
    tensors = [
        planned(View(str(n), dtype, (n // ROW, ROW), LocalFile(path), 0, n * ITEMSIZE[dtype]), ggml_type)
        for n in counts
    ]
    largest = array[: counts[-1]]
    whole = expected(as_float32(largest, dtype), largest, dtype, ggml_type)
    for name, data in streamed(tensors, ranges=dtype == ggml_type.name).items():
        assert data == whole[: tensor_nbytes(int(name), ggml_type)], f"{name} elements"


# Few rows, which are longer than a chunk, and many; both more than a chunk of every kind.
@pytest.mark.slow
@pytest.mark.parametrize("shape", [(2, 16_383 * ROW), (32_767, ROW), (681, 48 * ROW)], ids=str)
@pytest.mark.parametrize("ggml_type", types(), ids=lambda ggml_type: str(ggml_type.name))
@pytest.mark.parametrize("dtype", ["F32", "F16"])
def test_chunks_of_a_transposed_matrix_are_whole_blocks(
    dtype: str,
    ggml_type: GGMLQuantizationType,
    shape: tuple[int, int],
    stored: dict[str, tuple[Path, NDArray[Any]]],
) -> None:
    path, array = stored[dtype]
    count = shape[0] * shape[1]
    turned = np.ascontiguousarray(array[:count].reshape(shape[::-1]).T)
    source = View("a", dtype, shape, LocalFile(path), 0, count * ITEMSIZE[dtype], strides=(1, shape[0]))
    whole = expected(as_float32(turned, dtype).reshape(-1), turned.reshape(-1), dtype, ggml_type)
    assert streamed([planned(source, ggml_type)])["a"] == whole


def test_ranges_about_their_largest_size(tmp_path: Path) -> None:
    counts = [RANGE_NBYTES // 4 + step for step in (-ROW, 0, ROW)]
    raw = np.random.default_rng(1).bytes(counts[-1] * 4)
    (tmp_path / "stored").write_bytes(raw)
    tensors = [
        planned(
            View(str(n), "F32", (n // ROW, ROW), LocalFile(tmp_path / "stored"), 0, n * 4), GGMLQuantizationType.F32
        )
        for n in counts
    ]
    for ranges in (True, False):
        found = streamed(tensors, ranges=ranges)
        assert all(data == raw[: int(name) * 4] for name, data in found.items())


@pytest.mark.parametrize("step", [-ROW, 0, ROW])
def test_verifying_about_the_size_of_a_piece(step: int, tmp_path: Path) -> None:
    count = 2 * PIECE + step
    single = np.concatenate(list(values(2, count)))
    (tmp_path / "source").write_bytes(single.tobytes())
    (tmp_path / "stored").write_bytes(quants.quantize(single.reshape(-1, ROW), GGMLQuantizationType.Q8_0).tobytes())
    shape = (count // ROW, ROW)
    pair = Pair(
        planned(View("a", "F32", shape, LocalFile(tmp_path / "source"), 0, count * 4), GGMLQuantizationType.Q8_0),
        View("a", "Q8_0", shape, LocalFile(tmp_path / "stored"), 0, count // 32 * 34),
    )
    (comparison,) = compare_tensors([pair], LocalFile(tmp_path / "stored"), 2, None).values()
    assert (comparison.elements, comparison.verdict) == (count, "rounded")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["F64", "F16", "BF16"])
def test_a_matrix_as_large_as_those_of_every_clip(dtype: str, tmp_path: Path) -> None:
    # 768 x 768, the attention of ViT-B, is the smallest that half-precision checkpoints have.
    clip = Clip(Text(32, 64, 1, 4, vocab_size=99, max_position_embeddings=16), Vision(768, 96, 1, 4, 28, 14), 24)
    model = write_model(tmp_path / "m", clip, dtype=dtype)
    for outtype in OUTTYPES:
        assert verify(convert(model, tmp_path, options=Options(outtype=outtype)).path, model).agrees
