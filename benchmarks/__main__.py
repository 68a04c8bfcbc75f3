"""The command line: ``python -m benchmarks``, in the project's directory. What is measured is the table of rows.py."""

import argparse
import importlib.util
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import datetime, timezone
from pathlib import Path

from benchmarks.checkpoints import make_all
from benchmarks.figures import Figures, as_text, table, unmeasured
from benchmarks.machine import machine, torch_releases
from benchmarks.measure import Setting, measure_row
from benchmarks.process import ROOT, BenchmarkError
from benchmarks.rows import ROWS, Row


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the rows that were asked for. Exit 0 when that was done, 1 when something failed, 2 for wrong usage."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.runs is not None and options.runs < 1:
        parser.error("--runs should be at least 1")
    if options.json is not None and not options.json.absolute().parent.is_dir():
        parser.error(f"--json: there is no directory {options.json.absolute().parent}")
    for part in options.row:
        if not any(part.lower() in row.name.lower() for row in ROWS):
            parser.error(f"no row has {part!r} in its name; --list shows all")
    rows = [row for row in ROWS if not options.row or any(part.lower() in row.name.lower() for part in options.row)]
    if options.list:
        print("\n".join(table([unmeasured(row) for row in rows], ("row", "program", "limit"))))
        return
    try:
        _run([row.quick() if options.quick else replace(row, runs=options.runs or row.runs) for row in rows], options)
    except (BenchmarkError, OSError) as e:
        sys.exit(f"benchmarks: error: {e}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure time and peak memory of clipgguf beside other programs, and tell which limits are met.",
    )
    add = parser.add_argument
    add("row", nargs="*", metavar="ROW", help="part of the names of rows [default: all rows]")
    add("--list", action="store_true", help="show the rows and their limits, and measure nothing")
    add("--quick", action="store_true", help="tiny models, one run, no limits: only to see that it works")
    add("--runs", type=int, metavar="N", help="runs of each program, after a warm-up [default: the row's own number]")
    add("--json", type=Path, metavar="FILE", help="save all figures")
    add("--draw", type=Path, metavar="DIR", help="draw memory.svg (on Linux) and time.svg; needs .[bench]")
    work_dir = ROOT / "build" / "benchmarks"
    add("--work-dir", type=Path, metavar="DIR", default=work_dir, help="for checkpoints, which are kept, and outputs")
    add("--reference", metavar="PYTHON", default=sys.executable, help="interpreter that has torch and transformers")
    return parser


def _run(rows: Sequence[Row], options: argparse.Namespace) -> None:
    # It is asked for at once, and not after an hour of measuring.
    if options.draw is not None and importlib.util.find_spec("matplotlib") is None:
        raise BenchmarkError("--draw needs matplotlib: pip install -e '.[bench]'")
    figures = _measure(rows, options)
    print(as_text(figures))
    if options.json is not None:
        options.json.write_text(json.dumps(asdict(figures), indent=1) + "\n", encoding="utf-8")
    if options.draw is not None:
        from benchmarks.pictures import draw

        print(*draw(figures, options.draw), sep="\n")
    if any(row.error for row in figures.rows):
        raise BenchmarkError("not all could be measured")


def _measure(rows: Sequence[Row], options: argparse.Namespace) -> Figures:
    python = str(Path(shutil.which(options.reference) or options.reference).absolute())
    torch, torch_missing = torch_releases(python)
    watch_memory = options.draw is not None and Path("/proc/self/statm").exists()
    setting = Setting(options.work_dir.absolute(), python, torch_missing, watch_memory)
    make_all(setting.work_dir, [entry.checkpoint for row in rows for entry in row.entries if entry.checkpoint])
    return Figures(
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        quick=options.quick,
        machine=machine(),
        torch=torch,
        rows=[measure_row(row, setting) for row in rows],
    )


if __name__ == "__main__":
    main()
