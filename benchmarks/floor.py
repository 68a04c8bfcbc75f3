"""The I/O floor: read the checkpoint's shards to nowhere and copy the finished output. No converter does less.

It promises less than we do: our file is flushed to disk before it gets its name, and ``cp`` leaves its pages to the
system. Where the file system shares blocks between copies (btrfs, XFS, APFS), ``cp`` may cost nothing at all.

``floor_command`` gives the floor as ``cat`` and ``cp`` where they exist. Where they do not, this module does the same
itself:

    python -m benchmarks.floor OUTPUT COPY SHARD...
"""

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

_SCRIPT = 'output=$1; copy=$2; shift 2; cat -- "$@" > /dev/null && cp -- "$output" "$copy"'


def floor_command(shards: Sequence[Path], output: Path, copy: Path) -> tuple[str, ...]:
    """Return the command that reads ``shards`` and copies ``output`` to ``copy``."""
    files = (str(output), str(copy), *map(str, shards))
    if os.name == "posix" and all(map(shutil.which, ("sh", "cat", "cp"))):
        return ("sh", "-c", _SCRIPT, "floor", *files)
    return (sys.executable, "-m", "benchmarks.floor", *files)


def read_to_nowhere(path: Path) -> None:
    """Read a whole file and keep nothing."""
    buffer = bytearray(1 << 20)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def main() -> None:
    """Do it in Python."""
    output, copy, *shards = map(Path, sys.argv[1:])
    for shard in shards:
        read_to_nowhere(shard)
    shutil.copyfile(output, copy)


if __name__ == "__main__":
    main()
