"""The benchmarks run and say what they find; what they find is no matter here. None of it needs torch."""

import importlib.util
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import main
from benchmarks.checkpoints import Checkpoint, make_all
from benchmarks.figures import Figures, ProgramFigures, RowFigures, as_text, judge, table, unmeasured
from benchmarks.measure import Setting, measure_row
from benchmarks.process import ROOT, BenchmarkError, run_process, trace_memory
from benchmarks.rows import ROWS, Entry, Program, Row, shell
from tests.checkpoints import TINY
from tests.processes import HANGS_AFTER, MIB, uncovered
from tests.weights import Shapes

NO_MATPLOTLIB = "import sys; sys.modules['matplotlib'] = None; from benchmarks.__main__ import main; main()"
needs_shell = pytest.mark.skipif(shutil.which("sh") is None, reason="needs sh, cat and cp")


def benchmarks(*args: object, start: tuple[str, ...] = ("-m", "benchmarks")) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, *start, *map(str, args)]
    return subprocess.run(
        command, cwd=ROOT, env=uncovered(), capture_output=True, encoding="utf-8", timeout=HANGS_AFTER
    )


def python(label: str, script: str, *words: str) -> Program:
    return Program(label, ("{python}", "-I", "-S", "-c", script, *words))


def writes(label: str, text: str) -> Program:
    return python(label, f"import sys; open(sys.argv[1] + '/a file', 'w').write({text!r})", "{out}")


def measured(*programs: Program, tmp_path: Path, **options: Any) -> RowFigures:
    """Measure a made-up row on a tiny checkpoint, without a warm-up."""
    checkpoint = Checkpoint("tiny", TINY)
    first, *others = programs
    options = {"runs": 1, "warm_up": False, **options}
    row = Row("a row", checkpoint, first, tuple(Entry(program, 2.0) for program in others), **options)
    make_all(tmp_path, [checkpoint])
    return measure_row(row, Setting(tmp_path, "no-such-python", "no torch here", watch_memory=True))


def program(label: str, *seconds: float, at_most: float | None = None, **fields: Any) -> ProgramFigures:
    return ProgramFigures(label, "a model", at_most, seconds=list(seconds), **fields)


