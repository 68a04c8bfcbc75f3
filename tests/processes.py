"""The command line in a process of its own or in this one, and what is measured of processes: memory, time, the end.

A process of its own is for what only it can show: signals, limits, streams, imports, memory. It runs without the
measurement of coverage, which takes as long as what a small model takes.
"""

import contextlib
import io
import os
import re
import signal
import struct
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from clipgguf import cli

MIB = 1 << 20

# After so many seconds a process is taken to hang. What should be fast is held to processor time, never to this: on a
# machine that does other things besides, what takes a second may take minutes.
HANGS_AFTER = 600

# Linux counts the memory of the process that forks towards a child's peak, and pytest is large. So a small process
# starts the command, and asks the system for its peak.
LAUNCHER = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def command(*args: object) -> list[str]:
    """Return the words that start ``clipgguf`` with arguments in a process of its own."""
    return [sys.executable, "-m", "clipgguf", *map(str, args)]


def run_process(*args: object, **options: Any) -> "subprocess.CompletedProcess[Any]":
    """Run ``clipgguf`` in a process of its own; the options are those of ``subprocess.run``, and its output is text."""
    defaults = {"env": uncovered(), "capture_output": True, "text": True, "timeout": HANGS_AFTER}
    return subprocess.run(command(*args), **{**defaults, **options})


def run_here(*args: object, cwd: Path) -> "subprocess.CompletedProcess[str]":
    """Run ``clipgguf`` in this process, as if it were one of its own with pipes for its output.

    Arguments, streams and working directory are what they were afterwards. Signals are not handled, and an exception
    that would be a traceback comes out.
    """
    words = ["clipgguf", *map(str, args)]
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2)]
    before = sys.argv, sys.stdout, sys.stderr, Path.cwd()
    code: str | int | None = 0
    try:
        sys.argv, (sys.stdout, sys.stderr) = words, streams
        os.chdir(cwd)
        cli.main()
    except SystemExit as e:
        code = e.code
    finally:
        sys.argv, sys.stdout, sys.stderr, directory = before
        os.chdir(directory)
    # As subprocess has it with text=True.
    out, err = (stream.buffer.getvalue().decode().replace("\r\n", "\n") for stream in streams)
    assert isinstance(code, int)
    return subprocess.CompletedProcess(words, code, out, err)


def peak_of(do: Callable[[], object]) -> int:
    """Return the most bytes that Python's own objects and numpy's arrays took at once meanwhile."""
    tracemalloc.start()
    try:
        do()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def peak_rss(*command: object) -> int:
    """Return a command's peak resident memory in bytes."""
    launcher = [sys.executable, "-S", "-c", LAUNCHER, sys.executable, *map(str, command)]
    result = subprocess.run(launcher, env=uncovered(), capture_output=True, text=True, check=True)
    return int(result.stdout) * 1024


def uncovered() -> dict[str, str]:
    """Return the environment without what makes a Python process measure its coverage."""
    return {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_PROCESS")}


def read_terminal(controller: int) -> str:
    """Return what is shown on a terminal until nobody holds its other end; close it."""
    shown = b""
    with contextlib.suppress(OSError):  # What a terminal raises on Linux when nobody holds its other end any more.
        while data := os.read(controller, 65_536):
            shown += data
    os.close(controller)
    return shown.decode()


def without_colours(shown: str) -> str:
    """Return what a terminal shows without colours and the like."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)


def interrupted(process: "subprocess.Popen[str]", number: int = signal.SIGINT, within: float = 10) -> None:
    """Send a signal to a process; it must end by it within so many seconds, without a traceback."""
    process.send_signal(number)
    started = time.monotonic()
    _, errors = process.communicate(timeout=60)
    assert time.monotonic() - started < within
    assert process.returncode == 128 + number
    assert "Traceback" not in errors


def on_a_terminal(columns: int, *args: object) -> str:
    """Return what ``clipgguf`` prints on standard output where that is a terminal, without colours and the like."""
    import fcntl
    import pty
    import termios

    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 50, columns, 0, 0))
    environment = {name: value for name, value in uncovered().items() if name not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(
        command(*args), stdin=terminal, stdout=terminal, stderr=subprocess.DEVNULL, env={**environment, "TERM": "xterm"}
    )
    os.close(terminal)
    shown = read_terminal(controller)
    process.wait(timeout=60)
    return without_colours(shown).replace("\r\n", "\n")


@contextmanager
def interruptible_children() -> Iterator[None]:
    """Let signals end the processes that are started meanwhile, even where this one ignores them.

    Children inherit what is ignored: SIGINT by what a script starts with ``&``, SIGHUP by what nohup does. What has a
    handler, even one that does nothing, has the system's own way in a child.
    """
    numbers = [number for name in ("SIGINT", "SIGHUP", "SIGTERM") if (number := getattr(signal, name, None))]
    ignored = [number for number in numbers if signal.getsignal(number) == signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, lambda number, frame: None)
    try:
        yield
    finally:
        for number in ignored:
            signal.signal(number, signal.SIG_IGN)


@contextmanager
def taking_at_most(seconds: float, what: object = "this") -> Iterator[None]:
    """Hold what is done inside to so many seconds of processor time, of this process and of children that ended."""

    def used() -> float:
        times = os.times()
        return times.user + times.system + times.children_user + times.children_system

    started = used()
    yield
    taken = used() - started
    assert taken < seconds, f"{what} took {taken:.2f} s of processor time, should take less than {seconds}"
