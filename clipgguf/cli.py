"""The command line: arguments in, progress and messages out. The only place that prints or exits."""

import contextlib
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from clipgguf import ClipGGUFError, __version__, upgrade
from clipgguf.convert import plan_conversion, run_conversion
from clipgguf.errors import os_reason
from clipgguf.families import Request

if TYPE_CHECKING:
    from clipgguf.plan import Plan

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


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"clipgguf {__version__}")
        raise typer.Exit


@app.command(DEFAULT_COMMAND, no_args_is_help=True)
def convert_command(
    model_dir: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL_DIR",
            help="Directory of the model (config.json and its weights), or a file of weights in it.",
        ),
    ] = None,
    model_dir_option: Annotated[
        str | None,
        typer.Option("--model-dir", "-m", metavar="MODEL_DIR", help="The same, as the old script spells it."),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "--output-dir",
            "-o",
            metavar="PATH",
            help="Directory for the file (made if missing), or the file itself if PATH ends in .gguf. "
            "[default: the model's directory]",
        ),
    ] = None,
    text_only: Annotated[bool, typer.Option("--text-only", help="Convert the text tower alone.")] = False,
    vision_only: Annotated[bool, typer.Option("--vision-only", help="Convert the vision tower alone.")] = False,
    outtype: Annotated[
        Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "auto"],
        typer.Option("--outtype", help="Element type of the matrices; auto: bf16 for bf16, else f16."),
    ] = "f16",
    use_f32: Annotated[bool, typer.Option("--use-f32", help="The same as --outtype f32.")] = False,
    image_mean: Annotated[
        tuple[float, float, float] | None,
        typer.Option("--image-mean", metavar="R G B", help="Mean of the pixels, for pixels from 0 to 1."),
    ] = None,
    image_std: Annotated[
        tuple[float, float, float] | None,
        typer.Option("--image-std", metavar="R G B", help="Standard deviation of the pixels."),
    ] = None,
    llava_projector: Annotated[
        Path | None,
        typer.Option(
            "--llava-projector",
            metavar="PATH",
            help="Make an mmproj file of the CLIP model and this projector: llava.projector, mm_projector.bin, a "
            "safetensors file, or a LLaVA checkpoint's directory.",
        ),
    ] = None,
    vision_tower: Annotated[
        Path | None,
        typer.Option("--vision-tower", metavar="DIR", help="The vision tower of a LLaVA checkpoint that has none."),
    ] = None,
    vision_config: Annotated[
        Path | None,
        typer.Option("--vision-config", metavar="FILE", help="The vision tower's config.json where none is beside it."),
    ] = None,
    feature_layer: Annotated[
        int | None,
        typer.Option(
            "--feature-layer",
            metavar="N",
            help="The layer whose features the projector takes; -2 is after all blocks but the last. "
            "[default: the config's, else -2]",
        ),
    ] = None,
    keep_last_layer: Annotated[
        bool,
        typer.Option(
            "--keep-last-layer",
            help="Store all blocks of the tower: for PowerInfer and older llama.cpp, which leave out the last one "
            "themselves. Today's llama.cpp runs the right ones either way.",
        ),
    ] = False,
    projector_type: Annotated[
        Literal["mlp", "ldp", "ldpv2"] | None,
        typer.Option("--projector-type", help="The projector's kind. [default: told from its tensors]"),
    ] = None,
    variant: Annotated[
        str | None,
        typer.Option("--variant", metavar="NAME", help="Which of several weights: fp16 for model.fp16.safetensors."),
    ] = None,
    vocab: Annotated[
        Path | None,
        typer.Option(
            "--vocab", metavar="PATH", help="vocab.json or tokenizer.json, or their directory, if not beside the model."
        ),
    ] = None,
    ignore_unknown: Annotated[
        bool, typer.Option("--ignore-unknown", help="Leave out tensors that no rule knows, with a warning.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be written, as a table, and write nothing.")
    ] = False,
    threads: Annotated[
        int | None,
        typer.Option("--threads", min=1, metavar="N", help="Threads that convert. [default: the cores, at most 4]"),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, notes or summary.")] = False,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version and exit.")
    ] = False,
) -> None:
    """Convert a checkpoint of CLIP, OpenCLIP, SigLIP or LLaVA to a GGUF file.

    The file's path is all that goes to standard output.

    This is what clipgguf does unless its first argument names another command (upgrade; see clipgguf upgrade --help).
    A directory that is called like a command is reached as ./NAME.
    """
    directory = _one_of(model_dir, model_dir_option)
    exclusive = {"--text-only": text_only, "--vision-only": vision_only, "--llava-projector": llava_projector}
    if len(given := [option for option, value in exclusive.items() if value]) > 1:
        raise typer.BadParameter(f"excludes {given[1]}", param_hint=f"'{given[0]}'")
    if variant is not None and not variant.replace("-", "").isalnum():
        raise typer.BadParameter("should be a word such as fp16", param_hint="'--variant'")
    request = Request(
        model_dir=Path(directory),
        text_only=text_only,
        vision_only=vision_only,
        outtype="f32" if use_f32 else outtype,
        image_mean=image_mean,
        image_std=image_std,
        llava_projector=llava_projector,
        vision_tower=vision_tower,
        vision_config=vision_config,
        feature_layer=feature_layer,
        keep_last_layer=keep_last_layer,
        projector_type=projector_type,
        variant=variant,
        vocab=vocab,
        ignore_unknown=ignore_unknown,
    )
    if dry_run:
        plan = plan_conversion(request)
        _show_messages(plan.warnings, () if quiet else plan.notes)
        _show_plan(plan)
        return
    with _progress_bar(quiet) as progress:
        result = run_conversion(request, output, threads=threads, progress=progress)
    _show_messages(result.warnings, () if quiet else result.notes)
    if not quiet:
        _message(
            f"{result.found}: {result.tensors:,} tensors, {_size(result.bytes_in)} in, {_size(result.bytes_out)} out, "
            f"{result.seconds:.1f} s"
        )
    typer.echo(os.fsencode(result.path))


