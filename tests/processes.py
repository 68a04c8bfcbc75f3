"""Processes whose memory, time or end is looked at: they run without the measurement of coverage."""

import contextlib
import os
import re
import struct
import subprocess
import sys

MIB = 1 << 20

# Linux counts the memory of the process that forks towards a child's peak, and pytest is large. So a small process
# starts the command, and asks the system for its peak.
LAUNCHER = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def peak_rss(*command: object) -> int:
    """Return a command's peak resident memory in bytes."""
    launcher = [sys.executable, "-S", "-c", LAUNCHER, sys.executable, *map(str, command)]
    result = subprocess.run(launcher, env=uncovered(), capture_output=True, text=True, check=True)
    return int(result.stdout) * 1024


def uncovered() -> dict[str, str]:
    """Return the environment without what makes a Python process measure its coverage."""
    return {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_PROCESS")}


def on_a_terminal(columns: int, *args: object) -> str:
    """Return what ``clipgguf`` prints on standard output where that is a terminal, without colours and the like."""
    import fcntl
    import pty
    import termios

    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 50, columns, 0, 0))
    environment = {name: value for name, value in uncovered().items() if name not in ("COLUMNS", "LINES")}
    command = [sys.executable, "-m", "clipgguf", *map(str, args)]
    process = subprocess.Popen(
        command, stdin=terminal, stdout=terminal, stderr=subprocess.DEVNULL, env={**environment, "TERM": "xterm"}
    )
    os.close(terminal)
    shown = b""
    with contextlib.suppress(OSError):  # What a terminal raises on Linux when nobody holds its other end any more.
        while data := os.read(controller, 65_536):
            shown += data
    os.close(controller)
    process.wait(timeout=60)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode()).replace("\r\n", "\n")
