"""The benchmarks run and say what they find; what they find is no matter here. None of it needs torch."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.bars import BARS, WORKS, Results, judge
from benchmarks.floor import floor_command
from benchmarks.measure import ROOT, Contender, Result, Run, alternate, digests
from benchmarks.memory_trace import Trace, trace_memory
from benchmarks.sessions import SESSIONS, Setting
from benchmarks.survey import Growth, Survey
from tests.processes import HANGS_AFTER, MIB

NO_TORCH = ("--reference", "no-such-python")
NOT_INSTALLED = "import sys; sys.modules['matplotlib'] = None; from benchmarks.__main__ import main; main()"


def benchmarks(*args: object, start: tuple[str, ...] = ("-m", "benchmarks")) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, *start, *map(str, args)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", timeout=HANGS_AFTER)


def result(key: str, *runs: tuple[float, int], digest: str = "same") -> Result:
    contender = Contender(key, key, (key,), (), Path(key), "content")
    return Result(contender, tuple(Run(seconds, peak, 1, digest) for seconds, peak in runs))


def setting(tmp_path: Path) -> Setting:
    return Setting(tmp_path, "tiny", "tiny", tensors=10, python=None, runs=1, quick=True)


def verdict_cells(tmp_path: Path, results: Results, work: str = "f32-f16") -> dict[str, str]:
    """Return the last cell of each row, by what it is compared with, or by its title."""
    skipped = "no torch here"
    return {v.other or v.title: v.cells[-1] for v in judge(setting(tmp_path), [work], results, skipped)}


@pytest.mark.parametrize("words", [(), ("bars",), ("pictures",)], ids=lambda words: " ".join(words) or "comparison")
def test_help(words: tuple[str, ...]) -> None:
    done = benchmarks(*words, "--help")
    assert done.returncode == 0, done.stderr
    for option in ("--runs", "--quick", "--json", "--work-dir", "--reference"):
        assert option in done.stdout


@pytest.mark.parametrize("outtype", ["f16", "q8_0"])
def test_comparison(tmp_path: Path, outtype: str) -> None:
    saved = tmp_path / "figures.json"
    options = ("--model", "tiny", "--outtype", outtype, "--runs", 1, "--work-dir", tmp_path / "work", "--json", saved)
    done = benchmarks(*options, *NO_TORCH)
    assert done.returncode == 0, done.stderr
    assert f"tiny, F32 to {outtype}" in done.stdout
    assert "All outputs are identical" in done.stdout
    assert "The torch reference was skipped: no-such-python cannot be run" in done.stdout
    figures = json.loads(saved.read_text(encoding="utf-8"))
    assert set(figures["results"]) == {"clipgguf", "floor", "floor-flushed"}
    assert figures["identical"] is True
    assert figures["work"]["bytes_out"] > 0
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["tiny-F32"], "outputs are removed"


def test_bars(tmp_path: Path) -> None:
    saved = tmp_path / "figures.json"
    models = ("--model", "tiny", "--large-model", "tiny", "--tensors", 10, "--work-dir", tmp_path / "work")
    works = ("--only", "f32-f16", "start-up", "tensors")
    done = benchmarks("bars", "--runs", 1, *models, *works, "--json", saved, *NO_TORCH)
    assert done.returncode == 0, done.stderr
    heading, rule, *rows = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert heading.split("|")[1].strip() == "work"
    assert set(rule) <= set("|-:")
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert {len(row) for row in cells} == {6}
    # What a tiny model costs is the interpreter's start: no bar is more certain to be missed.
    assert [row[-1] for row in cells if row[2].startswith("cat + cp ") and row[4]] == ["**missed**"]
    assert [row[-1] for row in cells if row[2] == "torch reference"] == ["not measured: skipped"]
    assert [row[0] for row in cells if row[0].startswith("peak")] == [
        "peak memory, any to f16",
        "peak memory, 10 tensors",
    ]
    figures = json.loads(saved.read_text(encoding="utf-8"))
    assert set(figures["sessions"]) == {"base-f32", "start-up", "tensors"}
    assert len(figures["bars"]) == len(rows)
    assert not (tmp_path / "work" / "outputs").exists()


def test_bars_check(tmp_path: Path) -> None:
    models = ("--model", "tiny", "--large-model", "tiny", "--work-dir", tmp_path)
    done = benchmarks("bars", "--check", "--runs", 1, *models, "--only", "bf16-f16", *NO_TORCH)
    assert done.returncode == 1
    assert "**missed**" in done.stdout
    assert done.stderr.splitlines()[-1] == "benchmarks: error: not all bars are met"


def test_every_bar_has_its_contenders(tmp_path: Path) -> None:
    # Rows of a contender that no session has would never be measured, and say "failed".
    with_torch = Setting(tmp_path, "tiny", "tiny", tensors=1, python=sys.executable, runs=1, quick=True)
    for size, dtype in {model for session in SESSIONS.values() for model in session.models}:
        with_torch.model(size, dtype).make()
    keys = {name: {contender.key for contender in session.contenders(with_torch)} for name, session in SESSIONS.items()}
    assert {bar.work for bar in BARS} == set(WORKS)
    for bar in BARS:
        assert {bar.subject, bar.against} <= keys[bar.session], bar


@pytest.mark.parametrize(("seconds", "said"), [(1.25, "met"), (1.26, "**missed**")])
def test_a_bar_is_met_or_missed_by_medians(tmp_path: Path, seconds: float, said: str) -> None:
    ours = result("clipgguf-f16", (0.1, MIB), (seconds, 60 * MIB), (9.0, MIB))
    results = {"base-f32": {"clipgguf-f16": ours, "floor": result("floor", (1.0, MIB))}}
    cells = verdict_cells(tmp_path, results)
    assert cells["floor 1.00 s"] == said
    assert cells["torch reference"] == "not measured: skipped"
    assert cells["peak memory, any to f16"] == "met"


def test_a_peak_is_the_greatest(tmp_path: Path) -> None:
    results = {"base-f32": {"clipgguf-f16": result("clipgguf-f16", (1.0, 60 * MIB), (1.0, 65 * MIB), (1.0, MIB))}}
    assert verdict_cells(tmp_path, results)["peak memory, any to f16"] == "**missed**"


def test_what_failed_is_not_measured(tmp_path: Path) -> None:
    assert verdict_cells(tmp_path, {}, "sizes") == {"smaller": "not measured: failed"}


def test_outputs_of_the_same_content_are_compared() -> None:
    assert digests({"a": result("a", (1, 1), digest="x"), "b": result("b", (1, 1), digest="y")}) == {
        "content": ["x", "y"]
    }


@pytest.mark.parametrize("flush", [False, True])
@pytest.mark.parametrize("shards", [0, 2])
def test_floor(tmp_path: Path, shards: int, flush: bool) -> None:
    output, copy = tmp_path / "a file", tmp_path / "copies" / "-its copy"
    inputs = [tmp_path / f"shard {n}" for n in range(shards)]
    for path in (output, *inputs):
        path.write_bytes(b"bytes")
    commands = (
        floor_command(inputs, output, copy, flush=flush),
        (sys.executable, "-m", "benchmarks.floor", *(["--flush"] if flush else []), *map(str, (output, copy, *inputs))),
    )
    for command in commands:
        done = alternate([Contender("floor", "floor", command, (), copy, "")], 1, lambda *run: None)
        assert done["floor"].runs[0].output_nbytes == 5
        assert not copy.exists(), "nobody reads it"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux's /proc")
def test_memory_trace_sees_what_is_held_for_a_moment() -> None:
    # On a machine that does other things besides, who watches may not come to look for a while; it waits in between,
    # and the system counts how often.
    script = f"""
