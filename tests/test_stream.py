"""Chunks: views that are not contiguous, compressed storages, and how much is in memory at once."""

import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from clipgguf import CheckpointError, Options, convert, plan, verify
from clipgguf.checkpoint import Checkpoint
from clipgguf.checkpoint.deflate import InflatedStorage
from clipgguf.checkpoint.strides import BAND_NBYTES
from clipgguf.checkpoint.views import OrderedBlocks
from clipgguf.encode import SCRATCH_NBYTES
from clipgguf.jobs import BUFFER_NBYTES, SOURCE_NBYTES, SourceRange
from clipgguf.options import Outtype
from clipgguf.sources.local import LocalFile, LocalFolder
from clipgguf.stream import LEAST_RANGE, LOOK_AHEAD, ChunkStream
from tests import torch_bytes
from tests.checkpoints import Clip, Text, Vision, write_model
from tests.processes import peak_of
from tests.weights import to_dtype, values

# The token embedding has three chunks, and as a column-major matrix reaches over two and a half MiB.
CLIP = Clip(Text(32, 64, 1, 4, vocab_size=20_011, max_position_embeddings=16), Vision(48, 96, 1, 4, 28, 14), 24)


def write_torch_model(directory: Path, clip: Clip, dtype: str, *, reverse_axes: bool) -> Path:
    """Write a model whose weights are one .bin file, its tensors stored with their axes in either order."""
    write_model(directory, clip)
    (directory / "model.safetensors").unlink()
    storages, records = {}, {}
    kind = {"F32": "FloatStorage", "F16": "HalfStorage", "BF16": "BFloat16Storage"}[dtype]
    for number, (name, shape) in enumerate(clip.shapes().items()):
        seed = sum(i * b for i, b in enumerate(name.encode(), 1)) % 2**32
        array = np.concatenate(list(values(seed, int(np.prod(shape, dtype=int))))).reshape(shape)
        stored = array.T.copy() if reverse_axes else array
        steps = [int(np.prod(stored.shape[i + 1 :], dtype=int)) for i in range(stored.ndim)]
        strides = tuple(reversed(steps)) if reverse_axes else tuple(steps)
        where = torch_bytes.storage(str(number), array.size, kind)
        records[name] = torch_bytes.tensor(where, 0, shape, strides)
        storages[str(number)] = to_dtype(stored, dtype).tobytes()
    (directory / "pytorch_model.bin").write_bytes(torch_bytes.checkpoint(torch_bytes.mapping(records), storages))
    return directory


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("outtype", ["f16", "f32"])
@pytest.mark.parametrize("reverse_axes", [False, True], ids=["contiguous", "transposed"])
def test_torch_files_give_the_same_bytes(dtype: str, outtype: Outtype, reverse_axes: bool, tmp_path: Path) -> None:
    expected = convert(
        write_model(tmp_path / "a" / "m", CLIP, dtype=dtype), tmp_path / "out-a", options=Options(outtype=outtype)
    )
    model = write_torch_model(tmp_path / "b" / "m", CLIP, dtype, reverse_axes=reverse_axes)
    is_strided = Checkpoint.open(LocalFolder(model)).tensors["text_projection.weight"].strides is not None
    assert is_strided == reverse_axes
    assert (
        convert(model, tmp_path / "out-b", options=Options(outtype=outtype)).path.read_bytes()
        == expected.path.read_bytes()
    )


# Matrices of 16 MiB and a little, whose transposes have a few values here and there of each row.
WIDE = Clip(Text(32, 64, 1, 4, vocab_size=99, max_position_embeddings=16), Vision(64, 65_600, 1, 4, 28, 14), 24)


