"""Memory-mapped windows: the same bytes as reading, gone after use, and reading wherever there is no map."""

import contextlib
import errno
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipgguf import CheckpointError, Options, convert
from clipgguf import plan as plan_conversion
from clipgguf.element_types import OUTTYPES
from clipgguf.encode import SCRATCH_NBYTES, SOURCE_DTYPES, encoder
from clipgguf.jobs import LEAST_WINDOW, SOURCE_NBYTES
from clipgguf.options import Outtype
from clipgguf.sources import mapping
from clipgguf.sources.local import LocalFile
from clipgguf.stream import ChunkStream
from tests.checkpoints import Clip, Text, Vision, write_model
from tests.processes import uncovered

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows reads")

# The token embedding has three chunks.
CLIP = Clip(Text(32, 64, 1, 4, vocab_size=20_011, max_position_embeddings=16), Vision(48, 96, 1, 4, 28, 14), 24)

Window = tuple[int, int]


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> list[Window]:
    """The windows that are mapped where nothing is in the page cache: where each begins, how many bytes it has."""
    found: list[Window] = []

    @contextlib.contextmanager
    def count(file: int, offset: int, nbytes: int) -> Iterator[memoryview | None]:
        with mapping.window(file, offset, nbytes) as view:
            if view is not None:
                assert view.readonly
                assert len(view) == nbytes
                found.append((offset, nbytes))
            yield view

    monkeypatch.setattr("clipgguf.sources.local.window", count)
    monkeypatch.setattr(LocalFile, "read_at_once", lambda *arguments: False)
    return found


def converted(model: Path, outtype: Outtype) -> bytes:
    return convert(model, model.with_name("out"), options=Options(outtype=outtype), threads=2).path.read_bytes()


def move_tensors(path: Path, count: int) -> None:
    """Make a safetensors file's header longer, so that its tensors begin at an address that suits no number."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length] + b" " * count
    path.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["F64", "F32", "BF16", "F16"])
@pytest.mark.parametrize("outtype", ["f16", "bf16", "f32", "q8_0", "q4_1"])
def test_mapping_gives_the_bytes_that_reading_gives(
    dtype: str, outtype: Outtype, windows: list[Window], tmp_path: Path
) -> None:
    model = write_model(tmp_path / "m", CLIP, dtype=dtype)
    mapped = converted(model, outtype)
    plan = plan_conversion(model, Options(outtype=outtype))
    encoded = [tensor for tensor in plan.tensors if tensor.ggml_type.name != dtype]
    assert bool(windows) == any(tensor.source.nbytes >= LEAST_WINDOW for tensor in encoded)
    assert all(LEAST_WINDOW <= nbytes <= SOURCE_NBYTES for _, nbytes in windows)
    windows.clear()
    move_tensors(model / "model.safetensors", 1)
    assert converted(model, outtype) == mapped
    assert not windows


@pytest.mark.parametrize("error", [OSError(errno.ENODEV, "No such device"), ValueError("mmap length is too large")])
def test_what_cannot_be_mapped_is_read(
    error: Exception, windows: list[Window], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_model(tmp_path / "m", CLIP)
    expected = converted(model, "f16")
    windows.clear()

    def fail(*arguments: Any, **options: Any) -> None:
        raise error

    plan = plan_conversion(model)  # The safetensors package maps, too.
    monkeypatch.setattr(mmap, "mmap", fail)
    with ChunkStream(plan.tensors, 2) as stream:
        found = b"".join(bytes(chunk.data) for chunk in stream if isinstance(chunk.data, memoryview))
    assert not windows
    assert found[: 1 << 16] in expected


@pytest.mark.parametrize(("number", "is_mapped"), [(errno.EINVAL, True), (errno.EFAULT, False), (errno.ENOMEM, False)])
def test_pages_that_are_missing_are_read_and_those_of_an_older_linux_are_not(
    number: int, is_mapped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Map(mmap.mmap):
        def madvise(self, *arguments: int) -> None:
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(mmap, "mmap", Map)
    monkeypatch.setattr(sys, "platform", "linux")
    with file_of(tmp_path, b"stored") as source, source.window(0, 6) as window:
        assert (window is not None) == is_mapped


@contextlib.contextmanager
def file_of(directory: Path, data: bytes, name: str = "a.safetensors") -> Iterator[LocalFile]:
    (directory / name).write_bytes(data)
    with contextlib.closing(LocalFile(directory / name)) as source:
        yield source


DATA = bytes(range(251)) * 400


@pytest.mark.parametrize("offset", [0, 1, 4095, 4096, 70_001])
def test_a_window_is_gone_after_use(offset: int, tmp_path: Path) -> None:
    def mapped() -> bool:
        return "a.safetensors" in Path("/proc/self/maps").read_text()

    with file_of(tmp_path, DATA) as source:
        with source.window(offset, 5000) as window:
            assert window is not None
            assert bytes(window) == DATA[offset : offset + 5000]
            assert mapped() or not sys.platform.startswith("linux")
        if sys.platform.startswith("linux"):
            assert not mapped()


def test_a_window_of_which_an_error_still_knows_is_no_error_of_its_own(tmp_path: Path) -> None:
    with file_of(tmp_path, DATA) as source, pytest.raises(ZeroDivisionError), source.window(0, 5000) as window:
        assert window is not None
        array = np.frombuffer(window, np.uint8)
        raise ZeroDivisionError
    assert array.tobytes() == DATA[:5000]


def test_torch_files_are_read(tmp_path: Path) -> None:
    with file_of(tmp_path, DATA, "pytorch_model.bin") as source, source.window(0, 5000) as window:
        assert window is None


def test_a_file_that_was_truncated_gives_the_error_that_reading_gives(tmp_path: Path) -> None:
    with file_of(tmp_path, DATA) as source:
        os.truncate(source.path, 8000)
        with source.window(4096, 4096) as window:
            assert window is None
        with pytest.raises(CheckpointError, match=r"a\.safetensors: bytes 4,096 to 8,192 cannot be read: the file has"):
            source.read(4096, memoryview(bytearray(4096)))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux alone says that a page is not there")
def test_a_file_that_is_truncated_after_its_size_was_looked_at_gives_it_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.safetensors"

    class Map(mmap.mmap):
        def madvise(self, *arguments: int) -> None:
            os.truncate(path, 10)
            super().madvise(*arguments)

    monkeypatch.setattr(mmap, "mmap", Map)
    with file_of(tmp_path, DATA) as source, source.window(0, 50_000) as window:
        assert window is None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux alone tells what is in the page cache")
def test_what_the_page_cache_has_is_read_and_not_mapped(tmp_path: Path) -> None:
    target = memoryview(bytearray(70_000))
    with file_of(tmp_path, DATA) as source:
        try:
            with source.in_use() as file:
                os.preadv(file.fileno(), [target], 0, os.RWF_NOWAIT)
        except OSError as e:
            pytest.skip(f"the file system of {tmp_path} cannot tell: {e}")
        assert source.read_at_once(20, target)
        assert target == DATA[20:70_020]
        assert not source.read_at_once(len(DATA) - 10, target)  # The file ends before.


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux alone tells what is in the page cache")
@pytest.mark.parametrize("number", [errno.EAGAIN, errno.EOPNOTSUPP])
def test_where_the_page_cache_has_nothing_or_cannot_be_asked_nothing_is_read(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> int:
        raise OSError(number, os.strerror(number))

    with file_of(tmp_path, DATA) as source:
        monkeypatch.setattr(os, "preadv", fail)
        assert not source.read_at_once(0, memoryview(bytearray(100)))


# With one thread, no window is open when the next one is asked for.
TRUNCATE = """
import os, sys
from clipgguf import ClipGGUFError, convert
from clipgguf.sources.local import LocalFile
model, out = sys.argv[1:]
turns = iter(range(100))
window = LocalFile.window
def truncating(*arguments):
    if next(turns) == 3:
        os.truncate(model + "/model.safetensors", 1_000_000)
    return window(*arguments)
