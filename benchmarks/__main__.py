"""Measure clipgguf against the I/O floor and the torch reference, on checkpoints of real models' sizes.

    python -m benchmarks [--model MODEL] [--dtype DTYPE] [--outtype OUTTYPE] ...
    python -m benchmarks bars [--only WORK ...] [--check] ...
    python -m benchmarks pictures [--only PICTURE] [--output-dir DIR] ...

The first compares all contenders on one checkpoint, the second measures all that has a bar and prints the table, the
third draws the README's pictures. Run it in the project's directory. ``benchmarks.measure`` says how the figures come
about.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.bars import WORKS, measure_bars
from benchmarks.comparison import compare
from benchmarks.contenders import reference_versions
from benchmarks.measure import ROOT, BenchmarkError
from benchmarks.memory_trace import require_proc
from benchmarks.model_dirs import MODELS, ModelDir, say
from benchmarks.sessions import Setting
from benchmarks.survey import Survey, survey
from clipgguf.element_types import OUTTYPES
from tests.checkpoints import REAL

BASE, LARGE = "vit-l-14-336", "vit-bigg-14"
QUICK_BASE, QUICK_LARGE = "vit-b-32", "vit-l-14-336"
TENSORS, QUICK_TENSORS = 10_000, 1_000
PICTURES = ("memory", "time")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what the first word says. Exit 0 when it has run, 1 when outputs differ or something failed."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    run = COMMANDS.get(words[0]) if words else None
    try:
        if run is None:
            _comparison(words)
        else:
            run(words[1:])
    except (BenchmarkError, OSError) as e:
        sys.exit(f"benchmarks: error: {e}")


def _comparison(arguments: Sequence[str]) -> None:
    parser = _parser(
        "python -m benchmarks",
        "Time our conversion, the I/O floor (cat the shards, cp the output; also with a flush) and the torch reference "
        "on one checkpoint, alternating, with peak memory, and compare what they write.",
        "`python -m benchmarks bars` measures all that has a bar, `python -m benchmarks pictures` draws; "
        "each has a --help of its own.",
    )
    parser.add_argument("--model", choices=tuple(MODELS), help=f"size of the checkpoint [default: {BASE}]")
    parser.add_argument(
        "--dtype", choices=("F32", "F16", "BF16"), default="F32", help="its element type [default: F32]"
    )
    parser.add_argument(
        "--outtype", choices=tuple(OUTTYPES), default="f16", help="element type of the outputs [default: f16]"
    )
    options = _parse(parser, arguments)
    model = ModelDir(options.model or (QUICK_BASE if options.quick else BASE), options.dtype, options.work_dir)
    runs = options.runs or (3 if options.quick else 5)
    report = compare(model, options.outtype, runs, options.reference)
    print(report.as_text())
    _save(options.json, report.as_json())
    if not report.identical:
        raise BenchmarkError("the outputs differ")


def _bars(arguments: Sequence[str]) -> None:
    parser = _parser(
        "python -m benchmarks bars",
        "Measure all that has a bar, the contenders of each alternating, and print the table in Markdown. "
        "A bar that is missed is said to be missed; with --check it is an error, too.",
    )
    parser.add_argument("--only", nargs="+", choices=WORKS, metavar="WORK", help=f"some of {', '.join(WORKS)}")
    parser.add_argument("--model", choices=tuple(MODELS), help=f"in place of {BASE} [--quick: {QUICK_BASE}]")
    parser.add_argument("--large-model", choices=tuple(MODELS), help=f"in place of {LARGE} [--quick: {QUICK_LARGE}]")
    parser.add_argument(
        "--tensors",
        type=int,
        metavar="N",
        help=f"small tensors [default: {TENSORS}; --quick: {QUICK_TENSORS}]",
    )
    parser.add_argument("--check", action="store_true", help="exit 1 when a bar is missed or was not measured")
    options = _parse(parser, arguments)
    if options.tensors is not None and options.tensors < 1:
        parser.error("--tensors should be at least 1")
    versions, skipped = _reference(options.reference)
    setting = Setting(
        work_dir=options.work_dir,
        base=options.model or (QUICK_BASE if options.quick else BASE),
        large=options.large_model or (QUICK_LARGE if options.quick else LARGE),
        tensors=options.tensors or (QUICK_TENSORS if options.quick else TENSORS),
        python=None if skipped else options.reference,
        runs=options.runs,
        quick=options.quick,
    )
    report = measure_bars(setting, options.only or WORKS, versions, skipped)
    print(report.as_text())
    _save(options.json, report.as_json())
    if report.failures:
        raise BenchmarkError("not all could be measured")
    if options.check and not report.all_met:
        raise BenchmarkError("not all bars are met")


def _pictures(arguments: Sequence[str]) -> None:
    parser = _parser(
        "python -m benchmarks pictures",
        "Draw the resident memory of our conversion and of the torch reference over time, and everybody's time against "
        "the checkpoint's size. Needs matplotlib: pip install -e '.[bench]'.",
    )
    parser.add_argument("--only", choices=PICTURES, help="one of the two pictures")
    parser.add_argument("--model", choices=tuple(MODELS), help=f"for memory [default: {BASE}, --quick: {QUICK_BASE}]")
    parser.add_argument(
        "--sizes",
        nargs="+",
        choices=tuple(MODELS),
        metavar="MODEL",
        help=f"for time [default: {', '.join(REAL)}; --quick: {QUICK_BASE}, {QUICK_LARGE}]",
    )
    parser.add_argument(
        "--output-dir", type=Path, metavar="DIR", default=ROOT / "docs", help="where they go [default: docs]"
    )
    parser.add_argument("--format", choices=("svg", "png"), default="svg", help="their format [default: svg]")
    parser.add_argument("--redraw", type=Path, metavar="FILE", help="measure nothing, draw what --json has saved")
    options = _parse(parser, arguments)
    # Both are asked for at once, and not after an hour of measuring.
    try:
        from benchmarks.pictures import draw
    except ModuleNotFoundError as e:
        raise BenchmarkError(f"the pictures need matplotlib ({e}): pip install -e '.[bench]'") from e
    if options.redraw is not None:
        figures = _load(options.redraw)
    else:
        if options.only != "time":
            require_proc()
        model = options.model or (QUICK_BASE if options.quick else BASE)
        sizes = options.sizes or ((QUICK_BASE, QUICK_LARGE) if options.quick else tuple(REAL))
        versions, skipped = _reference(options.reference)
        figures = survey(
            options.work_dir,
            None if options.only == "time" else model,
            () if options.only == "memory" else sizes,
            options.runs or (1 if options.quick else 3),
            None if skipped else options.reference,
            versions,
        )
        _save(options.json, figures.as_json())
    for path in draw(figures, options.output_dir, options.format):
        print(path)


COMMANDS: Mapping[str, Callable[[Sequence[str]], None]] = {"bars": _bars, "pictures": _pictures}


def _parser(prog: str, description: str, epilog: str | None = None) -> argparse.ArgumentParser:
    """Return a parser that has what all commands share."""
    parser = argparse.ArgumentParser(prog=prog, description=description, epilog=epilog)
    parser.add_argument("--runs", type=int, metavar="N", help="runs of each that count, after a warm-up")
    parser.add_argument("--quick", action="store_true", help="smaller models and fewer runs, unless said otherwise")
    parser.add_argument("--json", type=Path, metavar="FILE", help="save all figures as JSON")
    parser.add_argument(
        "--work-dir",
        type=Path,
        metavar="DIR",
        default=ROOT / "build" / "benchmarks",
        help="where checkpoints are made and kept, and outputs written [default: build/benchmarks in the project]",
    )
    parser.add_argument(
        "--reference",
        metavar="PYTHON",
        default=sys.executable,
        help="interpreter that has torch and transformers [default: this one]",
    )
    return parser


def _parse(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace:
    options = parser.parse_args(arguments)
    if options.runs is not None and options.runs < 1:
        parser.error("--runs should be at least 1")
    if options.json is not None and not options.json.absolute().parent.is_dir():
        parser.error(f"--json: there is no directory {options.json.absolute().parent}")
    options.work_dir = options.work_dir.absolute()
    if found := shutil.which(options.reference):
        options.reference = str(Path(found).absolute())
    return options


def _reference(python: str) -> tuple[Mapping[str, str] | None, str | None]:
    versions, skipped = reference_versions(python)
    if skipped is not None:
        say(f"the torch reference is skipped: {skipped}")
    return versions, skipped


def _load(path: Path) -> Survey:
    try:
        return Survey.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError) as e:
        raise BenchmarkError(f"{path}: is not what `pictures --json` saves: {e!r}") from e


def _save(path: Path | None, value: Mapping[str, Any]) -> None:
    if path is not None:
        path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
