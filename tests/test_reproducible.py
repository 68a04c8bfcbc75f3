"""The same checkpoint gives the same bytes: whenever, wherever and however it is converted."""

import os
import shutil
import sys
import time
from pathlib import Path

import pytest

from clipgguf import Options, convert
from clipgguf.options import Outtype
from tests.checkpoints import Clip, Text, Vision, write_model
from tests.processes import run_process

# Rows that quantize, and a token embedding of several chunks.
CLIP = Clip(Text(64, 64, 1, 4, vocab_size=9_001, max_position_embeddings=16), Vision(64, 128, 2, 4, 28, 14), 32)
OUTTYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")


@pytest.mark.parametrize(
    "outtype", ["f16", "q8_0", *(pytest.param(t, marks=pytest.mark.slow) for t in OUTTYPES if t not in ("f16", "q8_0"))]
)
def test_threads_and_shards_make_no_difference(outtype: Outtype, tmp_path: Path) -> None:
    whole = write_model(tmp_path / "whole" / "m", CLIP)
    expected = convert(whole, tmp_path / "a", options=Options(outtype=outtype), threads=1).path.read_bytes()
    sharded = write_model(tmp_path / "sharded" / "m", CLIP, shards=3)
    for number, (model, threads) in enumerate([(whole, 1), (whole, 2), (whole, 7), (sharded, 1), (sharded, 3)]):
        result = convert(model, tmp_path / f"b{number}", options=Options(outtype=outtype), threads=threads)
        assert result.path.read_bytes() == expected


@pytest.mark.parametrize("outtype", ["f16", "q4_0"])
def test_the_environment_does_not_leak_into_the_file(outtype: Outtype, tmp_path: Path) -> None:
    model = write_model(tmp_path / "m", CLIP)
    expected = convert(model, tmp_path / "a", options=Options(outtype=outtype)).path.read_bytes()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    long_ago = time.time() - 1e8
    for path in model.iterdir():
        os.utime(path, (long_ago, long_ago))
    environment = {
        **os.environ,
        "LC_ALL": "C",
        "LANG": "tr_TR.UTF-8",
        "TZ": "Pacific/Kiritimati",
        "PYTHONHASHSEED": "12345",
        "HOME": str(elsewhere),
        "TMPDIR": str(elsewhere),
        "SOURCE_DATE_EPOCH": "0",
        "COLUMNS": "40",
    }
    run_process(model, "-o", "b", "--outtype", outtype, cwd=elsewhere, env=environment, check=True)
    assert (elsewhere / "b" / f"model-{outtype}.gguf").read_bytes() == expected


def test_the_path_does_not_leak_but_for_the_directorys_name(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m", CLIP)
    expected = convert(model, tmp_path / "a").path.read_bytes()
    (tmp_path / "deeper" / "down").mkdir(parents=True)
    moved = Path(shutil.move(model, tmp_path / "deeper" / "down" / "m"))
    assert convert(f"{moved}/../m/", tmp_path / "b").path.read_bytes() == expected


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no umask")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664), (0o000, 0o666)])
def test_the_files_mode_follows_the_umask(umask: int, mode: int, tmp_path: Path) -> None:
    model = write_model(tmp_path / "m")
    before = os.umask(umask)
    try:
        path = convert(model, tmp_path / "a").path
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == mode
