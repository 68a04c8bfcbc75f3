"""Lists of models on a Dask cluster: what one machine would give, and a worker that dies costs another try."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from clipgguf import ClipGGUFError, convert
from clipgguf.options import Options
from tests.checkpoints import write_model
from tests.conftest import Run
from tests.dask_cluster import dask_cluster
from tests.processes import HANGS_AFTER, command, interrupted, uncovered
from tests.test_batch import records, write_list
from tests.test_interruption import sparse_model

# Python runs it when it starts. In the process of a model it ends the worker: of "killer" always, of "victim" once,
# when there is something of the file, with the signal whose number is in the name.
FATAL = """
import os, sys, threading, time
def end_worker(number):
    while not os.listdir("out"):
        time.sleep(0.001)
    os.kill(os.getppid(), number)
last = sys.orig_argv[-1]
if last.endswith("killer.gguf"):
    with open("killed", "a") as file:
        file.write(last + "\\n")
    os.kill(os.getppid(), 9)
if "victim-" in last and not os.path.exists("victim"):
    open("victim", "w").close()
    threading.Thread(target=end_worker, args=[int(last[:-5].split("-")[-1])]).start()
"""
pytestmark = pytest.mark.slow
no_kill = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL and no SIGINT for one process")


@pytest.fixture(autouse=True, scope="module")
def _dask() -> None:
    pytest.importorskip("distributed", reason="the extra dask is not installed")


@pytest.fixture
def fatal(tmp_path: Path) -> Path:
    (tmp_path / "fatal").mkdir()
    (tmp_path / "fatal" / "sitecustomize.py").write_text(FATAL)
    return tmp_path / "fatal"


def address_of(cluster: "subprocess.Popen[str]") -> str:
    assert cluster.stdout is not None
    return cluster.stdout.readline().strip()


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with dask_cluster("nanny") as cluster:
        yield address_of(cluster)


def timeless(path: Path) -> list[Any]:
    found = records(path)
    for record in found:
        del record["seconds"]
        if record["result"]:
            del record["result"]["seconds"]
    return sorted(found, key=json.dumps)


def test_it_gives_what_one_machine_does(address: str, tmp_path: Path, work: Path, run_alone: Run) -> None:
    for name in ("a", "b c"):
        write_model(tmp_path / "models" / name)
    lines = [f"'{tmp_path / 'models' / name}' -o out/{{name}}.gguf" for name in ("a", "b c")]
    listed = write_list(work / "list.txt", *lines, "nowhere -o out/")
    here = run_alone("batch", listed, "--results", "here.jsonl")
    made = {path.name: path.read_bytes() for path in (work / "out").iterdir()}
    shutil.rmtree(work / "out")
    there = run_alone("batch", listed, "--dask", address)
    assert {path.name: path.read_bytes() for path in (work / "out").iterdir()} == made
    assert (there.returncode, there.stdout) == (here.returncode, here.stdout) == (1, here.stdout)
    assert timeless(work / "list.txt.jsonl") == timeless(work / "here.jsonl")
    said = (
        f"{address}: 2 workers, 2 models at a time",
        "line 1: convert --json ",
        "line 3: error: nowhere: is missing",
        "line 3: failed after ",
        "2 done, 0 done",
    )
    assert [text for text in said if text not in there.stderr] == []
    # What is done is known here as there, and no more done there than here.
    assert "0 done, 2 done before, 1 failed" in run_alone("batch", listed, "--dask", address).stderr
    assert "0 done, 2 done before, 1 failed" in run_alone("batch", listed).stderr
    (work / "out" / "a.gguf").write_bytes(b"GGUF")
    result = run_alone("batch", listed, "--dask", address, "--verify")
    assert "2 done, 0 done before, 1 failed" in result.stderr
    assert "agrees with its checkpoint" in result.stderr
    assert run_alone("batch", listed, "--dask", address, "--quiet").stderr == ""


@no_kill
@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "number"),
    [("nanny", 9), ("alone", 9), ("alone", 15)],
    ids=["nanny", "alone", "closed"],
)
def test_a_worker_that_dies_costs_another_try(
    kind: str, number: int, fatal: Path, tmp_path: Path, work: Path, run_alone: Run
) -> None:
    (work / "out").mkdir()
    large = sparse_model(tmp_path / "large")
    small = write_model(tmp_path / "small")
    lines = [f"{large} --outtype q4_0 -o out/victim-{number}.gguf", *(f"{small} -o {name}.gguf" for name in "abcd")]
    listed = write_list(work / "list.txt", *lines)
    with dask_cluster(kind, fatal) as cluster:
        result = run_alone("batch", listed, "--dask", address_of(cluster))
        assert result.returncode == 0, result.stderr
        assert "5 models: 5 done, 0 done before, 0 failed" in result.stderr
        assert result.stderr.count("line 1: convert --json") == 2
    assert [path.name for path in (work / "out").iterdir()] == [f"victim-{number}.gguf"]
    expected = convert(large, tmp_path / "x.gguf", Options(outtype="q4_0")).path.read_bytes()
    assert (work / "out" / f"victim-{number}.gguf").read_bytes() == expected
    assert len(records(work / "list.txt.jsonl")) == 5


@no_kill
@pytest.mark.slow
def test_what_always_kills_its_worker_fails_alone(fatal: Path, tmp_path: Path, work: Path, run_alone: Run) -> None:
    model = write_model(tmp_path / "m")
    names = ["killer", *"abcdefgh", "other-killer"]
    listed = write_list(work / "list.txt", *(f"{model} -o {name}.gguf" for name in names))
    with dask_cluster("nanny", fatal) as cluster:
        result = run_alone("batch", listed, "--dask", address_of(cluster))
    assert result.returncode == 1
    assert "10 models: 8 done, 0 done before, 2 failed" in result.stderr
    rows = " ".join(result.stdout.split())
    assert rows.count("4 workers died while they had it, the last of them tcp://") == 2
    assert (work / "killed").read_text().split().count("killer.gguf") >= 4
    failed = [record for record in records(work / "list.txt.jsonl") if record["exit_code"]]
    assert sorted(record["arguments"][-1] for record in failed) == ["killer.gguf", "other-killer.gguf"]


@no_kill
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_all_at_once(number: int, address: str, tmp_path: Path, work: Path, run_alone: Run) -> None:
    model, out = sparse_model(tmp_path / "m"), work / "out"
    out.mkdir()
    listed = write_list(work / "list.txt", *(f"{model} -o out/{name}.gguf --outtype q4_0" for name in "abcd"))
    words = command("batch", listed, "--dask", address)
    process = subprocess.Popen(words, env=uncovered(), cwd=work, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + HANGS_AFTER
    while len(list(out.iterdir())) < 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.001)
    interrupted(process, number, within=20)
    # The workers have ended what ran, and nothing waits there any more.
    assert {path.name for path in out.iterdir()} <= {"a.gguf", "b.gguf"}
    listed = write_list(work / "list.txt", f"{write_model(tmp_path / 'small')} -o small.gguf")
    assert run_alone("batch", listed, "--dask", address).returncode == 0
    assert {path.name for path in out.iterdir()} <= {"a.gguf", "b.gguf"}


@no_kill
@pytest.mark.slow
def test_a_scheduler_that_is_gone(tmp_path: Path, work: Path) -> None:
    model, out = sparse_model(tmp_path / "m"), work / "out"
    out.mkdir()
    listed = write_list(work / "list.txt", f"{model} -o out/a.gguf --outtype q4_0")
    with dask_cluster("nanny") as cluster:
        words = command("batch", listed, "--dask", address := address_of(cluster))
        environment = {**uncovered(), "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "1s"}
        process = subprocess.Popen(words, env=environment, cwd=work, stderr=subprocess.PIPE, text=True)
        while not list(out.iterdir()):
            time.sleep(0.001)
        cluster.kill()
        _, errors = process.communicate(timeout=HANGS_AFTER)
    assert process.returncode == 1
    assert f"clipgguf: error: {address}: the scheduler does not answer any more" in errors
    assert "Traceback" not in errors


def test_nobody_answers(run_alone: Run, work: Path) -> None:
    listed = write_list(work / "list.txt", "nowhere")
    environment = {**uncovered(), "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "1s"}
    for address in ("tcp://127.0.0.1:1", "nowhere", "no://where:1"):
        result = run_alone("batch", listed, "--dask", address, env=environment)
        assert (result.returncode, len(result.stderr.splitlines())) == (1, 1), result.stderr
        assert f"error: {address}: is no Dask scheduler that answers: " in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("other", "what"),
    [
        ("import clipgguf; clipgguf.__version__ = '0.0.1'", ": has clipgguf 0.0.1, should be "),
        ("import sys; sys.modules['clipgguf'] = None", ": its scheduler and workers do not all run clipgguf: "),
    ],
    ids=["version", "missing"],
)
def test_the_cluster_must_run_clipgguf(other: str, what: str, tmp_path: Path, work: Path, run_alone: Run) -> None:
    (tmp_path / "other").mkdir()
    # Not for the process that starts the cluster, which imports this project's tests.
    (tmp_path / "other" / "sitecustomize.py").write_text(f"import sys\nif 'dask' in sys.orig_argv: {other}\n")
    listed = write_list(work / "list.txt", f"{write_model(tmp_path / 'm')} -o m.gguf")
    with dask_cluster("alone", tmp_path / "other") as cluster:
        result = run_alone("batch", listed, "--dask", address_of(cluster))
    assert (result.returncode, len(result.stderr.splitlines())) == (1, 1), result.stderr
    assert what in result.stderr
    assert [path.name for path in work.iterdir()] == ["list.txt"]


def test_workers_must_have_the_directory_and_the_version(tmp_path: Path) -> None:
    from clipgguf import cluster

    worker = SimpleNamespace(address="tcp://w:1")
    missing = cluster._Processes(tmp_path / "nothing")
    with pytest.raises(ClipGGUFError, match=r"^tcp://w:1: .*nothing: is missing, should be the directory that `clipg"):
        missing.setup(worker)
    other = cluster._Processes(tmp_path)
    other.version = "0.0.1"
    with pytest.raises(ClipGGUFError, match=r"^tcp://w:1: has clipgguf .*, should be 0\.0\.1, as where"):
        other.setup(worker)
