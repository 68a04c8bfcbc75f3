"""Source files: few open at a time, the same ones when they are opened again, and compressed ones dropped after use."""

import contextlib
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from clipgguf import CheckpointError, convert, verify
from clipgguf.checkpoint import Checkpoint
from clipgguf.checkpoint.deflate import Deflated, inflate
from clipgguf.sources import Source
from clipgguf.sources.keeping import Keeping
from clipgguf.sources.local import MOST_OPEN, LocalFile, LocalFolder
from tests import torch_bytes
from tests.checkpoints import Clip, Text, Vision, write_model
from tests.processes import uncovered

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc tells of open files")

# 229 tensors.
DEEP = Clip(
    Text(32, 64, 6, 4, vocab_size=99, max_position_embeddings=16),
    Vision(48, 96, 7, 4, image_size=28, patch_size=14),
    24,
)


def open_files(part: str) -> list[str]:
    """Return which files this process has open, of those with that in their paths."""
    names = []
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            names.append(str(descriptor.readlink()))
        except FileNotFoundError:  # The one by which the directory is read.
            continue
    return [name for name in names if part in name]


def run_with_descriptors(count: int, *arguments: object) -> "subprocess.CompletedProcess[str]":
    """Run the command line in a process that may open so many files."""
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({count}, {count}))"
    code = f"{limit}; from clipgguf.cli import main; main()"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=uncovered())


def deflated(model: Path) -> Path:
    """Pack a model's weights into a compressed .bin file, each tensor in a storage of its own; return it."""
    checkpoint = Checkpoint.open(LocalFolder(model))
    storages, records = {}, {}
    for number, (name, source) in enumerate(checkpoint.tensors.items()):
        raw = Path(str(source.file)).read_bytes()[source.offset :][: source.nbytes]
        steps = tuple(int(np.prod(source.shape[i + 1 :], dtype=int)) for i in range(len(source.shape)))
        where = torch_bytes.storage(str(number), len(raw) // 4)
        records[name] = torch_bytes.tensor(where, 0, source.shape, steps)
        storages[f"data/{number}"] = raw
    content = {"data.pkl": torch_bytes.pickled(torch_bytes.mapping(records)), **storages}
    (model / "pytorch_model.bin").write_bytes(torch_bytes.archive(content, compression=zipfile.ZIP_DEFLATED))
    (model / "model.safetensors").unlink()
    return model / "pytorch_model.bin"


@pytest.mark.slow
def test_a_hundred_shards_under_a_limit_of_64_files(tmp_path: Path) -> None:
    expected = convert(write_model(tmp_path / "a" / "m", DEEP), tmp_path / "a").path.read_bytes()
    model = write_model(tmp_path / "b" / "m", DEEP, shards=100)
    result = run_with_descriptors(64, model, "-o", tmp_path / "b.gguf", "--threads", "4")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "b.gguf").read_bytes() == expected
    result = run_with_descriptors(64, "verify", tmp_path / "b.gguf", model, "--threads", "4")
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_hundreds_of_compressed_storages_under_a_limit_of_64_files(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m", DEEP)
    expected = convert(model, tmp_path / "a.gguf").path.read_bytes()
    deflated(model)
    result = run_with_descriptors(64, model, "-o", tmp_path / "b.gguf")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "b.gguf").read_bytes() == expected
    result = run_with_descriptors(64, "verify", tmp_path / "b.gguf", model)
    assert result.returncode == 0, result.stderr


@pytest.fixture
def files(tmp_path: Path) -> list[LocalFile]:
    for number in range(3 * MOST_OPEN):
        (tmp_path / f"shard-{number}").write_bytes(bytes([number] * 8))
    found = [LocalFile(tmp_path / f"shard-{n}") for n in range(3 * MOST_OPEN)]
    for file in found:
        file.close()
    return found


def test_few_files_are_open_at_a_time(files: list[LocalFile]) -> None:
    target = memoryview(bytearray(8))
    order = (*range(len(files)), 0, 1, 2, 0, 40)
    sources = Keeping([files[number] for number in order])
    for turn, number in enumerate(order):
        sources.of(turn).source.read(0, target)
        assert target == bytes([number] * 8)
        assert len(open_files("shard-")) <= MOST_OPEN
    sources.close()
    assert not open_files("shard-")


