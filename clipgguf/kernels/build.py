"""Compile ``encode.c``: the build does it, and ``python -m clipgguf.kernels.build`` in a checkout."""

import contextlib
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from clipgguf.kernels import FUNCTION, LIBRARY

SOURCE = Path(__file__).with_name("encode.c")
# -O3 would unroll the loops of quants out of the shape that becomes vector instructions, which takes twice as long.
# Before its version 12, gcc asks for -ftree-vectorize. Contraction would round once where the reference rounds twice.
FLAGS = ("-std=c11", "-O2", "-ftree-vectorize", "-ffp-contract=off", "-fPIC", "-shared")
# Seconds; far more than a compiler takes that works.
_PATIENCE = 120
_LOAD = f"import ctypes, sys; ctypes.CDLL(sys.argv[1]).{FUNCTION}"


def build(library: Path = LIBRARY) -> bool:
    """Compile the library, with the compiler that the environment's CC names or the first that works; return success.

    What was there before is gone in any case. Needs a compiler that takes gcc's options.
    """
    remove(library)
    named = os.environ.get("CC")
    return any(
        _built(compiler, library) for compiler in ([shlex.split(named)] if named else [["cc"], ["gcc"], ["clang"]])
    )


def remove(library: Path = LIBRARY) -> None:
    """Remove the library, as far as it is there and the system lets it."""
    with contextlib.suppress(OSError):
        library.unlink()


def _built(compiler: list[str], library: Path) -> bool:
    """Return whether a compiler made a library that this Python can load."""
    if not compiler or shutil.which(compiler[0]) is None:
        return False
    made = library.with_name(f".{os.getpid()}-{library.name}")
    try:
        _run([*compiler, *FLAGS, "-o", str(made), str(SOURCE)])
        _run([sys.executable, "-c", _LOAD, str(made)])
        made.replace(library)
    except (OSError, subprocess.SubprocessError):
        return False
    finally:
        remove(made)
    return True


def _run(command: list[str]) -> None:
    """Run a command without a word; raises OSError or SubprocessError where it fails."""
    subprocess.run(command, check=True, timeout=_PATIENCE, stdin=subprocess.DEVNULL, capture_output=True)


if __name__ == "__main__":
    sys.exit(0 if build() else 1)
