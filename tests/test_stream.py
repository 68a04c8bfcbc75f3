"""Chunks: views that are not contiguous, compressed storages, and how much is in memory at once."""

import itertools
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from clipgguf import CheckpointError, convert
from clipgguf import stream as stream_module
from clipgguf.checkpoint import Checkpoint
from clipgguf.convert import plan_conversion
from clipgguf.families import Request
from clipgguf.stream import CHUNK_ELEMENTS, LOOK_AHEAD, ChunkStream
from tests import torch_bytes
from tests.checkpoints import Clip, Text, Vision, to_dtype, values, write_model

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


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("outtype", ["f16", "f32"])
@pytest.mark.parametrize("reverse_axes", [False, True], ids=["contiguous", "transposed"])
def test_torch_files_give_the_same_bytes(dtype: str, outtype: str, reverse_axes: bool, tmp_path: Path) -> None:
    expected = convert(write_model(tmp_path / "a" / "m", CLIP, dtype=dtype), tmp_path / "out-a", outtype=outtype)
    model = write_torch_model(tmp_path / "b" / "m", CLIP, dtype, reverse_axes=reverse_axes)
    is_strided = Checkpoint.open(model).tensors["text_projection.weight"].strides is not None
    assert is_strided == reverse_axes
    assert convert(model, tmp_path / "out-b", outtype=outtype).path.read_bytes() == expected.path.read_bytes()


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
    deflated = Checkpoint.open(model).tensors["text_projection.weight"].deflated
    assert deflated is not None
    raw = bytearray((model / "pytorch_model.bin").read_bytes())
    raw[deflated.offset + deflated.compressed_size // 2] ^= 0x40
    (model / "pytorch_model.bin").write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"is damaged|it should"):
        convert(model, tmp_path / "b")
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_buffers_are_bounded_by_design(threads: int, tmp_path: Path) -> None:
    plan = plan_conversion(Request(write_model(tmp_path / "m", CLIP)))
    tracemalloc.start()
    try:
        with ChunkStream(plan.tensors, threads) as stream:
            for chunk in stream:
                assert len(chunk.data) <= CHUNK_ELEMENTS * 4
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    buffers = (threads + LOOK_AHEAD) * CHUNK_ELEMENTS * stream_module.LARGEST_ELEMENT
    assert buffers <= peak < buffers + (1 << 20)


def test_blocks_cover_a_view_once_and_in_order() -> None:
    for shape in ((5, 3), (7, 600, 1000), (2, 1 << 18), (3, 1 << 19), (1 << 20,)):
        array = np.empty(shape, np.uint8)
        offsets = np.lib.stride_tricks.as_strided(array, shape, array.strides)
        expected = itertools.count()
        for start, block in stream_module._blocks(shape, offsets.strides):
            assert int(np.prod(block)) <= CHUNK_ELEMENTS
            assert start == next(expected)
            expected = itertools.count(start + int(np.prod(block)))
        assert next(expected) == int(np.prod(shape))