@pytest.mark.slow
def test_quick(tmp_path: Path) -> None:
    saved, work_dir = tmp_path / "figures.json", tmp_path / "work"
    names = ("start-up", "ViT-L/14-336 f32 to f16", "small tensors")
    done = benchmarks(*names, "--quick", "--work-dir", work_dir, "--json", saved, "--reference", "no-such-python")
    assert done.returncode == 0, done.stderr
    assert "no-such-python cannot be run: " in done.stdout
    rows = {row["row"]: row["programs"] for row in json.loads(saved.read_text(encoding="utf-8"))["rows"]}
    assert list(rows) == ["start-up", "ViT-L/14-336 f32 to f16", "10,000 small tensors"]
    for programs in rows.values():
        for found in programs:
            assert len(found["seconds"]) == (0 if found["not_run"] else 1)
            assert found["at_most"] is None
    ours, torch, *copies = rows["ViT-L/14-336 f32 to f16"]
    assert torch["not_run"]
    assert ours["output_bytes"] > 0
    for copy in copies:
        assert copy["not_run"] or copy["sha256"] == ours["sha256"]
    assert sorted(path.name for path in work_dir.iterdir()) == [
        "few-large-tensors-small-F32",
        "many-small-tensors-small-F32",
        "vit-l-14-336-small-F32",
    ], "checkpoints are kept, outputs are not"


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--list"])
    heading, rule, *lines = capsys.readouterr().out.splitlines()
    assert [cell.strip() for cell in heading.strip("|").split("|")] == ["row", "program", "limit"]
    assert set(rule) <= set("|-:")
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [row for row, _, _ in cells if row] == [row.name for row in ROWS]
    assert ["ViT-L/14-336 f32 to f16", "clipgguf", "64.0 MiB"] in cells
    assert ["", "torch reference, f16", "0.20"] in cells
    assert ["", "clipgguf, few-large-tensors", "2.00"] in cells


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["no such row"], "no row has 'no such row' in its name"),
        (["--runs", "0"], "--runs should be at least 1"),
        (["--json", "no/such/directory/figures.json"], "--json: there is no directory"),
    ],
)
def test_wrong_usage(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(("seconds", "met"), [(1.25, True), (1.26, False)])
def test_times_are_judged_by_their_medians(seconds: float, met: bool) -> None:
    programs = [program("clipgguf", 0.1, seconds, 9.0), program("other", 1.0, at_most=1.25)]
    judge(programs, per_gb=False)
    assert programs[1].ratio == seconds
    assert programs[1].met is met
    (cells,) = [line for line in table([RowFigures("a row", (), programs)]) if "other" in line]
    assert cells.split("|")[-2].strip() == ("met" if met else "**missed**")


def test_times_per_gb() -> None:
    programs = [program("large", 10.0, input_bytes=4 * 10**9), program("small", 2.0, at_most=1.3, input_bytes=10**9)]
    judge(programs, per_gb=True)
    assert programs[1].ratio == 1.25
    assert programs[1].met is True


@pytest.mark.parametrize(("peak", "met"), [(64 * MIB, True), (64 * MIB + 1, False), (None, None)])
def test_peak_memory_is_judged(peak: int | None, met: bool | None) -> None:
    programs = [program("clipgguf", 1.0, at_most=64 * MIB, peak_bytes=peak)]
    judge(programs, per_gb=False)
    assert programs[0].met is met


def test_what_did_not_run_is_neither_met_nor_missed(tmp_path: Path) -> None:
    torch = Program("torch", ("{torch}", "-c", "pass"))
    missing = Program("missing", ("no-such-program",))
    row = measured(writes("first", "bytes"), torch, missing, tmp_path=tmp_path)
    assert [found.not_run for found in row.programs] == [None, "no torch here", "there is no no-such-program"]
    assert [found.met for found in row.programs[1:]] == [None, None]
    assert [line.split("|")[-2].strip() for line in table([row])[3:]] == ["not run", "not run"]


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (writes("other", "not the same"), "other: wrote other bytes"),
        (python("other", "raise SystemExit('no room')"), "no room"),
        (python("other", "pass"), "other: wrote 0 files, should be one"),
    ],
)
def test_what_fails_is_told(other: Program, said: str, tmp_path: Path) -> None:
    row = measured(writes("first", "the same"), other, tmp_path=tmp_path)
    assert row.error is not None
    assert said in row.error
    assert row.programs[1].ratio is None
    assert f"FAILED: a row: {row.error}" in as_text(Figures("", False, {}, "", [row]))
    assert [path.name for path in tmp_path.iterdir()] == ["tiny-F32"]


@needs_shell
def test_programs_of_the_shell(tmp_path: Path) -> None:
    copies = {entry.program.label: entry.program for row in ROWS for entry in row.entries if entry.program.copies}
    assert list(copies) == ["cat + cp", "cat + cp + sync", "cp", "cp + sync"]
    row = measured(writes("first", "the same"), *copies.values(), tmp_path=tmp_path / "a directory")
    assert row.error is None
    assert [found.output_bytes for found in row.programs] == [8] * 5


@needs_shell
def test_the_shell_gets_all_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.checkpoints.LARGEST_SHARD", Checkpoint("tiny", TINY).nbytes // 3 + 1)
    row = measured(writes("first", ""), shell("cat", 'cat "$@" > "$out"/shards'), tmp_path=tmp_path)
    assert row.error is None
    assert len(list(tmp_path.glob("tiny-F32/model-*-of-00003.safetensors"))) == 3
    assert row.programs[1].output_bytes == row.programs[1].input_bytes > Checkpoint("tiny", TINY).nbytes


