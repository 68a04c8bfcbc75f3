"""Tests of files that several threads write, each at its own positions, and of writing them to disk meanwhile."""

import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from typing_extensions import Buffer

from clipgguf import write_back
from clipgguf.output_file import MOST_PARTS, PlacedFile
from clipgguf.write_back import BEGUN_NBYTES, WAITED_FOR_NBYTES, writing_back


@pytest.fixture(params=["pwritev", "one position"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Have a system with pwritev, or one without."""
    if request.param == "one position":
        monkeypatch.delattr(os, "pwritev", raising=False)
    elif not hasattr(os, "pwritev"):
        pytest.skip("this system has no pwritev")
    return str(request.param)


@pytest.mark.usefixtures("way")
def test_threads_write_at_their_own_positions(tmp_path: Path) -> None:
    expected = np.random.default_rng(1).bytes(1 << 20)
    path = tmp_path / "x"
    path.write_bytes(b"head")
    starts = np.random.default_rng(2).permutation(range(4, len(expected) + 4, 5000))
    with PlacedFile(path) as file, ThreadPoolExecutor(4) as threads:

        def write(start: int) -> None:
            # Many small parts, more than the system takes at once, and an empty one.
            data = memoryview(expected)[start - 4 : start + 4996]
            file.write(start, [data[at : at + 3] for at in range(0, len(data), 3)] + [b""])

        list(threads.map(write, map(int, starts)))
        file.finish(len(expected) + 10)
    assert MOST_PARTS < 5000 // 3
    assert path.read_bytes() == b"head" + expected + bytes(6)


def test_what_a_write_left_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def short(file: int, parts: Sequence[Buffer], position: int) -> int:
        return os.pwrite(file, b"".join(parts)[:5], position)

    monkeypatch.setattr(os, "pwritev", short, raising=False)
    path = tmp_path / "x"
    path.touch()
    with PlacedFile(path) as file:
        file.write(2, [b"abc", b"defg", b"h"])
    assert path.read_bytes() == b"\0\0abcdefgh"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux alone has a file that is always full")
@pytest.mark.usefixtures("way")
def test_a_full_disk_is_an_error() -> None:
    with PlacedFile(Path("/dev/full")) as file, pytest.raises(OSError, match="No space left"):
        file.write(0, [b"abc"])


@pytest.mark.parametrize("has_ranges", [True, False])
def test_what_is_written_goes_to_disk_meanwhile(
    has_ranges: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, ...]] = []

    def begin(*arguments: int) -> int:
        asked.append(arguments)
        return -1  # As where the file system does not have it.

    monkeypatch.setattr(write_back, "_sync_file_range", lambda: begin if has_ranges else None)
    name = "fdatasync" if hasattr(os, "fdatasync") else "fsync"
    monkeypatch.setattr(os, name, lambda file: asked.append((file,)))
    step = BEGUN_NBYTES if has_ranges else WAITED_FOR_NBYTES
    with (tmp_path / "x").open("wb") as file, writing_back(file.fileno()) as written:
        written(step - 1)
        assert not asked
        written(step + 1)
    assert [ask[1:3] for ask in asked] == ([(0, step + 1)] if has_ranges else [()])


def test_a_disk_that_fails_meanwhile_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(file: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(write_back, "_sync_file_range", lambda: None)
    monkeypatch.setattr(os, "fdatasync" if hasattr(os, "fdatasync") else "fsync", fail)
    with (
        (tmp_path / "x").open("wb") as file,
        pytest.raises(OSError, match="Input/output"),
        writing_back(file.fileno()) as written,
    ):
        written(WAITED_FOR_NBYTES)
