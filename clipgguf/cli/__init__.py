"""The command line: arguments in, progress and messages out. The only place that prints or exits.

Each command has a module, which imports what it needs of the library only when it runs: --version and --help are quick.
"""

import io
import signal
import sys
from types import FrameType
from typing import Any

import typer
from typer.core import TyperGroup

from clipgguf.cli.convert import convert_command
from clipgguf.cli.inspect import inspect_command
from clipgguf.cli.output import messages
from clipgguf.cli.upgrade import upgrade_command
from clipgguf.cli.verify import verify_command
from clipgguf.errors import ClipGGUFError, os_reason

DEFAULT_COMMAND = "convert"


class ConvertByDefault(TyperGroup):
    """A group whose first argument is taken for ``convert``'s where it names no command."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put ``convert`` in front of arguments that do not begin with a command."""
        if not args or args[0] not in self.commands:
            args = [DEFAULT_COMMAND, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(cls=ConvertByDefault, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.callback()
def _clipgguf() -> None:
    """Turn CLIP checkpoints into GGUF files."""


app.command(DEFAULT_COMMAND, no_args_is_help=True)(convert_command)
app.command("upgrade", no_args_is_help=True)(upgrade_command)
app.command("inspect", no_args_is_help=True)(inspect_command)
app.command("verify", no_args_is_help=True)(verify_command)


def _terminate(signal_number: int, frame: FrameType | None) -> None:
    signal.signal(signal_number, signal.SIG_IGN)  # Once more would only interrupt the tidying up.
    raise SystemExit(128 + signal_number)


def main() -> None:
    """Run the command line: exit 0 when done, 1 for bad input, 2 for wrong usage, 128 + N when ended by signal N."""
    # The default ends the process at once; as an exception it removes the temporary file first.
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) == signal.SIG_DFL:  # nohup has SIGHUP ignored.
            signal.signal(number, _terminate)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # A terminal or pipe that is not UTF-8 gets escapes.
            stream.reconfigure(errors="backslashreplace")
    try:
        app(prog_name="clipgguf")
    except ClipGGUFError as e:
        problems = e.problems
    except MemoryError:
        problems = ("out of memory",)
    except OSError as e:
        problems = (f"{e.filename or 'standard output'}: {os_reason(e)}",)
    else:
        return
    messages("error", problems)
    sys.exit(1)