@dataclass(frozen=True)
class ShapesTable:
    """A model that is a table, as the towers of one that the library learns to convert will be."""

    table: Shapes

    def shapes(self) -> Shapes:
        return self.table

    def files(self) -> dict[str, Any]:
        return {"config.json": {"model_type": "made-up"}}


def test_a_checkpoint_from_a_table(tmp_path: Path) -> None:
    checkpoint = Checkpoint("made-up", ShapesTable({"blocks.0.weight": (3, 5), "blocks.0.bias": (3,)}), "BF16")
    make_all(tmp_path, [checkpoint, checkpoint])
    assert [path.name for path in tmp_path.iterdir()] == ["made-up-BF16"]
    assert json.loads((tmp_path / "made-up-BF16" / "config.json").read_text(encoding="utf-8")) == {
        "model_type": "made-up"
    }
    data = (tmp_path / "made-up-BF16" / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    assert header["blocks.0.weight"] == {"dtype": "BF16", "shape": [3, 5], "data_offsets": [0, 30]}
    assert len(data) == 8 + length + checkpoint.nbytes


def test_too_little_room_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(BenchmarkError, match=r"has 0\.0 GB free, this needs 0\.0 GB"):
        make_all(tmp_path, [Checkpoint("tiny", TINY)])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no ru_maxrss")
def test_peak_memory_is_the_commands_own() -> None:
    held = b"x" * (96 * MIB)  # What this process weighs must not count, nor hide what the command holds.
    bare = (sys.executable, "-I", "-S", "-c")
    _, least = run_process((*bare, "pass"))
    _, most = run_process((*bare, f"held = b'x' * {64 * MIB}"))
    assert len(held) == 96 * MIB
    assert least is not None
    assert most is not None
    assert least < 24 * MIB
    assert abs(most - least - 64 * MIB) < 8 * MIB


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux's /proc")
def test_memory_trace_sees_what_is_held_for_a_moment(tmp_path: Path) -> None:
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
    moments = trace_memory((sys.executable, "-I", "-S", "-c", script))
    seconds, resident = zip(*moments, strict=True)
    assert list(seconds) == sorted(seconds)
    assert seconds[-1] >= 0.4
    assert 64 * MIB <= max(resident) <= 96 * MIB
    assert resident[-1] <= 32 * MIB
    row = measured(writes("first", ""), tmp_path=tmp_path, pictures=("memory",))
    assert row.programs[0].memory


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="needs matplotlib")
def test_pictures_are_the_same_for_the_same_figures(tmp_path: Path) -> None:
    from benchmarks.pictures import draw

    rows = [unmeasured(row) for row in ROWS if row.pictures]
    for number, row in enumerate(rows, 1):
        for found in row.programs:
            found.input_bytes = number * 10**9
            found.seconds = [1.0 * number, 2.0 * number, 3.0 * number]
            found.memory = [(0.1, 30 * MIB), (0.2, 40 * MIB)] if "memory" in row.pictures else []
    figures = Figures("", False, {"cpu": "a processor"}, "torch 2", rows)
    drawn = []
    for directory in (tmp_path / "first", tmp_path / "second"):
        paths = draw(figures, directory)
        assert [path.name for path in paths] == ["memory.svg", "time.svg"]
        drawn.append([path.read_text(encoding="utf-8") for path in paths])
    assert drawn[0] == drawn[1]
    for picture in drawn[0]:
        assert "cpu a processor, torch 2; " in picture
        assert "torch reference" in picture


def test_pictures_without_matplotlib(tmp_path: Path) -> None:
    done = benchmarks("--quick", "--draw", tmp_path, "--work-dir", tmp_path / "work", start=("-c", NO_MATPLOTLIB))
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == "benchmarks: error: --draw needs matplotlib: pip install -e '.[bench]'\n"
    assert list(tmp_path.iterdir()) == []