@pytest.mark.parametrize(
    "compression",
    [zipfile.ZIP_STORED, pytest.param(zipfile.ZIP_DEFLATED, marks=pytest.mark.slow)],
    ids=["stored", "deflated"],
)
def test_large_transposed_matrices(compression: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ordered: list[tuple[int, ...]] = []
    read_bands = OrderedBlocks._read_bands

    def count(self: OrderedBlocks) -> Iterator[memoryview]:
        ordered.append(self._view.shape)
        return read_bands(self)

    monkeypatch.setattr(OrderedBlocks, "_read_bands", count)
    expected = convert(write_model(tmp_path / "a" / "m", WIDE), tmp_path / "out-a", options=Options(outtype="q8_0"))
    model = write_torch_model(tmp_path / "b" / "m", WIDE, "F32", reverse_axes=True)
    repack(model / "pytorch_model.bin", compression)
    path = convert(model, tmp_path / "out-b", options=Options(outtype="q8_0")).path
    assert path.read_bytes() == expected.path.read_bytes()
    assert ordered == [(64, 65_600)]
    assert verify(path, model).agrees


def test_transposing_takes_little_memory(tmp_path: Path) -> None:
    planned = plan(write_torch_model(tmp_path / "m", WIDE, "F32", reverse_axes=True))

    def stream_all() -> None:
        with ChunkStream(planned.tensors, 2) as stream:
            assert sum(chunk.nbytes for chunk in stream) == planned.bytes_out

    stream_all()  # What numpy makes once, and keeps, is there the second time.
    peak = peak_of(stream_all)
    buffers = (2 + LOOK_AHEAD) * BUFFER_NBYTES + 2 * (SOURCE_NBYTES + SCRATCH_NBYTES)
    assert peak < buffers + 4 * BAND_NBYTES  # Three of them, and numpy's.


def repack(path: Path, compression: int) -> None:
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)


def test_compressed_torch_file(tmp_path: Path) -> None:
    model = write_torch_model(tmp_path / "m", CLIP, "F32", reverse_axes=False)
    expected = convert(model, tmp_path / "a").path.read_bytes()
    repack(model / "pytorch_model.bin", zipfile.ZIP_DEFLATED)
    assert convert(model, tmp_path / "b").path.read_bytes() == expected


def test_damage_in_a_compressed_storage_is_found(tmp_path: Path) -> None:
    model = write_torch_model(tmp_path / "m", CLIP, "F32", reverse_axes=False)
    repack(model / "pytorch_model.bin", zipfile.ZIP_DEFLATED)
    storage = Checkpoint.open(LocalFolder(model)).tensors["text_projection.weight"].file
    assert isinstance(storage, InflatedStorage)
    deflated = storage.deflated
    raw = bytearray((model / "pytorch_model.bin").read_bytes())
    raw[deflated.offset + deflated.compressed_size // 2] ^= 0x40
    (model / "pytorch_model.bin").write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"is damaged|it should"):
        convert(model, tmp_path / "b")
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("outtype", ["f16", "f32", "q8_0"])
def test_buffers_are_bounded_by_design(threads: int, outtype: Outtype, tmp_path: Path) -> None:
    planned = plan(write_model(tmp_path / "m", CLIP), options=Options(outtype=outtype))

    def stream_all() -> None:
        with ChunkStream(planned.tensors, threads) as stream:
            sizes = [chunk.nbytes for chunk in stream]
        assert sum(sizes) == planned.bytes_out
        assert max(sizes) <= BUFFER_NBYTES

    stream_all()  # What gguf and numpy make once, and keep.
    peak = peak_of(stream_all)
    buffers = (threads + LOOK_AHEAD) * BUFFER_NBYTES + threads * (SOURCE_NBYTES + SCRATCH_NBYTES)
    # gguf-py quantizes in a dozen intermediate arrays.
    assert buffers <= peak < buffers + (1 << 20) * (threads if outtype == "q8_0" else 1)


def test_ranges_are_what_needs_no_encoding(tmp_path: Path) -> None:
    planned = plan(write_model(tmp_path / "m", CLIP, dtype="F16"))
    with ChunkStream(planned.tensors, 2, ranges=True) as stream:
        for chunk in stream:
            is_copy = chunk.tensor.ggml_type.name == chunk.tensor.source.dtype
            assert isinstance(chunk.data, SourceRange) == (is_copy and chunk.tensor.nbytes >= LEAST_RANGE)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a file that cannot be read though it is open")
def test_a_source_that_cannot_be_read_is_an_error() -> None:
    source = LocalFile(Path("/proc/self/mem"))
    with pytest.raises(CheckpointError, match=r"mem: bytes 0 to 16 cannot be read: Input/output error"):
        source.read(0, memoryview(bytearray(16)))
    source.close()
