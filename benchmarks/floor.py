"""The I/O floor: read the checkpoint's shards to nowhere and copy the finished output. No converter does less.

It promises less than we do: our file is flushed to disk before it gets its name, and ``cp`` leaves its pages to the
system. So there is a second floor, which ends when its copy is on disk too: ``sync`` of the copy. Where the file system
shares blocks between copies (btrfs, XFS, APFS), ``cp`` may cost nothing at all.

``floor_command`` gives the floor as ``cat``, ``cp`` and ``sync`` where they exist. Where they do not, this module does
the same itself:

    python -m benchmarks.floor [--flush] OUTPUT COPY [SHARD...]
"""

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

_FILES = "output=$1; copy=$2; shift 2; "
_CAT = 'cat -- "$@" > /dev/null'
_CP = 'cp -- "$output" "$copy"'
_SYNC = 'sync -d -- "$copy"'


def floor_command(shards: Sequence[Path], output: Path, copy: Path, *, flush: bool = False) -> tuple[str, ...]:
    """Return the command that reads ``shards``, if there are any, and copies ``output`` to ``copy``.

    With ``flush`` it ends when the copy is on disk.
    """
    files = (str(output), str(copy), *map(str, shards))
    steps = [*([_CAT] if shards else []), _CP, *([_SYNC] if flush else [])]
    programs = {"sh", *(step.split()[0] for step in steps)}
    # Only Linux's sync takes a file; the others flush all that the machine has not yet written.
    has_sync = not flush or sys.platform.startswith("linux")
    if os.name == "posix" and has_sync and all(map(shutil.which, programs)):
        return ("sh", "-c", _FILES + " && ".join(steps), "floor", *files)
    return (sys.executable, "-m", "benchmarks.floor", *(["--flush"] if flush else []), *files)


def read_to_nowhere(path: Path) -> None:
    """Read a whole file and keep nothing."""
    buffer = bytearray(1 << 20)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def main() -> None:
    """Do it in Python."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.floor", description="Read shards and copy a file.")
    parser.add_argument("--flush", action="store_true", help="end when the copy is on disk")
    parser.add_argument("output", type=Path)
    parser.add_argument("copy", type=Path)
    parser.add_argument("shards", type=Path, nargs="*")
    options = parser.parse_args()
    for shard in options.shards:
        read_to_nowhere(shard)
    shutil.copyfile(options.output, options.copy)
    if options.flush:
        with options.copy.open("r+b") as file:
            os.fsync(file.fileno())


if __name__ == "__main__":
    main()
