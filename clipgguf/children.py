"""Processes of the command line that a batch starts, hears and ends."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# How every line of the command line's messages begins, and one that says why something cannot be done.
MESSAGE, ERROR = "clipgguf: ", "clipgguf: error: "
# A process that is told to end may take so many seconds.
_GRACE_SECONDS = 5.0
# It imports what this process would: "-m" alone would put the working directory first, whatever is in there.
_START = (
    "import os, sys; sys.path[:] = sys.argv.pop(1).split(os.pathsep); "
    "from clipgguf.__main__ import main_of_child; main_of_child()"
)


@dataclass(frozen=True, slots=True)
class Ended:
    """How a process ended: its exit code, what it printed on standard output, and its errors, a line each."""

    exit_code: int
    output: str
    errors: tuple[str, ...]

    @property
    def result(self) -> dict[str, Any] | None:
        """The JSON object that it printed, if that is what it printed."""
        try:
            value = json.loads(self.output)
        except ValueError:
            return None
        return value if isinstance(value, dict) else None


class Children:
    """Processes of the command line; a context manager that ends those that still run."""

    def __init__(self, directory: Path = Path()) -> None:
        """Start none yet; they will run in a directory, and relative paths are meant from there."""
        self.directory = directory
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[str]] = set()
        self._is_over = False

    def __enter__(self) -> "Children":
        """Return the processes themselves."""
        return self

    def __exit__(self, *_: object) -> None:
        """End what runs, at once: politely, and by force what does not end in a few seconds. No more are started."""
        with self._lock:
            self._is_over = True
            running = tuple(self._running)
        for process in running:
            process.terminate()
        for process in running:
            try:
                process.wait(_GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()

    def run(self, arguments: Sequence[str], heard: Callable[[str], None]) -> Ended:
        """Run the command line with arguments to its end, from any thread; ``heard`` gets its messages as they come.

        Raises InterruptedError when no more are to be started, OSError when none can be.
        """
        environment = {**os.environ, "PYTHONIOENCODING": "utf-8:backslashreplace"}
        words = [sys.executable, "-c", _START, os.pathsep.join(sys.path), *arguments]
        with tempfile.TemporaryFile() as output:
            with self._lock:
                if self._is_over:
                    raise InterruptedError("no more are started")
                process = subprocess.Popen(
                    words,
                    env=environment,
                    cwd=self.directory,
                    stdin=subprocess.PIPE,  # Nothing comes; it ends with this process, and the child with it.
                    stdout=output,
                    stderr=subprocess.PIPE,
                    encoding="utf-8",
                    errors="replace",
                )
                self._running.add(process)
            try:
                with process:
                    assert process.stderr is not None
                    errors, last = _heard(process.stderr, heard)
                    code = process.wait()
            finally:
                with self._lock:
                    self._running.discard(process)
            output.seek(0)
            printed = output.read().decode("utf-8", "replace")
        if code < 0:
            return Ended(128 - code, printed, (*errors, f"was ended by {_signal_name(-code)}"))
        return Ended(code, printed, tuple(errors or [last or f"ended with exit code {code}"]) if code else ())


def _heard(lines: Iterable[str], heard: Callable[[str], None]) -> tuple[list[str], str]:
    """Hand on lines as they come; return those that are errors, and the last one that is not empty."""
    errors, last = [], ""
    for text in _without_ends(lines):
        last = text
        if text.startswith(ERROR):
            errors.append(text.removeprefix(ERROR))
        heard(text.removeprefix(MESSAGE))
    return errors, last


def _without_ends(lines: Iterable[str]) -> Iterator[str]:
    return (text for line in lines if (text := line.rstrip()))


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
