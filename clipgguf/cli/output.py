"""What every command prints: messages, progress, tables; safe for a terminal, whatever a checkpoint has in it."""

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from clipgguf.checkpoint.gguf_file import MetadataItem

# How a table's column takes cells that are too wide: in several lines; never; never, and to the right as numbers are.
FOLD: dict[str, Any] = {"overflow": "fold"}
WHOLE: dict[str, Any] = {"no_wrap": True}
RIGHT: dict[str, Any] = {"no_wrap": True, "justify": "right"}
# A metadata array of more values is shown by their number.
LONGEST_ARRAY = 8


def size(nbytes: int) -> str:
    """Return a number of bytes as people say it, in powers of 1000."""
    size = float(nbytes)
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.2f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"


def printable(text: str) -> str:
    """Return text that a checkpoint may have chosen, safe for a terminal: control characters as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def message(text: str) -> None:
    """Print a line on standard error."""
    # A standard error that takes nothing is no reason to keep the result from standard output.
    with contextlib.suppress(OSError):
        typer.echo(f"clipgguf: {printable(text)}", err=True)


def show_messages(warnings: tuple[str, ...], notes: tuple[str, ...]) -> None:
    """Print notes and warnings, a line each."""
    for note in notes:
        message(f"note: {note}")
    for warning in warnings:
        message(f"warning: {warning}")


@contextlib.contextmanager
def progress_bar(quiet: bool) -> Iterator[Callable[[int, int], None] | None]:
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


def table(columns: Mapping[str, Mapping[str, Any]], rows: Iterable[Iterable[object]]) -> "Table":
    """Return a table with a heading and FOLD, WHOLE or RIGHT for each column; integers get thousands' commas."""
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, pad_edge=False)
    for heading, style in columns.items():
        made.add_column(heading, **style)
    for row in rows:
        made.add_row(*(Text(printable(f"{cell:,}" if isinstance(cell, int) else str(cell))) for cell in row))
    return made


def metadata_table(metadata: "Iterable[MetadataItem]") -> "Table":
    """Return a table of metadata, long arrays as the number of their values."""
    return table({"key": FOLD, "value": FOLD}, [(item.key, _value_text(item.value)) for item in metadata])


def _value_text(value: object) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str) and len(value) > LONGEST_ARRAY:
        return f"{len(value):,} values"
    return str(value)


def shape_text(shape: tuple[int, ...]) -> str:
    """Return a row-major shape as people write it: 768 x 3072."""
    return " x ".join(map(str, shape))


def show(*parts: "str | Table") -> None:
    """Print lines and tables on standard output, with an empty line between them."""
    from rich.console import Console
    from rich.text import Text

    if sys.stdout is None:
        return
    # A pipe has no width: every row stays whole, on a line of its own.
    console = Console() if sys.stdout.isatty() else Console(width=10_000)
    for number, part in enumerate(parts):
        if number:
            console.print()
        console.print(Text(printable(part)) if isinstance(part, str) else part)
