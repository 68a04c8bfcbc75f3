"""Compressed storages of torch's files, inflated in bounded memory and checked."""

import hashlib
import math
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from clipgguf.checkpoint.deflate import Deflated, InflatedStorage
from clipgguf.checkpoint.torch_zip import read_torch_file
from clipgguf.errors import CheckpointError
from clipgguf.sources import Source
from clipgguf.sources.local import LocalFile
from clipgguf.tensor import View
from tests.processes import peak_of
from tests.torch_bytes import (
    archive,
    mapping,
    pickled,
    storage,
    tensor,
)
from tests.torch_files import FIXTURES, values

# Inflating.


def deflated_weight(saved: Callable[[bytes], Path], size: int) -> tuple[View, bytes]:
    content = np.random.default_rng(0).integers(0, 16, size, np.uint8).tobytes()
    value = mapping({"weight": tensor(storage("0", size, "ByteStorage"), 0, (size,), (1,))})
    entries = {"data.pkl": pickled(value), "data/0": content}
    (source,) = read_torch_file(LocalFile(saved(archive(entries, compression=zipfile.ZIP_DEFLATED))))
    return source, content


def read_byte(source: Source) -> None:
    source.read(0, memoryview(bytearray(1)))


def test_large_storage_is_inflated_in_bounded_memory(saved: Callable[[bytes], Path]) -> None:
    source, content = deflated_weight(saved, (8 << 20) + 3)
    assert isinstance(source.file, InflatedStorage)
    inflated = source.file
    assert peak_of(lambda: read_byte(inflated)) < 6 << 20
    stored = memoryview(bytearray(source.nbytes))
    inflated.read(0, stored)
    inflated.close()
    assert hashlib.sha256(stored).digest() == hashlib.sha256(content).digest()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"inflated_size": 99_999}, "inflates to more than the 99,999 bytes"),
        ({"inflated_size": 100_001}, "inflates to 100,000 bytes, it should to 100,001"),
        ({"crc32": 0}, "is damaged: its CRC-32 is"),
        ({"compressed_size": 100}, "bytes, it should to 100,000"),
        ({"offset": 0}, "is damaged"),
        ({"offset": 10**9}, "inflates to 0 bytes"),
    ],
    ids=["too-long", "too-short", "crc32", "cut-off", "offset", "outside"],
)
def test_inflating_what_the_directory_describes_wrongly(
    change: dict[str, int], words: str, saved: Callable[[bytes], Path]
) -> None:
    source, _ = deflated_weight(saved, 100_000)
    assert isinstance(source.file, InflatedStorage)
    right = source.file.deflated
    fields = {name: getattr(right, name) for name in ("offset", "compressed_size", "inflated_size", "crc32")}
    with pytest.raises(CheckpointError) as caught:
        read_byte(InflatedStorage(source.file.origin, Deflated(**fields | change)))
    assert words in str(caught.value)


def test_inflating_a_file_that_is_gone(saved: Callable[[bytes], Path]) -> None:
    source, _ = deflated_weight(saved, 1000)
    assert isinstance(source.file, InflatedStorage)
    source.file.origin.close()
    Path(str(source.file)).unlink()
    with pytest.raises(CheckpointError, match="is missing"):
        read_byte(source.file)


def test_inflating_without_a_place_for_it(saved: Callable[[bytes], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    source, _ = deflated_weight(saved, 1000)
    assert isinstance(source.file, InflatedStorage)
    monkeypatch.setattr("tempfile.tempdir", str(Path(str(source.file)).parent / "missing"))
    with pytest.raises(CheckpointError, match="cannot be inflated into"):
        read_byte(source.file)


def test_extent_of_tensors() -> None:
    record = View("a", "F16", (3, 2), LocalFile(Path(__file__)), 0, 12)
    assert record.extent == 12
    strided = View("a", "F16", (3, 2), LocalFile(Path(__file__)), 0, 12, strides=(4, 1))
    assert strided.extent == (2 * 4 + 1 + 1) * 2
    assert strided.extent // 2 >= math.prod(strided.shape)
    assert View("a", "F16", (3, 2), LocalFile(Path(__file__)), 0, 12, strides=(0, 0)).extent == 2


def test_fixture_directory_is_not_written_to(tmp_path: Path) -> None:
    copy = tmp_path / "fixtures"
    shutil.copytree(FIXTURES / "good", copy)
    before = {path: path.read_bytes() for path in copy.iterdir()}
    for path in copy.glob("*.bin"):
        for source in read_torch_file(LocalFile(path)):
            values(source)
    assert {path: path.read_bytes() for path in copy.iterdir()} == before
