"""One process: its wall time, its peak of resident memory, and its resident memory over time.

The peak is ``ru_maxrss`` of the finished process, the greatest one among itself and its own children. On Linux that
number is inherited: at ``exec`` the kernel notes the peak of the memory that the process leaves behind (``exec_mmap``
in ``fs/exec.c``), which is a copy of its parent's, or with ``vfork`` the parent's own. A child that is started straight
from a parent of 500 MB therefore reports 500 MB whatever it does itself. So every command is started by launcher.py, a
bare interpreter that imports nothing: all that its child can inherit is its 8 to 9 MB. That is the least that can be
reported: ``cat`` and ``cp``, which take 2 MB, are shown with the launcher's size.

The time is that from the start of the process to its end, the interpreter's start and imports included, and the
launcher's own not.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LAUNCHER = (sys.executable, "-I", "-S", str(Path(__file__).with_name("launcher.py")))

# Short enough to see our conversion's chunks come and go, and still a few thousandths of a core.
SAMPLE_INTERVAL = 0.01


class BenchmarkError(Exception):
    """Something cannot be measured, or a program wrote something else than it should; the message is for the user."""


def say(text: str) -> None:
    """Tell the user how far the work is."""
    print(f"benchmarks: {text}", file=sys.stderr, flush=True)


def run_process(command: Sequence[str]) -> tuple[float, int | None]:
    """Run a command from the project's directory and return its wall seconds and peak resident memory in bytes.

    The peak is None where the system does not tell it (Windows). Raises BenchmarkError when the command cannot be
    started or fails, with the end of what it said on standard error.
    """
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # What pip installs has its bytecode.
    launched = subprocess.run([*LAUNCHER, *command], cwd=ROOT, capture_output=True)
    if launched.returncode:
        raise _failed(command, "not started", launched.stderr)
    seconds, peak, code = launched.stdout.split()
    if code != b"0":
        raise _failed(command, code.decode(), launched.stderr)
    return float(seconds), int(peak) or None


def trace_memory(command: Sequence[str]) -> list[tuple[float, int]]:
    """Run a command and return pairs of seconds since its start and its bytes of resident memory then.

    It counts what ``ru_maxrss`` counts, file pages that are mapped included; that of its children it does not. Needs
    Linux's /proc. Raises BenchmarkError when the command fails.
    """
    page = os.sysconf("SC_PAGE_SIZE")
    moments: list[tuple[float, int]] = []
    # Its standard error goes to a file: a pipe that nobody empties would stop a talkative program.
    with tempfile.TemporaryFile() as errors:
        started = time.perf_counter()
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=errors)
        try:
            while process.poll() is None:
                pages = int(Path(f"/proc/{process.pid}/statm").read_text(encoding="ascii").split()[1])
                if pages:  # None, when the process has ended since and was not yet asked how.
                    moments.append((time.perf_counter() - started, pages * page))
                time.sleep(SAMPLE_INTERVAL)
        finally:
            process.kill()
            process.wait()
        errors.seek(0)
        if process.returncode:
            raise _failed(command, str(process.returncode), errors.read())
    return moments


def _failed(command: Sequence[str], code: str, told: bytes) -> BenchmarkError:
    return BenchmarkError(f"{' '.join(command)}: failed ({code})\n{told.decode(errors='replace').strip()[-2000:]}")