LocalFile.window = truncating
LocalFile.read_at_once = lambda *arguments: False
try:
    convert(model, out, threads=1)
except ClipGGUFError as e:
    sys.exit(str(e))
"""


def test_truncating_during_a_conversion_is_one_clear_error(tmp_path: Path) -> None:
    clip = Clip(Text(64, 64, 1, 4, vocab_size=50_000, max_position_embeddings=16), Vision(48, 96, 1, 4, 28, 14), 24)
    model = write_model(tmp_path / "m", clip)
    before = sorted(tmp_path.iterdir())
    command = [sys.executable, "-c", TRUNCATE, str(model), str(tmp_path / "out.gguf")]
    result = subprocess.run(command, capture_output=True, text=True, env=uncovered())
    assert result.returncode == 1, result
    assert "model.safetensors: bytes " in result.stderr
    assert result.stderr.endswith("cannot be read: the file has become shorter\n")
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("dtype", SOURCE_DTYPES)
@pytest.mark.parametrize("outtype", [outtype for outtype in OUTTYPES if outtype != "auto"])
def test_encoders_only_read_their_source(dtype: str, outtype: Outtype) -> None:
    codec = encoder(dtype, OUTTYPES[outtype][0])
    if codec.encode is None:
        return
    bits = np.random.default_rng(1).integers(0, 256, 96_000 * codec.source_dtype.itemsize, np.uint8)
    for raw in (bits, np.zeros_like(bits)):  # With NaNs and infinities, and without.
        expected = raw.copy()
        raw.setflags(write=False)
        source = raw.view(codec.source_dtype)
        target = np.empty(codec.nbytes(len(source)) if codec.block_nbytes > 8 else len(source), codec.target_dtype)
        codec.encode(source, target, np.empty(SCRATCH_NBYTES, np.uint8))
        np.testing.assert_array_equal(raw, expected)
