"""``--dry-run``: the plan, where the file would go, and why it could not be written."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest

from clipgguf import convert
from clipgguf.destination import outlook
from tests.conftest import Run
from tests.gguf_reading import tensors


def test_dry_run_shows_the_plan_and_writes_nothing(model: Path, tmp_path: Path, run: Run) -> None:
    result = run(model, "--dry-run", "-o", tmp_path / "out")
    assert (result.returncode, result.stderr) == (0, "")
    assert not (tmp_path / "out").exists()
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["clip.text.projection_dim", "24"] in lines
    assert ["tokenizer.ggml.tokens", "99", "values"] in lines
    row = "v.blk.2.ffn_up.weight vision_model.encoder.layers.2.mlp.fc2.weight 48 x 96 F32 F16 18,432 9,216"
    assert row.split() in lines
    assert lines[-3] == ["93", "tensors,", "433,344", "bytes", "in,", "221,856", "bytes", "out"]
    written = list(tensors(convert(model, tmp_path).path))
    assert [line[0] for line in lines if line and line[0] in written] == written


def test_dry_run_says_where_the_file_would_go_and_what_it_would_replace(model: Path, tmp_path: Path, run: Run) -> None:
    work = tmp_path / "work"
    new = run(model, "--dry-run", "-o", "new/deep/{name}-{outtype}.gguf")
    path = Path("new", "deep", "tiny-clip-f16.gguf")
    assert new.stdout.splitlines()[-1] == f"{path}: would be written, in a new directory new"
    (work / "old").mkdir()
    assert run(model, "--dry-run", "-o", "old").stdout.splitlines()[-1] == (
        f"{Path('old', 'model-f16.gguf')}: would be written"
    )
    (work / "old/model-f16.gguf").write_bytes(b"older")
    old = run(model, "--dry-run", "-o", "old")
    assert old.stdout.endswith("model-f16.gguf: would be written, and replace a file of 5 bytes\n")
    assert (old.returncode, (work / "old/model-f16.gguf").read_bytes()) == (0, b"older")
    assert [path.name for path in work.iterdir()] == ["old"]


def test_dry_run_says_why_the_file_could_not_be_written(model: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "file").write_bytes(b"")
    places = {tmp_path / "file" / "x.gguf": f"{tmp_path / 'file'} is no directory"}
    if hasattr(os, "geteuid") and os.geteuid() != 0:
        (tmp_path / "locked").mkdir(mode=0o555)
        places[tmp_path / "locked" / "x.gguf"] = f"{tmp_path / 'locked'} may not be written to"
    for path, reason in places.items():
        result = run(model, "--dry-run", "-o", path)
        assert (result.returncode, result.stderr) == (1, f"clipgguf: error: {path}: cannot be written: {reason}\n")
        assert result.stdout.splitlines()[-1] == f"{path}: could not be written"
        as_json = run(model, "--dry-run", "-o", path, "--json")
        assert (as_json.returncode, json.loads(as_json.stdout)["problem"]) == (1, result.stderr[17:-1])


def test_permission_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # Root may write everywhere.
    found = outlook(tmp_path / "new" / "x.gguf", 1)
    assert found.problem == f"{tmp_path / 'new' / 'x.gguf'}: cannot be written: {tmp_path} may not be written to"


def test_room_on_the_disk_is_looked_at(tmp_path: Path) -> None:
    nbytes = shutil.disk_usage(tmp_path).total + 1
    assert "bytes free" not in str(outlook(tmp_path / "a/b/x.gguf", 1).problem)
    found = outlook(tmp_path / "a/b/x.gguf", nbytes)
    assert re.search(rf"x\.gguf: needs {nbytes:,} bytes, its disk has [\d,]+ free", str(found.problem))
    assert found.makes == tmp_path / "a"
    assert not (tmp_path / "a").exists()
