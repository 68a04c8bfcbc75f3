"""What ``clipgguf inspect`` shows of files with strange or very long contents."""

import json
import re
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Run
from tests.gguf_bytes import array, gguf, key, string, tensor, uint32
from tests.processes import MIB, peak_rss, taking_at_most
from tests.test_inspect import TYPE, T, lines


def test_numbers_that_json_does_not_have(tmp_path: Path, run: Run) -> None:
    numbers = struct.pack("<3f", float("nan"), float("inf"), 3.4028234663852886e38)
    path = tmp_path / "x.gguf"
    entries = [array("a", T.FLOAT32, 3, numbers), key("b", T.FLOAT64, struct.pack("<d", float("-inf")))]
    path.write_bytes(gguf([*entries, key("c", T.UINT64, b"\xff" * 8)]))
    found = json.loads(run("inspect", path, "--json").stdout)["metadata"]
    assert found["a"]["value"] == ["nan", "inf", 3.4028235e38]
    assert (found["b"]["value"], found["c"]["value"]) == ("-inf", 2**64 - 1)
    assert ["a", "[nan,", "inf,", "3.4028235e+38]"] in lines(run("inspect", path))


def test_long_text_is_cut_off_in_the_table(tmp_path: Path, run: Run) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(gguf([key("a", T.STRING, string("x" * 100_000))]))
    result = run("inspect", path.name, cwd=tmp_path)  # However long the directory's name is.
    assert "x... (100,000 characters)" in result.stdout
    (tmp_path / "y.gguf").write_bytes(gguf([key("k" * 60_000, T.STRING, string("v"))]))
    assert "k... (60,000 characters)" in run("inspect", tmp_path / "y.gguf").stdout
    assert len(result.stdout) < 2000
    assert len(json.loads(run("inspect", path, "--json").stdout)["metadata"]["a"]["value"]) == 100_000


LONG = 20_000_000
TOWER = {
    "embedding_length": 64, "feed_forward_length": 128, "projection_dim": 32, "image_size": 28, "patch_size": 7,
    "attention.head_count": 4, "block_count": 65_000,
}  # fmt: skip
HUGE: dict[str, Callable[[], bytes]] = {
    "a long projector_type": lambda: gguf(
        [key("general.architecture", T.STRING, string("clip")), key(TYPE, T.STRING, string("x" * LONG))],
        [tensor("mm.0.weight")],
        bytes(16),
    ),
    "a long architecture": lambda: gguf([key("general.architecture", T.STRING, string("x" * LONG))]),
    "as many blocks as tensors": lambda: gguf(
        [
            key("clip.has_vision_encoder", T.BOOL, b"\1"),
            *(uint32(f"clip.vision.{name}", number) for name, number in TOWER.items()),
        ],
        [tensor(f"v.blk.{number}.ln1.bias", (4,), 0, 32 * number) for number in range(65_000)],
        bytes(32 * 65_000),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", HUGE)
def test_what_is_shown_does_not_grow_with_what_is_there(case: str, tmp_path: Path, run: Run) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(HUGE[case]())
    with taking_at_most(20):
        result = run("inspect", path, "--require", "llama.cpp")
    assert result.returncode == 1
    assert len(result.stdout) < 200_000
    assert all(
        line.startswith(f"clipgguf: error: {path}: ") and len(line) < 1000 for line in result.stderr.splitlines()
    )
    if sys.platform.startswith("linux"):
        # A long text is there twice for a moment, as bytes and decoded; all else takes some 40 MiB.
        assert peak_rss("-m", "clipgguf", "inspect", path) < 96 * MIB


@pytest.mark.slow
def test_rows_of_a_table_that_are_only_counted(tmp_path: Path, run: Run) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(gguf([], [tensor(f"t{number}", (), 0, 32 * number) for number in range(2_003)], bytes(2_003 * 32)))
    found = lines(run("inspect", path))
    assert [line[0] for line in found if line and re.fullmatch("t[0-9]+", line[0])][-1] == "t1999"
    assert ["and", "3", "more"] in found
    assert len(json.loads(run("inspect", path, "--json").stdout)["tensors"]) == 2_003