def test_files_that_are_being_read_stay_open(files: list[LocalFile]) -> None:
    sources = Keeping(files)
    with contextlib.ExitStack() as stack:
        for number in range(len(files)):
            file = stack.enter_context(files[number].in_use())
            assert os.pread(file.fileno(), 8, 0) == bytes([number] * 8)
        assert len(open_files("shard-")) == len(files)
    with LocalFile(files[0].path).in_use():
        assert len(open_files("shard-0")) == 1
    del file
    sources.close()
    assert not open_files("shard-")


def test_threads_that_share_files(files: list[LocalFile]) -> None:
    sources = Keeping(files)
    shared = [sources.of(number) for number in range(len(files))]

    def read(number: int) -> bytes:
        target = bytearray(8)
        shared[number].source.read(0, memoryview(target))
        return bytes(target)

    with ThreadPoolExecutor(MOST_OPEN) as executor:
        # Always far apart, so that what one reads is what others would have closed.
        numbers = [n * 7 % len(files) for n in range(20 * len(files))]
        assert list(executor.map(read, numbers)) == [bytes([n] * 8) for n in numbers]
    assert len(open_files("shard-")) <= 2 * MOST_OPEN
    sources.close()


def replaced(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    other.replace(path)


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "replaced": (replaced, "has changed since it was first opened"),
    "written": (lambda path: os.utime(path, ns=(0, 0)), "has changed since it was first opened"),
    "longer": (lambda path: path.write_bytes(bytes(9)), "has changed since it was first opened"),
    "gone": (lambda path: path.unlink(), "is missing"),
    "no-file": (lambda path: path.rename(path.with_name("b")).with_name(path.name).mkdir(), "is no regular file"),
}


@pytest.mark.parametrize(("change", "words"), CHANGES.values(), ids=CHANGES)
def test_a_file_that_is_opened_again_is_the_same(
    change: Callable[[Path], object], words: str, files: list[LocalFile]
) -> None:
    source = files[0]
    source.close()
    change(files[0].path)
    with pytest.raises(CheckpointError, match=rf"shard-0: {words}"):
        source.read(0, memoryview(bytearray(8)))
    assert not open_files("shard-")


def test_a_shard_that_is_gone_leaves_nothing_open(files: list[LocalFile]) -> None:
    files[-1].path.unlink()
    with pytest.raises(CheckpointError, match="is missing"):
        Keeping(files)
    assert not open_files("shard-")


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where temporary files go; pytest has some of its own."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    return str(tmp_path / "temporary")


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 2])
def test_a_compressed_storage_is_inflated_once_and_dropped_after_its_last_tensor(
    times: int, temporary: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_model(tmp_path / "m", DEEP)
    expected = {
        tensor.name: Path(str(tensor.file)).read_bytes()[tensor.offset :][: tensor.nbytes]
        for tensor in Checkpoint.open(LocalFolder(model)).tensors.values()
    }
    deflated(model)
    inflated: list[Deflated] = []

    def count(archive: Source, storage: Deflated) -> Iterator[bytes]:
        inflated.append(storage)
        return inflate(archive, storage)

    monkeypatch.setattr("clipgguf.checkpoint.deflate.inflate", count)
    tensors = list(Checkpoint.open(LocalFolder(model)).tensors.values())
    inflated.clear()  # Of the pickle.
    # The second time, all others were needed in between.
    sources = Keeping([tensor.file for tensor in tensors * times])
    for number, tensor in enumerate(tensors * times):
        held = sources.of(number)
        found = memoryview(bytearray(tensor.nbytes))
        held.source.read(tensor.offset, found)
        assert found == expected[tensor.name]
        left = min(number + 1, len(tensors) * times - number)
        assert len(open_files(temporary)) <= (1 if times == 1 else left)
        del held
    assert len(inflated) == len(set(inflated)) == len(tensors)
    assert not open_files(temporary)
    sources.close()


def test_converting_leaves_no_file_open(temporary: str, tmp_path: Path) -> None:
    model = write_model(tmp_path / "m", DEEP)
    deflated(model)
    path = convert(model, tmp_path / "a.gguf").path
    assert verify(path, model).agrees
    assert not open_files(str(tmp_path))
