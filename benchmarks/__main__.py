"""Measure clipgguf against the I/O floor and the torch reference, on a checkpoint of a real model's size.

    python -m benchmarks [--model MODEL] [--dtype DTYPE] [--runs N] [--quick] [--json FILE] [--work-dir DIR]
                         [--reference PYTHON]

Run it in the project's directory. ``benchmarks.measure`` says how the figures come about.
"""

import argparse
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.floor import floor_command
from benchmarks.measure import ROOT, BenchmarkError, Contender, Run, alternate, resting_memory
from benchmarks.report import OURS, Report, Work
from tests.checkpoints import ITEMSIZE, REAL, Clip, write_model

LARGEST_SHARD = 5 * 10**9  # As transformers 4 saves.
OUTTYPE = "f16"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark: exit 0 when all outputs are identical, 1 when they are not or something failed."""
    options = _parse(arguments)
    try:
        report = _benchmark(options)
    except (BenchmarkError, OSError) as e:
        sys.exit(f"benchmarks: error: {e}")
    print(report.as_text())
    if options.json is not None:
        options.json.write_text(json.dumps(report.as_json(), indent=2) + "\n", encoding="utf-8")
    if not report.identical:
        sys.exit("benchmarks: error: the outputs differ")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Time our conversion, the I/O floor (cat the shards, cp the output) and the torch reference, "
        "alternating, with peak memory, and compare what they write.",
    )
    parser.add_argument("--model", choices=tuple(REAL), help="size of the checkpoint [default: vit-l-14-336]")
    parser.add_argument(
        "--dtype", choices=("F32", "F16", "BF16"), default="F32", help="its element type [default: F32]"
    )
    parser.add_argument("--runs", type=int, metavar="N", help="runs of each that count [default: 5]")
    parser.add_argument("--quick", action="store_true", help="within a minute: vit-b-32, 3 runs, unless said otherwise")
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
    options = parser.parse_args(arguments)
    options.model = options.model or ("vit-b-32" if options.quick else "vit-l-14-336")
    if options.runs is None:
        options.runs = 3 if options.quick else 5
    if options.runs < 1:
        parser.error("--runs should be at least 1")
    if options.json is not None and not options.json.absolute().parent.is_dir():
        parser.error(f"--json: there is no directory {options.json.absolute().parent}")
    if found := shutil.which(options.reference):
        options.reference = str(Path(found).absolute())
    return options


def _benchmark(options: argparse.Namespace) -> Report:
    work_dir = options.work_dir.absolute()
    clip = REAL[options.model]
    model_dir = _checkpoint(work_dir, options.model, clip, options.dtype)
    shards = tuple(sorted(model_dir.glob("*.safetensors")))
    reference, skipped = _reference_versions(options.reference)
    if skipped is not None:
        _say(f"the torch reference is skipped: {skipped}")

    outputs = work_dir / "outputs"
    contenders = _contenders(model_dir, shards, outputs, None if skipped else options.reference)
    try:
        results = alternate(contenders, options.runs, _say_run)
        bytes_out = contenders[0].output.stat().st_size
    finally:
        shutil.rmtree(outputs, ignore_errors=True)
    work = Work(
        model=options.model,
        dtype=options.dtype,
        outtype=OUTTYPE,
        shards=len(shards),
        bytes_in=sum(shard.stat().st_size for shard in shards),
        bytes_out=bytes_out,
    )
    return Report(work, results, resting_memory(), reference, skipped)


def _contenders(model_dir: Path, shards: tuple[Path, ...], outputs: Path, reference: str | None) -> list[Contender]:
    """Return what is to be compared, in the order of a round; the floor copies what ours has written."""
    name = f"model-{OUTTYPE}.gguf"
    ours, copy, theirs = (outputs / key / name for key in (OURS, "floor", "reference"))
    command = (sys.executable, "-m", "clipgguf", str(model_dir), "-o", str(ours.parent), "-q")
    contenders = [
        Contender(OURS, OURS, command, shards, ours),
        Contender("floor", "cat + cp", floor_command(shards, ours, copy), (*shards, ours), copy),
    ]
    if reference is not None:
        command = (reference, "-m", "benchmarks.reference", str(model_dir), str(theirs.parent), "--outtype", OUTTYPE)
        contenders.append(Contender("reference", "torch reference", command, shards, theirs))
    return contenders


def _checkpoint(work_dir: Path, model: str, clip: Clip, dtype: str) -> Path:
    """Return the directory of a checkpoint with random weights, which is made unless it is there.

    It appears under its name only when it is complete.
    """
    directory = work_dir / f"{model}-{dtype}"
    elements = sum(math.prod(shape) for shape in clip.shapes().values())
    nbytes = elements * ITEMSIZE[dtype]
    is_there = directory.is_dir()
    needed = 3 * elements * ITEMSIZE["F16"] + (0 if is_there else nbytes)
    work_dir.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(work_dir).free
    if free < needed:
        raise BenchmarkError(f"{work_dir}: has {free / 1e9:.1f} GB free, this needs {needed / 1e9:.1f} GB")
    if is_there:
        return directory
    _say(f"making {directory} ({nbytes / 1e9:.1f} GB)")
    partial = directory.with_name(f"{directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        write_model(partial, clip, dtype=dtype, shards=-(-nbytes // LARGEST_SHARD))
        partial.replace(directory)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return directory


def _reference_versions(python: str) -> tuple[dict[str, str] | None, str | None]:
    """Return the versions of what the reference runs on, or why this interpreter cannot run it."""
    script = (
        "import json, platform, torch, transformers, numpy, gguf, PIL\n"
        "modules = {m.__name__: m.__version__ for m in (numpy, torch, transformers)}\n"
        "print(json.dumps({'python': platform.python_version(), **modules}))"
    )
    try:
        done = subprocess.run([python, "-c", script], capture_output=True, encoding="utf-8", errors="replace")
    except OSError as e:
        return None, f"{python} cannot be run: {e.strerror}"
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        return None, f"{python} cannot import what it needs: {reason}"
    versions: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {name: str(version) for name, version in versions.items()}, None


def _say(text: str) -> None:
    print(f"benchmarks: {text}", file=sys.stderr, flush=True)


def _say_run(contender: Contender, number: int, run: Run) -> None:
    _say(f"{f'run {number}' if number else 'warm-up'}: {contender.label}, {run.seconds:.2f} s")


if __name__ == "__main__":
    main()
