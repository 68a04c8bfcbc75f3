"""Ctrl-C and SIGTERM: the old file stays, and nothing else does."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.checkpoints import REAL, TINY, write_model
from tests.json_files import edit_json
from tests.processes import HANGS_AFTER, command, uncovered
from tests.weights import write_sparse_safetensors


def sparse_model(directory: Path) -> Path:
    """A model of 600 MB that takes no disk and no time to make: its weights are one hole."""
    write_model(directory, TINY)
    clip = REAL["vit-b-32"]
    edit_json(directory / "config.json", lambda c: c.update(clip.config_json()))
    write_sparse_safetensors(directory / "model.safetensors", clip.shapes())
    return directory


@pytest.mark.skipif(
    sys.platform == "win32", reason="Windows has no SIGTERM to send, and its Ctrl-C reaches the tests too"
)
@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)],
    ids=["INT", "TERM"],
)
def test_interruption_leaves_the_old_file_and_nothing_else(number: int, code: int, tmp_path: Path) -> None:
    model = sparse_model(tmp_path / "m")
    out = tmp_path / "out"
    out.mkdir()
    (out / "model-f16.gguf").write_bytes(b"an older file")
    errors = tmp_path / "stderr"
    with errors.open("wb") as stderr:
        process = subprocess.Popen(command(model, "-o", out), stderr=stderr)
    deadline = time.monotonic() + HANGS_AFTER
    while not any(path.stat().st_size > 1 << 20 for path in out.glob(".*")):
        assert process.poll() is None, "ended before it could be interrupted"
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(number)
    assert process.wait(timeout=HANGS_AFTER) == code
    assert "Traceback" not in errors.read_text()
    assert [path.name for path in out.iterdir()] == ["model-f16.gguf"]
    assert (out / "model-f16.gguf").read_bytes() == b"an older file"


@pytest.mark.skipif(
    sys.platform == "win32", reason="Windows has no SIGTERM to send, and its Ctrl-C reaches the tests too"
)
@pytest.mark.parametrize("gap", [0.005, *(pytest.param(gap, marks=pytest.mark.slow) for gap in (0, 0.002, 0.01, 0.03))])
def test_ctrl_c_again_does_not_interrupt_the_tidying_up(gap: float, tmp_path: Path) -> None:
    model = sparse_model(tmp_path / "m")
    out = tmp_path / "new" / "out"
    process = subprocess.Popen(command(model, "-o", out), env=uncovered(), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not any(path.stat().st_size > 1 << 20 for path in out.glob(".*")):
        assert process.poll() is None, "ended before it could be interrupted"
        assert time.monotonic() < deadline
        time.sleep(0.001)
    for _ in range(4):
        process.send_signal(signal.SIGINT)
        time.sleep(gap)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "")
    assert not (tmp_path / "new").exists()
