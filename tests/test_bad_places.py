"""Outputs, streams, links and names that cannot be, and how they are refused."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clipgguf import convert
from tests.checkpoints import write_model
from tests.conftest import Run
from tests.gguf_reading import value
from tests.test_bad_input import check_error, files, index, truncate

Break = Callable[[Path], object]


@pytest.mark.parametrize("target", ["file/below.gguf", "file/sub/", "directory"])
def test_output_that_cannot_be(target: str, model: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "directory" / "model-f16.gguf").mkdir(parents=True)
    before = files(tmp_path)
    check_error(run(model, "-o", f"{tmp_path}/{target}"), [[target.split("/")[0]]])
    assert files(tmp_path) == before


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="resource limits are POSIX")
def test_disk_that_fills_up(model: Path, tmp_path: Path, run_alone: Run) -> None:
    import resource

    out = tmp_path / "out" / "model-f16.gguf"
    out.parent.mkdir()
    out.write_bytes(b"an older file")
    before = files(tmp_path)
    for limit in (100, 10_000, 200_000):  # In the header, among the tensors, in the last of them.
        result = run_alone(
            model,
            "-o",
            out.parent,
            preexec_fn=lambda limit=limit: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        )
        check_error(result, [["model-f16.gguf", "cannot be written", "File too large"]])
        assert files(tmp_path) == before


def test_file_that_shrinks_after_planning(model: Path, tmp_path: Path) -> None:
    from clipgguf import CheckpointError, plan
    from clipgguf.writer import write_plan

    planned = plan(model)
    truncate(model)
    with pytest.raises(CheckpointError, match=r"has 444,\d+ bytes, its header asks for 444,\d+"):
        write_plan(planned, tmp_path / "out" / "x.gguf")
    (model / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="has 0 bytes, its header asks for"):
        write_plan(planned, tmp_path / "out" / "x.gguf")
    assert not (tmp_path / "out").exists()


def test_json_with_a_byte_order_mark_is_read(model: Path, tmp_path: Path, run: Run) -> None:
    text = json.dumps(json.loads((model / "config.json").read_text()))
    (model / "config.json").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert run(model, "-o", tmp_path / "out").returncode == 0


def test_names_that_are_too_long(model: Path, tmp_path: Path, run: Run) -> None:
    long = "n" * 300
    check_error(run(long), [[long, "name too long"]])
    for output in (long, f"{long}.gguf", f"new/{long}", f"new/{long}/x.gguf"):
        check_error(run(model, "-o", output), [[long, "name too long"]])
        assert list((tmp_path / "work").iterdir()) == []
    # The longest name that a file can have.
    name = "n" * 250 + ".gguf"
    assert run(model, "-o", name, "-q").stdout == f"{name}\n"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "preprocessor_config.json", "vocab.json"])
def test_broken_links_do_not_pass_for_nothing(name: str, model: Path, tmp_path: Path, run: Run) -> None:
    (model / name).unlink()
    (model / name).symlink_to("../blobs/gone")
    check_error(run(model, "-o", tmp_path / "out"), [[name, "broken symbolic link"]])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="preexec_fn is POSIX")
def test_closed_streams(model: Path, tmp_path: Path, run_alone: Run) -> None:
    def close(number: int) -> Any:
        return lambda: os.close(number)

    assert run_alone(model, "-o", "a", preexec_fn=close(2)).stdout == f"{Path('a', 'model-f16.gguf')}\n"
    assert run_alone(model, "-o", "b", preexec_fn=close(1)).returncode == 0
    assert (tmp_path / "work" / "b" / "model-f16.gguf").is_file()
    assert run_alone(model, "--dry-run", preexec_fn=close(1)).stderr == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux's /dev/full")
def test_streams_that_take_nothing(model: Path, run_alone: Run) -> None:
    with Path("/dev/full").open("w") as full:
        options = {"capture_output": False, "stdout": subprocess.PIPE, "stderr": full}
        result = run_alone(model, "-o", "out", **options)
        assert (result.returncode, result.stdout) == (0, f"{Path('out', 'model-f16.gguf')}\n")
        result = run_alone(model, "-o", "out", capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == "clipgguf: error: standard output: No space left on device"


@pytest.mark.slow
def test_names_that_are_no_unicode(model: Path, tmp_path: Path, run_alone: Run) -> None:
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/\xff-clip")
    os.rename(model, odd)  # noqa: PTH104 (bytes that are no UTF-8)
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    for env in (None, environment):
        result = run_alone(odd, "-o", "out", env=env, text=False)
        assert result.returncode == 0, result.stderr
        name = value(tmp_path / "work/out/model-f16.gguf", "general.name")
        assert name == "\ufffd-clip"
        assert run_alone(odd, "--dry-run", env=env, text=False).returncode == 0
    config = Path(odd, "config.json")
    config.write_text(json.dumps({**json.loads(config.read_text()), "_name_or_path": "a\ud800"}))
    assert run_alone(odd, "-o", "out").returncode == 0


def test_index_that_forgets_a_tensor(tmp_path: Path) -> None:
    # transformers loads what the shards have, and so do we.
    model = write_model(tmp_path / "m", shards=3)
    expected = convert(model, tmp_path / "a").path.read_bytes()
    index(lambda weight_map: weight_map.pop("text_projection.weight"))(model)
    assert convert(model, tmp_path / "b").path.read_bytes() == expected


def test_arguments_of_no_use(model: Path, run: Run) -> None:
    assert run("").returncode == 2
    with pytest.raises(ValueError, match="threads is 0"):
        convert(model, threads=0)
