"""Files that go into an object store as they are made: the local conversion's bytes, or nothing that anybody sees."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from clipgguf import CheckpointError, Options, OutputError, UsageError, convert
from clipgguf.destination import output_path
from clipgguf.uploads import object_store
from tests.checkpoints import write_model
from tests.conftest import Run
from tests.hub_server import Fault
from tests.marks import slow_but_for
from tests.object_server import KEY, SECRET, ObjectServer
from tests.processes import command, interrupted, uncovered
from tests.store_models import stored
from tests.test_interruption import sparse_model
from tests.test_sources import DEEP

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectServer]:
    monkeypatch.setattr(object_store, "PART_NBYTES", 1 << 17)
    with stored(tmp_path, monkeypatch) as server:
        yield server


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A model whose file takes several parts."""
    return write_model(tmp_path / "large", DEEP)


def test_an_upload_is_the_local_file(store: ObjectServer, large: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    for options in (Options(outtype="f32"), Options(outtype="q8_0")):
        expected = convert(large, tmp_path / "a.gguf", options).path.read_bytes()
        made = convert(large, "s3://b/out/", options, progress=lambda *at: seen.append(at))
        assert made.path == f"s3://b/out/model-{options.outtype}.gguf"
        assert (store.root / "b" / "out" / f"model-{options.outtype}.gguf").read_bytes() == expected
        assert seen[-1] == (made.bytes_out, made.bytes_out)
    assert len([r for r in store.requests if "partNumber" in r.path]) > 4
    assert store.uploads == {}


def test_names(store: ObjectServer, model: Path, run: Run) -> None:
    for output, key in (
        ("s3://b/x/y.gguf", "x/y.gguf"),
        ("s3://b/x/y.gguf/", "x/y.gguf/model-f16.gguf"),
        ("s3://b", "model-f16.gguf"),
        ("s3://b/{name}/{outtype}", "tiny-clip/f16/model-f16.gguf"),
        ("s3://b/v1.5/{name}-{outtype}.gguf", "v1.5/tiny-clip-f16.gguf"),
    ):
        result = run(model, "-o", output)
        assert (result.returncode, result.stdout) == (0, f"s3://b/{key}\n"), result.stderr
        (store.root / "b" / key).unlink()
    assert list(model.glob("*.gguf")) == []
    result = run(model, "-o", "s3://b/x.gguf", "--json")
    assert json.loads(result.stdout)["path"] == "s3://b/x.gguf"


@pytest.mark.slow
def test_from_a_store_into_it(store: ObjectServer, tmp_path: Path) -> None:
    expected = convert(store.root / "b" / "models" / "m", tmp_path / "a.gguf").path.read_bytes()
    for _ in range(2):  # The second one replaces the first.
        assert convert("s3://b/models/m", "s3://b/models/m/").path == "s3://b/models/m/model-f16.gguf"
        assert (store.root / "b/models/m/model-f16.gguf").read_bytes() == expected


def test_dry_run(store: ObjectServer, model: Path, run: Run) -> None:
    result = run(model, "-o", "s3://b/x.gguf", "--dry-run")
    assert (result.returncode, result.stdout.splitlines()[-1]) == (0, "s3://b/x.gguf: would be written")
    (store.root / "b" / "x.gguf").write_bytes(bytes(1234))
    assert "and replace a file of 1,234 bytes" in run(model, "-o", "s3://b/x.gguf", "--dry-run").stdout
    assert json.loads(run(model, "-o", "s3://b/x.gguf", "--dry-run", "--json").stdout)["replaces"] == 1234
    store.forbidden.add("HEAD")
    result = run(model, "-o", "s3://b/x.gguf", "--dry-run")
    assert (result.returncode, "the credentials of the environment do not allow it" in result.stderr) == (1, True)
    assert {r.method for r in store.requests} == {"HEAD"}


GOOD_FAULTS = {
    "503": Fault("status", "*", method="PUT", times=4),
    "drop": Fault("drop", "*", method="PUT", times=3),
    "503-begin": Fault("status", "*", method="POST", times=2),
    "503-end": Fault("status", "*", method="POST", times=2, skip=1),
}


@pytest.mark.parametrize("kind", slow_but_for(GOOD_FAULTS, "503"))
def test_faults_that_pass(kind: str, store: ObjectServer, large: Path, tmp_path: Path) -> None:
    store.faults.append(replace(GOOD_FAULTS[kind], server="store"))
    expected = convert(large, tmp_path / "a.gguf").path.read_bytes()
    convert(large, "s3://b/x.gguf")
    assert (store.root / "b" / "x.gguf").read_bytes() == expected
    assert store.faults[0].times == 0


BAD_FAULTS = {
    "503": (Fault("status", "*", method="PUT", times=999), "the store answered 503 Service Unavailable"),
    "503-end": (Fault("status", "*", method="POST", times=99, skip=1), "the store answered 503 Service Unavailable"),
    "403": (Fault("status", "*", method="PUT", status=403, skip=2, times=99), "the environment do not allow it"),
    "403-begin": (Fault("status", "*", method="POST", status=403, times=99), "the environment do not allow it"),
    "drop": (Fault("drop", "*", method="PUT", times=999), "the store cannot be reached, or does not answer"),
}


@pytest.mark.parametrize("kind", slow_but_for(BAD_FAULTS, "403"))
def test_faults_that_do_not_pass(kind: str, store: ObjectServer, large: Path) -> None:
    (store.root / "b" / "x.gguf").write_bytes(b"before")
    fault, words = BAD_FAULTS[kind]
    store.faults.append(replace(fault, server="store"))
    with pytest.raises(OutputError, match=f"^s3://b/x.gguf: cannot be written: .*{words}") as caught:
        convert(large, "s3://b/x.gguf")
    assert not any(hidden in str(caught.value) for hidden in (KEY, SECRET, "http:", "\n"))
    # Before Python 3.11 there is obstore 0.11 alone, which does not abort when the last parts fail.
    assert store.uploads == {} or sys.version_info < (3, 11)
    assert (store.root / "b" / "x.gguf").read_bytes() == b"before"


def test_a_checkpoint_that_breaks_off(store: ObjectServer, large: Path) -> None:
    store.faults.append(Fault("status", "*.safetensors", server="store", status=404, skip=4, times=9))
    with pytest.raises(CheckpointError, match="is missing"):
        convert("s3://b/models/m", "s3://b/x.gguf")
    assert (store.uploads, (store.root / "b" / "x.gguf").exists()) == ({}, False)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT to send to one process")
@pytest.mark.slow
def test_ctrl_c_aborts(store: ObjectServer, tmp_path: Path) -> None:
    model = sparse_model(tmp_path / "m")
    store.faults.append(Fault("wait", "*", server="store", method="PUT", seconds=2, times=99))
    words = command(model, "-o", "s3://b/x.gguf", "--outtype", "f32")
    process = subprocess.Popen(words, env={**uncovered(), **store.environment()}, stderr=subprocess.PIPE, text=True)
    while store.faults[0].times == 99:
        assert process.poll() is None, "ended before it could be interrupted"
        time.sleep(0.01)
    interrupted(process)
    assert (store.uploads, (store.root / "b" / "x.gguf").exists()) == ({}, False)


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("s3://", "names no bucket, should be s3://BUCKET/PREFIX/"),
        ("https://h.example/a.gguf?secret", r"is https://h\.example/a\.gguf, where nothing can be written"),
        ("s3://b/{nam}", "has {nam}, known are"),
        ("hf://o", "is no model of the hub"),
    ],
)
def test_what_is_no_output(output: str, words: str, model: Path) -> None:
    with pytest.raises(UsageError, match=words):
        convert(model, output)


def test_a_bucket_that_is_not_there(model: Path, run: Run) -> None:
    result = run(model, "-o", "s3://other/x.gguf")
    assert result.returncode == 1
    assert result.stderr == "clipgguf: error: s3://other/x.gguf: cannot be written: there is no bucket other\n"


def test_without_the_extra(model: Path, monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    result = run(model, "-o", "s3://b/")
    assert result.returncode == 1
    words = "s3://b/: cannot be written: `pip install 'clipgguf[s3]'` lets clipgguf write there"
    assert result.stderr == f"clipgguf: error: {words}\n"


def test_an_upgrade_writes_to_paths_alone() -> None:
    with pytest.raises(UsageError, match="is s3://b/, should be a path"):
        output_path(Path(), "s3://b/", "a.gguf", {})
