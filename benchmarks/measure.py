"""Measure a row: all its programs in turn, each run a fresh process; ``process.py`` says how one is measured.

Nobody pays for what another left behind: before each run, outside its time, its old output is removed, unwritten pages
are flushed where the system can (``sync``), and its inputs are read, because torch on a large model pushes them out of
the page cache; where they would fill it, they are taken out of it instead, for all programs alike. An output that no
other program reads is removed as soon as its digest is taken, so that two outputs at most are on disk at a time.
"""

import hashlib
import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from benchmarks.figures import ProgramFigures, RowFigures, judge, unmeasured
from benchmarks.process import BenchmarkError, run_process, say, trace_memory
from benchmarks.rows import Program, Row
from tests.hub_process import hub_process

# So much may be in the page cache beside an output of the same size, on a machine of 24 GiB.
LARGEST_WARM = 6 << 30


@dataclass(frozen=True, slots=True)
class Setting:
    """With what rows are measured; ``torch_missing`` says why the interpreter ``torch`` cannot run the reference.

    With ``watch_memory`` the programs of a row in the picture "memory" run once more, and their memory is watched.
    """

    work_dir: Path
    torch: str
    torch_missing: str | None
    watch_memory: bool

    def not_run(self, program: Program) -> str | None:
        """Return why a program cannot run here, None when it can."""
        command = program.command[0]
        if command == "{torch}":
            return self.torch_missing
        if program.needs_hub and importlib.util.find_spec("huggingface_hub") is None:
            return "the extra hub is not installed"
        return None if command == "{python}" or shutil.which(command) else f"there is no {command}"


@dataclass(slots=True)
class _Job:
    """A program of a row, ready to run; ``output`` is the file that its last run wrote."""

    program: Program
    shards: list[Path]
    out: Path
    figures: ProgramFigures
    output: Path | None = None


def measure_row(row: Row, setting: Setting) -> RowFigures:
    """Run a row's programs in turn and return the figures; what fails is told in them, and costs this row only."""
    say(f"row {row.name}")
    figures = unmeasured(row)
    outputs = setting.work_dir / "outputs"
    jobs = []
    for number, (entry, found) in enumerate(zip(row.entries, figures.programs, strict=True)):
        checkpoint = entry.checkpoint and setting.work_dir / entry.checkpoint.directory
        shards = sorted((*checkpoint.glob("*.safetensors"), *checkpoint.glob("*.gguf"))) if checkpoint else []
        found.input_bytes = sum(shard.stat().st_size for shard in shards)
        found.not_run = setting.not_run(entry.program)
        if found.not_run is None:
            jobs.append(_Job(entry.program, shards, outputs / str(number), found))
    try:
        with _line(row, setting.work_dir, outputs):
            _run_all(row, jobs, setting)
        judge(figures.programs, per_gb=row.per_gb)
    except BenchmarkError as e:
        say(f"error: {e}")
        figures.error = str(e)
    finally:
        shutil.rmtree(outputs, ignore_errors=True)
    return figures


@contextmanager
def _line(row: Row, work_dir: Path, outputs: Path) -> Iterator[None]:
    """Serve the checkpoints behind the row's line, if it has one, to all that is run meanwhile."""
    if row.line is None:
        yield
        return
    serving = hub_process(work_dir, row.line, outputs / "hub", tls=row.tls)
    with serving as environment, mock.patch.dict(os.environ, environment):
        yield


def _run_all(row: Row, jobs: Sequence[_Job], setting: Setting) -> None:
    first = jobs[0]
    keep_first = any(job.program.copies for job in jobs)
    digests: dict[tuple[Path, str], str] = {}
    for number in range(0 if row.warm_up else 1, row.runs + 1):
        for job in jobs:
            seconds, peak = run_process(_prepare(job, first, setting))
            say(f"{f'run {number}' if number else 'warm-up'}: {job.program.label}, {seconds:.2f} s")
            if number:
                job.figures.seconds.append(seconds)
                job.figures.peak_bytes = max(job.figures.peak_bytes or 0, peak or 0) or None
            _take_output(job, digests, keep=keep_first and job is first)
    for job in jobs:
        if setting.watch_memory and "memory" in row.pictures and not job.program.copies:
            say(f"watching the memory of {job.program.label}")
            job.figures.memory = trace_memory(_prepare(job, first, setting))


def _prepare(job: _Job, first: _Job, setting: Setting) -> list[str]:
    """Make all ready for a run and return its command."""
    shutil.rmtree(job.out, ignore_errors=True)
    job.out.mkdir(parents=True)
    if sys.platform != "win32":
        os.sync()
    inputs = [*job.shards, *([first.output] if job.program.copies and first.output is not None else [])]
    is_cold = hasattr(os, "posix_fadvise") and sum(path.stat().st_size for path in inputs) > LARGEST_WARM
    for path in inputs:
        _put_into_the_cache(path, is_cold=is_cold)
    values = {"python": sys.executable, "torch": setting.torch, "out": job.out, "written": first.output}
    if job.shards:
        checkpoint = job.shards[0].parent
        values |= {"checkpoint": checkpoint, "model": f"{checkpoint.parent.name}/{checkpoint.name}"}
    words: list[str] = []
    for word in job.program.command:
        words += map(str, job.shards) if word == "{shards}" else [word.format(**values)]
    return words


def _put_into_the_cache(path: Path, *, is_cold: bool) -> None:
    buffer = bytearray(1 << 20)
    with path.open("rb", buffering=0) as file:
        if is_cold:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while not is_cold and file.readinto(buffer):
            pass


def _take_output(job: _Job, digests: dict[tuple[Path, str], str], *, keep: bool) -> None:
    """Note the size of the file that a program wrote, if any, and remove it unless it is to be kept.

    Raises BenchmarkError unless files of one name from one checkpoint have the same bytes: ``digests`` knows them.
    """
    files = list(job.out.iterdir())
    if len(files) != (1 if job.shards else 0):
        raise BenchmarkError(f"{job.program.label}: wrote {len(files)} files, should be one")
    for file in files:
        digest = hashlib.sha256()
        with file.open("rb") as data:
            while chunk := data.read(1 << 20):
                digest.update(chunk)
        job.output, job.figures.output_bytes, job.figures.sha256 = file, file.stat().st_size, digest.hexdigest()
        first = digests.setdefault((job.shards[0].parent, file.name), job.figures.sha256)
        if job.figures.sha256 != first:
            raise BenchmarkError(f"{job.program.label}: wrote other bytes ({job.figures.sha256}) than before ({first})")
        if not keep:
            file.unlink()
