"""``clipgguf`` and ``python -m clipgguf``: the command line."""

import signal
import sys
from types import FrameType

# What asks a process to end, as far as the system has it.
_ENDING = tuple(number for name in ("SIGINT", "SIGTERM", "SIGHUP") if (number := getattr(signal, name, None)))


def _end(number: int, frame: FrameType | None) -> None:
    """Leave by an exception, which removes the temporary file; once more would only interrupt that."""
    _ignore()
    raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)


def _ignore() -> None:
    for number in _ENDING:
        signal.signal(number, signal.SIG_IGN)


def main() -> None:
    """Run the command line: exit 0 when done, 1 for bad input, 2 for wrong usage, 128 + N when ended by signal N."""
    for number in _ENDING:
        # nohup has SIGHUP ignored, and a shell SIGINT of what it runs in the background.
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, _end)
    try:
        from clipgguf import cli

        cli.main()
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    finally:
        _ignore()


if __name__ == "__main__":
    main()
