"""Resident memory over time: a process is watched from outside, through Linux's /proc/PID/statm."""

import os
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import ROOT, BenchmarkError, Contender, prepare
from benchmarks.model_dirs import say

# Short enough to see our conversion's chunks come and go, and still a few thousandths of a core.
INTERVAL = 0.005


@dataclass(frozen=True, slots=True)
class Trace:
    """One run of a program: at so many ``seconds`` from its start it had so many bytes ``resident``."""

    key: str
    label: str
    seconds: tuple[float, ...]
    resident: tuple[int, ...]

    def thinned(self, count: int) -> "Trace":
        """Return at most ``count`` moments, at equal distances, each with the greatest of those that it stands for."""
        step = -(-len(self.seconds) // count)
        starts = range(0, len(self.seconds), step)
        return Trace(
            self.key,
            self.label,
            tuple(self.seconds[start] for start in starts),
            tuple(max(self.resident[start : start + step]) for start in starts),
        )


def trace_memory(contender: Contender) -> Trace:
    """Run a contender's command and sample its resident memory until it ends.

    It counts what ``ru_maxrss`` counts, file pages that are mapped included; that of its children it does not.
    Raises BenchmarkError when the command fails, or where there is no /proc.
    """
    require_proc()
    prepare(contender)
    page = os.sysconf("SC_PAGE_SIZE")
    seconds: list[float] = []
    resident: list[int] = []
    # Its standard error goes to a file: a pipe that nobody empties would stop a talkative program.
    with tempfile.TemporaryFile() as errors:
        started = time.perf_counter()
        process = subprocess.Popen(contender.command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=errors)
        try:
            with Path(f"/proc/{process.pid}/statm").open("rb", buffering=0) as statm:
                while process.poll() is None:
                    statm.seek(0)
                    pages = int(statm.read(128).split()[1])
                    if pages:  # None, when the process has ended since and was not yet asked how.
                        seconds.append(time.perf_counter() - started)
                        resident.append(pages * page)
                    time.sleep(INTERVAL)
        finally:
            process.kill()
            code = process.wait()
        if code:
            errors.seek(0)
            told = errors.read().decode(errors="replace").strip()[-2000:]
            raise BenchmarkError(f"{' '.join(contender.command)}: failed ({code})\n{told}")
    return Trace(contender.key, contender.label, tuple(seconds), tuple(resident))


def trace_all(contenders: list[Contender], runs: int) -> list[Trace]:
    """Trace contenders in turn, after a warm-up each, and return for each the run of median length."""
    found: dict[str, list[Trace]] = {contender.key: [] for contender in contenders}
    for number in range(runs + 1):
        for contender in contenders:
            trace = trace_memory(contender)
            say(f"{f'trace {number}' if number else 'warm-up'}: {contender.label}, {trace.seconds[-1]:.2f} s")
            if number:
                found[contender.key].append(trace)
    return [sorted(traces, key=lambda trace: trace.seconds[-1])[(runs - 1) // 2] for traces in found.values()]


def require_proc() -> None:
    """Raise BenchmarkError on a system without Linux's /proc."""
    if not Path("/proc/self/statm").exists():
        raise BenchmarkError("memory over time needs Linux's /proc/PID/statm; --only time draws the other picture")
