"""Lists of models: what is done is recorded and not done again, and whatever ends a process costs one model."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from clipgguf import ClipGGUFError, children, convert
from clipgguf.batches import Line, Record, Results, read_list
from clipgguf.children import Children, Ended
from tests.checkpoints import write_model
from tests.conftest import Run
from tests.hub_server import HubServer
from tests.json_files import edit_json
from tests.processes import HANGS_AFTER, command, interrupted, uncovered
from tests.test_interruption import sparse_model


def write_list(path: Path, *lines: str) -> Path:
    path.write_text("\n".join([*lines, ""]), encoding="utf-8")
    return path


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def models(tmp_path: Path) -> Path:
    for name in ("a", "b c"):
        write_model(tmp_path / "models" / name)
    return tmp_path / "models"


def test_what_is_done_is_not_done_again(models: Path, run: Run, work: Path) -> None:
    listed = write_list(
        work / "list.txt",
        "# two models, and one that is not there",
        "",
        f"convert '{(models / 'a').as_posix()}' -o out/{{name}}.gguf",
        f"'{(models / 'b c').as_posix()}' -o out/{{name}}.gguf --outtype q8_0",
        "nowhere -o out/",
    )
    result = run("batch", listed, "--jobs", 2)
    assert result.returncode == 1
    assert "3 models: 2 done, 0 done before, 1 failed" in result.stderr
    assert "line 5: error: nowhere: is missing" in result.stderr
    heading, row = result.stdout.splitlines()
    assert heading.split() == ["line", "model", "why"]
    assert row.split()[:5] == ["5", "nowhere", "-o", "out/", "nowhere:"]
    made = {tuple(r["arguments"][1:]): r for r in records(work / "list.txt.jsonl")}
    first = made["-o", "out/{name}.gguf"]
    assert (work / "out" / "a.gguf").read_bytes() == convert(models / "a", work / "x.gguf").path.read_bytes()
    assert (first["exit_code"], first["errors"], first["verified"]) == (0, [], False)
    assert first["bytes"] == (work / "out" / "a.gguf").stat().st_size
    assert (first["result"]["path"], first["result"]["outtype"]) == (str(Path("out/a.gguf")), "f16")
    failed = made["-o", "out/"]
    assert (failed["exit_code"], failed["result"], failed["bytes"]) == (1, None, None)
    assert failed["errors"][0].startswith("nowhere: is missing, should be a model's directory")
    before = (work / "out" / "a.gguf").stat().st_mtime_ns
    # Of another size, so not what was made.
    (work / "out" / "b-c.gguf").write_bytes(b"GGUF")
    result = run("batch", listed)
    assert "3 models: 1 done, 1 done before, 1 failed" in result.stderr
    assert (work / "out" / "a.gguf").stat().st_mtime_ns == before
    assert (work / "out" / "b-c.gguf").stat().st_size > 4
    assert len(records(work / "list.txt.jsonl")) == 5


@pytest.mark.slow
def test_what_is_done_is_verified(models: Path, run: Run, work: Path) -> None:
    listed = write_list(work / "list.txt", f"{(models / 'a').as_posix()} -o out/ --image-mean 0.1 0.2 0.3 --threads 1")
    assert run("batch", listed, "--verify").returncode == 0
    result = run("batch", listed, "--verify")
    assert result.returncode == 0, result.stderr
    assert "agrees with its checkpoint" in result.stderr
    path = work / "out" / "model-f16.gguf"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    result = run("batch", listed, "--verify")
    assert result.returncode == 1
    assert "differs from 'text_projection.weight' in 1 value" in result.stdout
    assert [r["verified"] for r in records(work / "list.txt.jsonl")] == [False, True, False]
    # What differs is not done.
    result = run("batch", listed)
    assert (result.returncode, "1 done, 0 done before" in result.stderr) == (0, True)
    # What cannot be compared may be right.
    shutil.rmtree(models / "a")
    assert run("batch", listed, "--verify").returncode == 1
    assert run("batch", listed).returncode == 0


@pytest.mark.slow
def test_a_shard_is_a_part(models: Path, run: Run, work: Path) -> None:
    lines = [f"{(models / 'a').as_posix()} -o {number}.gguf" for number in range(5)]
    listed = write_list(work / "list.txt", *lines)
    assert run("batch", listed, "--shard", "2/3", "-q", "--results", "r/2.jsonl").stderr == ""
    assert sorted(path.name for path in work.glob("*.gguf")) == ["1.gguf", "4.gguf"]
    assert len(records(work / "r" / "2.jsonl")) == 2
    for wrong in ("0/2", "3/2", "2", "a/b", "1/0"):
        result = run("batch", listed, "--shard", wrong)
        assert (result.returncode, f"--shard is '{wrong}', should be I/N" in result.stderr) == (2, True)


def test_a_list_that_is_wrong_is_told_before_anything_is_done(models: Path, run: Run, work: Path) -> None:
    listed = write_list(
        work / "list.txt",
        f"{(models / 'a').as_posix()} -o out/",
        "a 'b",
        f"convert {(models / 'a').as_posix()} -o out/",
    )
    result = run("batch", listed)
    assert (result.returncode, (work / "out").exists()) == (1, False)
    assert f"error: {listed}: line 2: no closing quotation" in result.stderr
    assert f"error: {listed}: line 3: is line 1 once more" in result.stderr
    write_list(listed, "a --nothing", "a b", "a --text-only --vision-only", "a --dry-run", "inspect a.gguf", "--help")
    result = run("batch", listed)
    assert result.returncode == 1
    words = (
        "No such option: --nothing",
        "unexpected extra argument",
        "--text-only and --vision-only exclude each other",
    )
    for number, what in enumerate((*words, "--dry-run makes no file", "unexpected extra", "No such option: --help"), 1):
        assert any(f"{listed}: line {number}: " in line and what in line for line in result.stderr.splitlines()), what
    for missing, what in ((work / "nothing", "cannot be read: No such file"), (work, "cannot be read: ")):
        result = run("batch", missing)
        assert (result.returncode, f"error: {missing}: {what}" in result.stderr) == (1, True)
    listed.write_bytes(b"\xff\xfe")
    assert "is no text in UTF-8" in run("batch", listed).stderr


class Pretended:
    """Processes that only write a file each, of a checkpoint at a commit; ``code`` is what they exit with."""

    def __init__(self, commit: str | None = None) -> None:
        self.commit, self.code = commit, 0
        self.ran: list[str] = []

    def run(self, _: Children, arguments: Sequence[str], heard: Callable[[str], None]) -> Ended:
        self.ran.append("dry run" if "--dry-run" in arguments else arguments[0])
        if self.code:
            return Ended(self.code, "", ("for a reason",))
        path = Path(arguments[arguments.index("-o") + 1])
        path.write_bytes(b"GGUF")
        return Ended(0, json.dumps({"path": str(path), "commit": self.commit}), ())


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> Pretended:
    processes = Pretended()
    monkeypatch.setattr(Children, "run", lambda *arguments: processes.run(*arguments))
    return processes


def test_two_lines_of_one_file_have_failed(pretended: Pretended, run: Run, work: Path) -> None:
    listed = write_list(work / "list.txt", "a -o x.gguf", "b -o x.gguf")
    for _ in range(2):
        result = run("batch", listed)
        assert result.returncode == 1
        assert "line 2 has the same file" in result.stdout and "line 1 has the same file" in result.stdout
        assert "2 models: 0 done, 0 done before, 2 failed" in result.stderr
    # Whoever wrote it first, elsewhere, has not got it any more.
    write_list(listed, "a -o x.gguf")
    assert run("batch", listed).returncode == 0
    write_list(other := work / "other.txt", "b -o x.gguf")
    assert run("batch", other, "--results", f"{listed}.jsonl").returncode == 0
    assert "1 done, 0 done before" in run("batch", listed).stderr


def test_the_hub_is_asked_for_the_commit(pretended: Pretended, run: Run, work: Path) -> None:
    listed = write_list(work / "list.txt", "hf://o/m -o x.gguf")
    for commit, ran in (("a" * 40, ["convert"]), ("a" * 40, ["dry run"]), ("b" * 40, ["dry run", "convert"])):
        pretended.commit = commit
        pretended.ran.clear()
        assert run("batch", listed).returncode == 0
        assert pretended.ran == ran
    # When it does not answer, what is done stays so.
    pretended.code = 1
    assert "for a reason" in run("batch", listed).stdout
    pretended.code = 0
    assert "1 done before" in run("batch", listed).stderr
    pinned = write_list(work / "pinned.txt", f"hf://o/m@{pretended.commit} -o y.gguf")
    run("batch", pinned)
    pretended.ran.clear()
    assert "1 done before" in run("batch", pinned).stderr
    assert pretended.ran == []


@pytest.mark.slow
def test_another_commit_is_done_again(tmp_path: Path, run: Run, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("urllib3")
    monkeypatch.delitem(sys.modules, "huggingface_hub", raising=False)
    pytest.importorskip("huggingface_hub")
    write_model(tmp_path / "root" / "o" / "m")
    with HubServer(tmp_path / "root") as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
        listed = write_list(work / "list.txt", "hf://o/m -o {name}.gguf")
        assert run("batch", listed).returncode == 0
        (first,) = records(work / "list.txt.jsonl")
        assert first["result"]["commit"] == hub.commit("o/m")
        assert "1 done before" in run("batch", listed).stderr
        edit_json(tmp_path / "root" / "o" / "m" / "config.json", lambda c: c.update(_name_or_path="another"))
        assert "1 done, 0 done before" in run("batch", listed).stderr
        assert records(work / "list.txt.jsonl")[1]["result"]["commit"] == hub.commit("o/m") != first["result"]["commit"]
        pinned = write_list(work / "pinned.txt", f"hf://o/m@{hub.commit('o/m')} -o pinned.gguf")
        assert run("batch", pinned).returncode == 0
    # Nobody is there to ask.
    assert "1 done before" in run("batch", pinned).stderr
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "hf://o/m: is not in the local cache" in run("batch", listed).stdout
    assert len(records(work / "list.txt.jsonl")) == 2


@pytest.mark.slow
def test_what_gives_access_is_neither_shown_nor_recorded(models: Path, run: Run, work: Path) -> None:
    with HubServer(models) as hub:
        address = hub.plain.replace("://", "://user:secret@")
        lines = [f"{address}/a/?token=secret -o x.gguf", f"--vision-tower={address}/b?secret {address}/a -o y.gguf"]
        listed = write_list(work / "list.txt", *lines)
        result = run("batch", listed)
        assert "2 models: 1 done, 0 done before, 1 failed" in result.stderr
        assert "secret" not in result.stderr + result.stdout + (work / "list.txt.jsonl").read_text()
        assert "2 models: 0 done, 1 done before, 1 failed" in run("batch", listed).stderr
        write_list(listed, lines[0], lines[0].replace("token", "other"))
        assert "line 2: is line 1 once more" in run("batch", listed).stderr


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_a_kill_costs_one_model(models: Path, run: Run, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    die = "import os, sys\nif sys.argv[-1] == 'victim.gguf': os.kill(os.getpid(), 9)\n"
    monkeypatch.setattr(children, "_START", die + children._START)
    lines = [f"{(models / 'a').as_posix()} -o {name}.gguf" for name in ("one", "victim", "two")]
    result = run("batch", write_list(work / "list.txt", *lines), "-j", 2)
    assert result.returncode == 1
    assert "was ended by SIGKILL" in result.stdout
    assert {r["arguments"][2]: r["exit_code"] for r in records(work / "list.txt.jsonl")} == {
        "one.gguf": 0,
        "two.gguf": 0,
        "victim.gguf": 137,
    }
    # What is no message of ours is told by its last line.
    monkeypatch.setattr(children, "_START", "raise ValueError('for a reason')")
    assert "ValueError: for a reason" in run("batch", work / "list.txt").stdout
    monkeypatch.setattr(children, "_START", "print('no JSON')")
    assert "gave no result" in run("batch", work / "list.txt").stdout


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT to send to one process")
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_ctrl_c_ends_all_at_once(number: int, tmp_path: Path) -> None:
    model, out = sparse_model(tmp_path / "m"), tmp_path / "out"
    out.mkdir()
    listed = write_list(tmp_path / "list.txt", *(f"{model} -o {out}/{name}.gguf --outtype q4_0" for name in "abcd"))
    process = subprocess.Popen(command("batch", listed, "-j", 2), env=uncovered(), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + HANGS_AFTER
    while len(list(out.iterdir())) < 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.001)
    interrupted(process, number, within=20)
    # One may have been complete just then.
    assert {path.name for path in out.iterdir()} <= {"a.gguf", "b.gguf"}


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_conversions_end_with_a_batch_that_is_killed(tmp_path: Path) -> None:
    model, out = sparse_model(tmp_path / "m"), tmp_path / "out"
    out.mkdir()
    listed = write_list(tmp_path / "list.txt", f"{model} -o {out}/a.gguf --outtype q4_0")
    process = subprocess.Popen(command("batch", listed), env=uncovered(), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + HANGS_AFTER
    while not list(out.iterdir()):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.001)
    process.kill()
    process.wait()
    # The conversion removes its temporary file when it ends early.
    while left := [path.name for path in out.iterdir()]:
        assert left != ["a.gguf"] and time.monotonic() < deadline
        time.sleep(0.001)


def test_without_the_extra_dask(run: Run, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    listed = write_list(work / "list.txt", "nowhere")
    result = run("batch", listed, "--dask", "tcp://127.0.0.1:8786")
    assert (result.returncode, len(result.stderr.splitlines())) == (1, 1)
    assert "tcp://127.0.0.1:8786: is a Dask cluster; `pip install 'clipgguf[dask]'` lets clipgguf" in result.stderr
    result = run("batch", listed, "--dask", "tcp://127.0.0.1:8786", "--jobs", 2)
    assert (result.returncode, "--jobs and --dask exclude each other" in result.stderr) == (2, True)


def test_what_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "_GRACE_SECONDS", 0.1)
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); import sys; "
    monkeypatch.setattr(children, "_START", code + "print('here', file=sys.stderr, flush=True); time.sleep(600)")
    processes = Children()

    def end(text: str) -> None:
        processes.__exit__()

    ended = processes.run([], end)
    assert ended.exit_code == (1 if sys.platform == "win32" else 137)
    with pytest.raises(InterruptedError):
        processes.run([], end)


def test_records_that_are_cut_off_are_passed_over(tmp_path: Path) -> None:
    line, path = Line(1, ("m", "-o", "x")), tmp_path / "r.jsonl"
    (tmp_path / "x.gguf").write_bytes(b"1234")
    record = Record(line.arguments, 0, 1.5, (), {"path": str(tmp_path / "x.gguf")}, 4)
    Results(path).add(record)
    whole = path.read_bytes()
    assert Results(path).done(line) == record
    for length in range(1, len(whole) - 1):
        path.write_bytes(whole[:length])
        results = Results(path)
        assert results.done(line) is None
        results.add(record)
        assert Results(path).done(line) == record
    other = {**json.loads(whole), "exit_code": 1}
    path.write_bytes(whole + json.dumps(other).encode() + b"\n")
    assert Results(path).done(line) is None


@pytest.mark.parametrize("content", [b"GGUF\x03", b'{"a": 1}\n', b"[]", b'\n{"arguments" 1'])
def test_a_file_of_another_kind_is_not_appended_to(content: bytes, tmp_path: Path, run: Run) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(content)
    result = run("batch", write_list(tmp_path / "l", "nothing"), "--results", path)
    assert (result.returncode, path.read_bytes()) == (1, content)
    assert "is no result of `clipgguf batch`, should be" in result.stderr


def test_results_that_cannot_be_read_or_written(tmp_path: Path, run: Run) -> None:
    listed = write_list(tmp_path / "l", "nothing")
    assert f"{tmp_path}: cannot be read: " in run("batch", listed, "--results", tmp_path).stderr
    result = run("batch", listed, "--results", listed / "r.jsonl")
    assert f"{listed / 'r.jsonl'}: cannot be " in result.stderr


def test_lists_are_read_as_a_shell_reads_words(tmp_path: Path) -> None:
    path = tmp_path / "l"
    path.write_bytes(b"\xef\xbb\xbf'a b' --name \"c d\"\r\n  # no line\r\nconvert e\\ f\n")
    assert read_list(path) == [Line(1, ("a b", "--name", "c d")), Line(3, ("e f",))]
    path.write_text("")
    assert read_list(path) == []
    with pytest.raises(ClipGGUFError):
        read_list(tmp_path)