import os, time
from pathlib import Path

def be_seen():
    time.sleep(0.2)
    seen = looks()
    while looks() < seen + 10: time.sleep(0.005)

def looks():
    status = Path(f"/proc/{{os.getppid()}}/status").read_text()
    return int(status.partition("\\nvoluntary_ctxt_switches:")[2].split()[0])

held = b"x" * {64 * MIB}; be_seen(); del held; be_seen()
"""
    trace = trace_memory(Contender("python", "python", (sys.executable, "-S", "-c", script), (), None, ""))
    assert list(trace.seconds) == sorted(trace.seconds)
    assert 0.4 <= trace.seconds[-1] <= HANGS_AFTER
    assert 64 * MIB <= max(trace.resident) <= 96 * MIB
    assert trace.resident[-1] <= 32 * MIB
    thinned = trace.thinned(10)
    assert len(thinned.seconds) <= 10
    assert max(thinned.resident) == max(trace.resident)


@pytest.fixture
def figures(tmp_path: Path) -> Path:
    """A survey as ``pictures --json`` saves it."""
    keys = ("clipgguf", "floor", "floor-flushed", "reference")
    survey = Survey(
        machine={"cpu": "a processor", "cores": 2, "python": "3", "numpy": "2", "platform": "a system"},
        reference={"torch": "2", "transformers": "5"},
        runs=1,
        traced="tiny",
        traces=tuple(Trace(key, key, (0.1, 0.2), (30 * MIB, 40 * MIB)) for key in ("clipgguf", "reference")),
        growth=tuple(Growth(key, key, ("a", "b"), (10**9, 10**10), (1, 8), (2, 9), (3, 10)) for key in keys),
    )
    path = tmp_path / "figures.json"
    path.write_text(json.dumps(survey.as_json()), encoding="utf-8")
    assert Survey.from_json(json.loads(path.read_text(encoding="utf-8"))) == survey
    return path


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="needs matplotlib")
def test_pictures_are_the_same_for_the_same_figures(figures: Path, tmp_path: Path) -> None:
    drawn = []
    for directory in (tmp_path / "first", tmp_path / "second"):
        done = benchmarks("pictures", "--redraw", figures, "--output-dir", directory)
        assert done.returncode == 0, done.stderr
        paths = [directory / "memory.svg", directory / "time.svg"]
        assert done.stdout.split() == list(map(str, paths))
        drawn.append([path.read_text(encoding="utf-8") for path in paths])
    assert drawn[0] == drawn[1]
    for picture in drawn[0]:
        assert "a processor, 2 cores" in picture
        assert "torch 2" in picture


def test_pictures_without_matplotlib(figures: Path) -> None:
    done = benchmarks("pictures", "--redraw", figures, start=("-c", NOT_INSTALLED))
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("benchmarks: error: the pictures need matplotlib")
    assert line.endswith("pip install -e '.[bench]'")
