"""``clipgguf`` and ``python -m clipgguf``: the command line."""

import gc
import os
import signal
import sys
from types import FrameType

# What asks a process to end, as far as the system has it.
_ENDING = tuple(number for name in ("SIGINT", "SIGTERM", "SIGHUP") if (number := getattr(signal, name, None)))
# How many objects more there are before the collector looks for cycles. With Python's 700 it looks through what the
# imports make a hundred times, for a twentieth of a small model's conversion, and finds next to nothing.
_MORE_OBJECTS = 10_000
_STORES = "s3://", "gs://", "az://"
# The number that mallopt has for it, which Python has no name for.
_M_ARENA_MAX, _MOST_ARENAS = -8, 2


def _end(number: int, frame: FrameType | None) -> None:
    """Leave by an exception, which removes the temporary file; once more would only interrupt that."""
    _ignore()
    raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)


def _ignore() -> None:
    for number in _ENDING:
        signal.signal(number, signal.SIG_IGN)


def _end_with_parent() -> None:
    """Wait until the other end of standard input is closed, which the system does for a process that was killed."""
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _share_arenas() -> None:
    """Keep glibc's malloc from giving each thread an arena of its own (mallopt(3)): a setting of the process."""
    import contextlib
    import ctypes

    with contextlib.suppress(OSError, AttributeError):  # Another C library.
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, _MOST_ARENAS)


def main() -> None:
    """Run the command line: exit 0 when done, 1 for bad input, 2 for wrong usage, 128 + N when ended by signal N."""
    for number in _ENDING:
        # nohup has SIGHUP ignored, and a shell SIGINT of what it runs in the background.
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, _end)
    # numpy's linear algebra, which nothing here calls, starts a thread for each core when it is imported. These are
    # settings of the process, so that they are made here: the library leaves them to whoever imports it.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    gc.set_threshold(_MORE_OBJECTS)
    # The threads that wait for an object store would take 15 MiB with arenas of their own.
    if sys.platform == "linux" and any(scheme in word for word in sys.argv for scheme in _STORES):
        _share_arenas()
    try:
        from clipgguf import cli

        cli.main()
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    finally:
        _ignore()
        # The process ends: what is left goes with it, and need not be searched for cycles before.
        gc.freeze()


def main_of_child() -> None:
    """Run the command line for another process, and end, as of SIGTERM, when that one has ended."""
    import contextlib
    import threading

    with contextlib.suppress(RuntimeError):  # A limit on threads, under which a conversion has none either.
        threading.Thread(target=_end_with_parent, daemon=True).start()
    main()


if __name__ == "__main__":
    main()
