"""What every command prints: messages, progress, tables; safe for a terminal, whatever a checkpoint has in it."""

import contextlib
import json
import math
import os
import struct
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from clipgguf.checkpoint.gguf_file import MetadataItem

# How a table's column takes cells that are too wide: in several lines; never; never, and to the right as numbers are.
FOLD: dict[str, Any] = {"overflow": "fold"}
WHOLE: dict[str, Any] = {"no_wrap": True}
RIGHT: dict[str, Any] = {"no_wrap": True, "justify": "right"}
# A metadata array of more values is shown by their number, and of a text with more characters only the beginning.
LONGEST_ARRAY = 8
LONGEST_TEXT = 200
# More rows of a table than the largest model has tensors are only counted.
MOST_ROWS = 2000
# Of what checkpoints can have us say: nobody reads on from there, and a terminal would be busy with it for minutes.
LONGEST_MESSAGE = 8000
MOST_MESSAGES = 1000
# The largest float32, as the shortest decimal that rounds to it.
_LARGEST_FLOAT32 = 3.4028235e38


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
    """Print a line on standard error, of a very long one the beginning and the end."""
    if len(text) > LONGEST_MESSAGE:
        half = LONGEST_MESSAGE // 2
        text = f"{text[:half]} [... {len(text) - 2 * half:,} characters ...] {text[-half:]}"
    # A standard error that takes nothing is no reason to keep the result from standard output.
    with contextlib.suppress(OSError):
        typer.echo(f"clipgguf: {printable(text)}", err=True)


def show_messages(warnings: tuple[str, ...], notes: tuple[str, ...]) -> None:
    """Print notes and warnings, a line each."""
    messages("note", notes)
    messages("warning", warnings)


def messages(kind: str, lines: Sequence[str]) -> None:
    """Print lines of a kind ("note", "warning", "error"), of very many the first and how many more there are."""
    for line in lines[:MOST_MESSAGES]:
        message(f"{kind}: {line}")
    if len(lines) > MOST_MESSAGES:
        message(f"{kind}: and {len(lines) - MOST_MESSAGES:,} more like these")


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
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def table(columns: Mapping[str, Mapping[str, Any]], rows: Iterable[Iterable[object]]) -> "Table":
    """Return a table with a heading and FOLD, WHOLE or RIGHT for each column; integers get thousands' commas."""
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, pad_edge=False)
    for heading, style in columns.items():
        made.add_column(heading, **style)
    left = iter(rows)
    for row in islice(left, MOST_ROWS):
        made.add_row(*(Text(printable(f"{cell:,}" if isinstance(cell, int) else str(cell))) for cell in row))
    if more := sum(1 for _ in left):
        made.add_row(f"and {more:,} more")
    return made


def metadata_table(metadata: "Iterable[MetadataItem]") -> "Table":
    """Return a table of metadata, long arrays as the number of their values and long text cut off."""
    return table({"key": FOLD, "value": FOLD}, ((_beginning(item.key), _value_text(item)) for item in metadata))


def _value_text(item: "MetadataItem") -> str:
    if item.is_array and len(item.value) > LONGEST_ARRAY:
        return f"{len(item.value):,} values"
    return _beginning(str(plain_value(item, LONGEST_ARRAY)))


def _beginning(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}... ({len(text):,} characters)"


def plain_value(item: "MetadataItem", most: int) -> Any:
    """Return a metadata value as people write it, of an array a list of at most ``most`` values.

    A FLOAT32 becomes the shortest decimal that is it: 0.5, 1e-05 or 0.48145466, and not 0.48145467042922974.
    """
    values = list(item.value[:most]) if item.is_array else [item.value]
    if item.value_type.name == "FLOAT32":
        values = list(map(_shortest_float32, values))
    return values if item.is_array else values[0]


def _shortest_float32(value: float) -> float:
    if not math.isfinite(value):
        return value
    # Nine digits tell any two float32 apart.
    candidates = (float(f"{value:.{digits}g}") for digits in range(1, 10))
    packed = struct.pack("<f", value)
    return next((c for c in candidates if abs(c) <= _LARGEST_FLOAT32 and struct.pack("<f", c) == packed), value)


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


def show_json(value: Mapping[str, Any]) -> None:
    """Print JSON on standard output; numbers that it does not have become "nan", "inf" and "-inf"."""
    typer.echo(json.dumps(_json_value(value), indent=2, allow_nan=False))


def _json_value(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _json_value(element) for key, element in value.items()}
    if isinstance(value, (list, tuple)):
        return list(map(_json_value, value))
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def show_path(path: Path) -> None:
    """Print a result's path on standard output: its very bytes, but no control characters to a terminal."""
    if sys.stdout is not None and sys.stdout.isatty():
        typer.echo(printable(str(path)))
    else:
        typer.echo(os.fsencode(path))
