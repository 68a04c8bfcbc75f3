"""The command line: arguments in, progress and messages out. The only place that prints or exits.

Each command has a module, which imports what it needs of the library only when it runs: --version and --help are quick.
"""

import io
import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from clipgguf import __version__
from clipgguf.cli.batch import batch_command
from clipgguf.cli.convert import convert_command
from clipgguf.cli.families import families_command
from clipgguf.cli.inspect import inspect_command
from clipgguf.cli.output import as_line, messages, usage_text
from clipgguf.cli.upgrade import upgrade_command
from clipgguf.cli.verify import verify_command
from clipgguf.errors import ClipGGUFError, UsageError, os_reason

DEFAULT_COMMAND = "convert"


class WrongUsage(typer.BadParameter):
    """Wrong usage in a sentence of its own, which exits 2 and says where to find help."""

    def format_message(self) -> str:
        """Return the sentence alone, safe for a terminal."""
        return as_line(self.message)


class Command(TyperCommand):
    """A command that tells wrong usage of the library as wrong usage of its options."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; raises WrongUsage for the library's UsageError."""
        try:
            return super().invoke(ctx)
        except UsageError as e:
            raise WrongUsage(usage_text(e), ctx=ctx) from e


class ConvertByDefault(TyperGroup):
    """A group whose first argument is taken for ``convert``'s where it is neither a command nor the group's option."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put ``convert`` in front of what is its own; refuse what can be nobody's."""
        own = {option for param in self.get_params(ctx) for option in param.opts}
        if args and args[0] not in self.commands and args[0].partition("=")[0] not in own:
            if not ctx.resilient_parsing:
                self._refuse_mistyped(ctx, args[0])
            args = [DEFAULT_COMMAND, *args]
        if not ctx.resilient_parsing:
            _refuse_empty(ctx, args)
        return super().parse_args(ctx, args)

    def _refuse_mistyped(self, ctx: Any, word: str) -> None:
        """Raise WrongUsage for a word that is no path, and nearly a command."""
        if word.startswith("-") or os.path.lexists(word):
            return
        import difflib

        for command in difflib.get_close_matches(word.lower(), self.commands, 1, 0.7):
            what = f"{word!r} is neither a command nor a model's directory; did you mean {command!r}?"
            raise WrongUsage(what, ctx=ctx)

    def format_usage(self, ctx: Any, formatter: Any) -> None:
        """Write both forms."""
        formatter.write_usage(ctx.command_path, "MODEL_DIR [OPTIONS]")
        formatter.write_usage(ctx.command_path, "COMMAND [ARGS]... [OPTIONS]", prefix=" " * len("Usage: "))

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        """Return completions of the first word: commands and the group's options, and those of ``convert``."""
        found = super().shell_complete(ctx, incomplete)
        if incomplete.startswith("-"):
            convert = self.commands[DEFAULT_COMMAND]
            with convert.make_context(DEFAULT_COMMAND, [], parent=ctx, resilient_parsing=True) as inner:
                known = {item.value for item in found}
                found += [item for item in convert.shell_complete(inner, incomplete) if item.value not in known]
        return found


def _refuse_empty(ctx: Any, args: list[str]) -> None:
    """Raise WrongUsage for an empty argument: a variable that is not set, which as a path would be this directory."""
    for before, argument in zip(["", *args], args, strict=False):
        if not argument or (argument.startswith("--") and argument.endswith("=")):
            option = argument.rstrip("=") or (before if before.startswith("-") else "an argument")
            raise WrongUsage(f"{option} is empty", ctx=ctx)


app = typer.Typer(
    cls=ConvertByDefault,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from clipgguf.kernels import encoders

        typer.echo(f"clipgguf {__version__} ({encoders()})")
        raise typer.Exit


@app.callback()
def _clipgguf(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            is_eager=True,
            callback=_show_version,
            help="Show the version, and whether compiled code or numpy converts element types, and exit.",
        ),
    ] = False,
) -> None:
    """Turn what sees in checkpoints into GGUF files: CLIP, LLaVA, and the image encoders that llama.cpp runs.

    Without a command, clipgguf converts: "clipgguf MODEL_DIR" is short for "clipgguf convert MODEL_DIR", with the
    options that "clipgguf convert --help" lists. A directory that is called like a command is reached as ./NAME.
    """


for _name, _function, _short_help in (
    (DEFAULT_COMMAND, convert_command, "Convert a checkpoint to a GGUF file (the default)."),
    ("inspect", inspect_command, "Show what GGUF files hold, and which programs read them."),
    ("verify", verify_command, "Compare a GGUF file with its checkpoint, value by value."),
    ("families", families_command, "List the families of models that can be converted."),
    ("upgrade", upgrade_command, "Add what today's llama.cpp needs to an mmproj file."),
    ("batch", batch_command, "Convert a list of models, each in a process of its own."),
):
    needs_arguments = _function is not families_command
    app.command(_name, cls=Command, no_args_is_help=needs_arguments, short_help=_short_help)(_function)


def main() -> None:
    """Run the command line: exit 0 when done, 1 for bad input, 2 for wrong usage."""
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
