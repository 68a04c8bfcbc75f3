"""Start one command, wait for it, and print its wall seconds, its peak resident memory in bytes and its exit code.

Run by process.py, which says why, as a fresh and bare interpreter (``python -I -S launcher.py COMMAND...``), and kept
as small as it can be: what it weighs is the least that it can report. The command's standard output goes nowhere, its
standard error is the launcher's own. Where the system does not tell the memory (Windows), it is 0.
"""

import os
import sys
import time

command = sys.argv[1:]
started = time.perf_counter()
if sys.platform == "win32":
    import subprocess

    code = subprocess.call(command, stdout=subprocess.DEVNULL)
    print(time.perf_counter() - started, 0, code)
else:
    to_nowhere = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
    child = os.posix_spawnp(command[0], command, os.environ, file_actions=to_nowhere)
    _, status, usage = os.wait4(child, 0)
    seconds = time.perf_counter() - started
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2): bytes on macOS, KiB on Linux and the BSDs.
    print(seconds, usage.ru_maxrss * unit, os.waitstatus_to_exitcode(status))
