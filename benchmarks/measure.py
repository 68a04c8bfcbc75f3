"""Time contenders against each other: alternating, each run a fresh process, with wall seconds and peak memory.

**Peak memory.** It is ``ru_maxrss`` of the finished process, the greatest one among itself and its own children. On
Linux that number is inherited: at ``exec`` the kernel notes the peak of the memory that the process leaves behind
(``exec_mmap`` in ``fs/exec.c``), which is a copy of its parent's, or with ``vfork`` the parent's own. A child that is
started straight from a parent of 500 MB therefore reports 500 MB whatever it does itself. So every command is started
by a launcher (``benchmarks/launcher.py``), a bare interpreter that imports nothing: fork gives the launcher's child an
accounting of its own, and all that it can inherit is the launcher's 8 to 9 MB. That is the least that can be reported:
``cat`` and ``cp``, which take 2 MB, are shown with the launcher's size. ``resting_memory`` measures a process
that does nothing, from this one, as a control that goes with every result.
Windows has no ``ru_maxrss``, there the peak is None.

**Time.** From the start of the process to its end, the interpreter's start and imports included, and the launcher's own
not. Nobody pays for what another left behind: before each run, outside its time, its old output is removed, unwritten
pages are flushed where the system can (``sync``), and its inputs are read, because torch on a large model pushes them
out of the page cache. Rounds go through all contenders in turn; the first is a warm-up and not counted.

**Disk.** An output that no other contender reads is removed as soon as its digest is taken, so that two outputs at most
are there at a time, however many contenders there are.
"""

import hashlib
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.floor import read_to_nowhere

ROOT = Path(__file__).resolve().parent.parent
LAUNCHER = Path(__file__).with_name("launcher.py")


class BenchmarkError(Exception):
    """A command failed, or wrote something else than it should; the message is for the user."""


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to do the work: a command that reads ``inputs`` and writes ``output``, into a directory of its own.

    ``key`` names it in JSON, ``label`` in the table. ``output`` is None for a command that writes no file. ``content``
    says what the file holds: those contenders with the same content must write the same bytes.
    """

    key: str
    label: str
    command: tuple[str, ...]
    inputs: tuple[Path, ...]
    output: Path | None
    content: str


@dataclass(frozen=True, slots=True)
class Run:
    """One run: wall seconds, peak resident memory in bytes (None where it is not known), the output's size and SHA-256.

    Without an output, its size is 0 and the digest None.
    """

    seconds: float
    peak_rss: int | None
    output_nbytes: int
    sha256: str | None


@dataclass(frozen=True, slots=True)
class Result:
    """All counted runs of a contender."""

    contender: Contender
    runs: tuple[Run, ...]

    @property
    def seconds(self) -> tuple[float, ...]:
        """The wall seconds of each run."""
        return tuple(run.seconds for run in self.runs)

    @property
    def median(self) -> float:
        """The median of the wall seconds."""
        return statistics.median(self.seconds)

    @property
    def peak_rss(self) -> int | None:
        """The greatest peak of resident memory in bytes."""
        return max((run.peak_rss for run in self.runs if run.peak_rss is not None), default=None)

    @property
    def sha256(self) -> frozenset[str]:
        """The digests of the outputs; one, if all is well."""
        return frozenset(run.sha256 for run in self.runs if run.sha256 is not None)


def digests(results: Mapping[str, Result]) -> dict[str, list[str]]:
    """Return the SHA-256 digests of all outputs by their content, sorted; one for each, if all is well."""
    found: dict[str, set[str]] = {}
    for result in results.values():
        found.setdefault(result.contender.content, set()).update(result.sha256)
    return {content: sorted(values) for content, values in found.items() if values}


def run_process(command: Sequence[str]) -> tuple[float, int | None]:
    """Run a command from the project's directory and return its wall seconds and peak resident memory in bytes.

    Raises BenchmarkError when it cannot be started or fails, with the end of what it said on standard error.
    """
    launched = subprocess.run(
        [sys.executable, "-I", "-S", str(LAUNCHER), *command],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
    )
    try:
        seconds, peak_rss, code = launched.stdout.split()
    except ValueError:
        code = "no report"
    if launched.returncode or code != "0":
        told = launched.stderr.strip()[-2000:]
        raise BenchmarkError(f"{' '.join(command)}: failed ({code})\n{told}")
    return float(seconds), int(peak_rss) or None


def resting_memory() -> int | None:
    """Return the peak memory in bytes that is measured for an interpreter that does nothing: the least there is."""
    return run_process([sys.executable, "-I", "-S", "-c", "pass"])[1]


def alternate(
    contenders: Sequence[Contender], runs: int, report: Callable[[Contender, int, Run], None]
) -> dict[str, Result]:
    """Run all contenders in turn, once to warm up and then ``runs`` times; return the results by ``key``.

    A contender may read what one before it in the round has written. ``report`` is called after each run with its
    number, from 1; the warm-up has number 0. Raises BenchmarkError when a command fails.
    """
    counted: dict[str, list[Run]] = {contender.key: [] for contender in contenders}
    read_by_others = {path for contender in contenders for path in contender.inputs}
    for number in range(runs + 1):
        for contender in contenders:
            run = _run_once(contender)
            if contender.output is not None and contender.output not in read_by_others:
                shutil.rmtree(contender.output.parent)
            report(contender, number, run)
            if number:
                counted[contender.key].append(run)
    return {contender.key: Result(contender, tuple(counted[contender.key])) for contender in contenders}


def prepare(contender: Contender) -> None:
    """Make ready for a run: no old output, nothing left to be written by the system, the inputs in the page cache."""
    if contender.output is not None:
        directory = contender.output.parent
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
    if sys.platform != "win32":
        os.sync()
    for path in contender.inputs:
        read_to_nowhere(path)


def _run_once(contender: Contender) -> Run:
    prepare(contender)
    seconds, peak_rss = run_process(contender.command)
    output = contender.output
    if output is None:
        return Run(seconds, peak_rss, 0, None)
    if not output.is_file():
        raise BenchmarkError(f"{contender.label}: wrote no {output}")
    return Run(seconds, peak_rss, output.stat().st_size, _sha256(output))


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(1 << 20):
            digest.update(data)
    return digest.hexdigest()