@app.command("upgrade", no_args_is_help=True)
def upgrade_command(
    old: Annotated[str, typer.Argument(metavar="OLD.gguf", help="An mmproj file that a script wrote.")],
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="PATH",
            help="The new file if PATH ends in .gguf, else its directory. [default: replace OLD.gguf]",
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, and no word on what was done.")] = False,
) -> None:
    """Add the metadata that today's llama.cpp needs to an mmproj file of a CLIP tower, and change no tensor.

    Files from before have no clip.projector_type, and are refused; nor do they say with clip.vision.feature_layer how
    many blocks of the tower to run, and one too few is run. The file's path is all that goes to standard output.
    """
    with _progress_bar(quiet) as progress:
        result = upgrade(old, output, progress=progress)
    if not quiet:
        _message(f"added {' and '.join(result.added)}" if result.added else "nothing was needed")
    typer.echo(os.fsencode(result.path))


def _one_of(argument: str | None, option: str | None) -> str:
    directories = [directory for directory in (argument, option) if directory is not None]
    if "" in directories:
        raise typer.BadParameter("is empty", param_hint="'MODEL_DIR'")
    if len(directories) != 1:
        what = "is given twice, as an argument and as --model-dir" if directories else "is missing"
        raise typer.BadParameter(what, param_hint="'MODEL_DIR'")
    return directories[0]


def _size(nbytes: int) -> str:
    """Return a number of bytes as people say it, in powers of 1000."""
    size = float(nbytes)
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.2f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"


def _printable(text: str) -> str:
    """Return text that a checkpoint may have chosen, safe for a terminal: control characters as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _message(text: str) -> None:
    # A standard error that takes nothing is no reason to keep the result from standard output.
    with contextlib.suppress(OSError):
        typer.echo(f"clipgguf: {_printable(text)}", err=True)


def _show_messages(warnings: tuple[str, ...], notes: tuple[str, ...]) -> None:
    for note in notes:
        _message(f"note: {note}")
    for warning in warnings:
        _message(f"warning: {warning}")


@contextlib.contextmanager
def _progress_bar(quiet: bool) -> Iterator[Callable[[int, int], None] | None]:
    """Show a bar over bytes with the rate on standard error while in use, where somebody is looking."""
    if quiet or sys.stderr is None or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("converting", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _show_plan(plan: "Plan") -> None:
    """Print a plan on standard output: metadata, tensors, totals."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    def add_row(table: Table, *cells: object) -> None:
        table.add_row(*(Text(_printable(str(cell))) for cell in cells))

    metadata = Table(box=None, pad_edge=False)
    for heading in ("key", "value"):
        metadata.add_column(heading, overflow="fold")
    for item in plan.metadata:
        is_long = not isinstance(item.value, str) and isinstance(item.value, Sequence) and len(item.value) > 8
        add_row(metadata, item.key, f"{len(item.value):,} values" if is_long else item.value)

    tensors = Table(box=None, pad_edge=False)
    for heading in ("tensor", "source", "shape"):
        tensors.add_column(heading, overflow="fold")
    for heading in ("from", "to"):
        tensors.add_column(heading, no_wrap=True)
    for heading in ("bytes in", "bytes out"):
        tensors.add_column(heading, no_wrap=True, justify="right")
    for t in plan.tensors:
        shape = " x ".join(map(str, t.shape))
        add_row(
            tensors,
            t.name,
            t.source.name,
            shape,
            t.source.dtype,
            t.ggml_type.name,
            f"{t.source.nbytes:,}",
            f"{t.nbytes:,}",
        )

    if sys.stdout is None:
        return
    # A pipe has no width: every row stays whole, on a line of its own.
    console = Console() if sys.stdout.isatty() else Console(width=10_000)
    console.print(Text(_printable(plan.found)))
    console.print()
    console.print(metadata)
    console.print()
    console.print(tensors)
    console.print()
    console.print(
        f"{plan.file_name}: {len(plan.tensors):,} tensors, {plan.bytes_in:,} bytes in, {plan.bytes_out:,} bytes out",
        highlight=False,
    )


def _terminate(signal_number: int, frame: FrameType | None) -> None:
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
    for problem in problems:
        _message(f"error: {problem}")
    sys.exit(1)
