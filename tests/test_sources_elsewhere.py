"""Sources and folders that are no files and directories of this machine: everything else takes them all the same."""

import zipfile
from pathlib import Path

import pytest

from clipgguf import CheckpointError, Options, convert
from clipgguf.checkpoint import Checkpoint
from clipgguf.checkpoint.gguf_reader import read_gguf
from clipgguf.checkpoint.safetensors import read_safetensors_header
from clipgguf.families import _open
from clipgguf.planning import make_plan
from clipgguf.sources import Folder, Source, SourceIO
from clipgguf.sources.local import LocalFile, LocalFolder
from clipgguf.writer import write_plan
from tests.checkpoints import write_model
from tests.test_sources import DEEP, deflated


class Memory(Source):
    """Bytes in memory."""

    read_cost = 1

    def __init__(self, name: str, data: bytes) -> None:
        self.name, self.size, self.data = name, len(data), data

    def read(self, offset: int, target: memoryview) -> None:
        """Fill the target."""
        if offset + len(target) > self.size:
            raise CheckpointError(f"{self}: bytes {offset:,} to {offset + len(target):,} cannot be read: not there")
        target[:] = self.data[offset : offset + len(target)]

    def close(self) -> None:
        """Do nothing."""


class Bucket(Folder):
    """Files in memory by name, some of them in folders."""

    def __init__(self, name: str, files: dict[str, bytes]) -> None:
        self.name, self.files = name, files

    def __contains__(self, file: str) -> bool:
        return file in self.files

    def open(self, file: str) -> Memory:
        """Open a file."""
        if file not in self.files:
            raise CheckpointError(f"{self.name_of(file)}: is missing")
        return Memory(self.name_of(file), self.files[file])

    def name_of(self, file: str) -> str:
        """Return an address."""
        return f"mem://{self.name}/{file}"

    def folder(self, name: str) -> "Bucket":
        """Return the files of a folder."""
        files = {file.removeprefix(f"{name}/"): data for file, data in self.files.items() if file.startswith(name)}
        return Bucket(f"{self.name}/{name}", files)


def bucket(directory: Path) -> Bucket:
    return Bucket("m", {path.name: path.read_bytes() for path in directory.iterdir()})


@pytest.mark.parametrize("kind", ["safetensors", "shards", "deflated", "stored"])
def test_a_model_elsewhere_gives_the_same_file(kind: str, tmp_path: Path) -> None:
    model = write_model(tmp_path / "m", DEEP, shards=3 if kind == "shards" else 1)
    if kind in ("deflated", "stored"):
        path = deflated(model)
        if kind == "stored":
            with zipfile.ZipFile(path) as archive:
                entries = {name: archive.read(name) for name in archive.namelist()}
            with zipfile.ZipFile(path, "w") as archive:
                for name, data in entries.items():
                    archive.writestr(name, data)
    expected = convert(model, tmp_path / "a.gguf").path.read_bytes()
    plan = make_plan(_open(bucket(model), Options(), None), "f16")
    write_plan(plan, tmp_path / "b.gguf")
    assert (tmp_path / "b.gguf").read_bytes() == expected


def test_errors_name_what_is_elsewhere(tmp_path: Path) -> None:
    files = bucket(write_model(tmp_path / "m", DEEP))
    files.files["model.safetensors"] = files.files["model.safetensors"][:-1]
    with pytest.raises(CheckpointError, match=r"^mem://m/model\.safetensors: is truncated or no safetensors file"):
        Checkpoint.open(files)
    del files.files["model.safetensors"]
    with pytest.raises(CheckpointError, match=r"^m: has no weights, should have one of"):
        Checkpoint.open(files)


def test_headers_elsewhere_are_those_of_files(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m", DEEP)
    path = convert(model, tmp_path / "a.gguf").path
    local, elsewhere = (read_gguf(file) for file in (LocalFile(path), Memory("a", path.read_bytes())))
    assert (local.metadata, local.data_start) == (elsewhere.metadata, elsewhere.data_start)
    one, other = (
        [(tensor.name, tensor.dtype, tensor.shape, tensor.offset) for tensor in read_safetensors_header(file)]
        for folder in (LocalFolder(model), bucket(model))
        for file in [folder.open("model.safetensors")]
    )
    assert one == other


def test_a_reader_is_a_file() -> None:
    reader = SourceIO(Memory("a", b"0123456789"))
    assert reader.read(3) == b"012"
    assert (reader.seek(-2, 2), reader.tell(), reader.read(5), reader.read()) == (8, 8, b"89", b"")
    assert (reader.seek(2), reader.seek(2, 1), reader.read(-1)) == (2, 4, b"456789")
    assert (reader.seek(99), reader.read(1)) == (99, b"")
    with pytest.raises(ValueError, match="negative seek"):
        reader.seek(-1)
