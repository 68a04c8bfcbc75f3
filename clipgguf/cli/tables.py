"""Tables on standard output, and what is shown of a file's metadata, also in JSON."""

import sys
from collections.abc import Iterable, Mapping
from itertools import compress, islice
from typing import TYPE_CHECKING, Any

from clipgguf.cli.output import as_line
from clipgguf.errors import cut

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from clipgguf.checkpoint.gguf_file import MetadataItem

# How a table's column takes cells that are too wide: in several lines; never; never, and to the right as numbers are.
FOLD: dict[str, Any] = {"overflow": "fold"}
WHOLE: dict[str, Any] = {"no_wrap": True}
RIGHT: dict[str, Any] = {"no_wrap": True, "justify": "right"}
# The same as FOLD and RIGHT, for columns that a narrow terminal does without.
WIDE: dict[str, Any] = {**FOLD, "wide": True}
WIDE_RIGHT: dict[str, Any] = {**RIGHT, "wide": True}
NARROWEST_WIDE = 120
# A metadata array of more values is shown by their number, and of a text with more characters only the beginning.
LONGEST_ARRAY = 8
LONGEST_TEXT = 200
# More rows of a table than the largest model has tensors are only counted.
MOST_ROWS = 2000


def table(columns: Mapping[str, Mapping[str, Any]], rows: Iterable[Iterable[object]]) -> "Table":
    """Return a table with a heading and one of the styles above for each column; integers get thousands' commas."""
    from rich.table import Table
    from rich.text import Text

    is_wide = _console().width >= NARROWEST_WIDE
    chosen = [is_wide or not style.get("wide") for style in columns.values()]
    made = Table(box=None, pad_edge=False)
    for heading, style in compress(columns.items(), chosen):
        made.add_column(heading, **{key: value for key, value in style.items() if key != "wide"})
    left = iter(rows)
    for row in islice(left, MOST_ROWS):
        cells = (f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in compress(row, chosen))
        made.add_row(*(Text(as_line(cell)) for cell in cells))
    if more := sum(1 for _ in left):
        made.add_row(f"and {more:,} more")
    return made


def metadata_table(metadata: "Iterable[MetadataItem]") -> "Table":
    """Return a table of metadata, long arrays as the number of their values and long text cut off."""
    return table({"key": FOLD, "value": FOLD}, ((_beginning(item.key), _value_text(item)) for item in metadata))


def _value_text(item: "MetadataItem") -> str:
    if item.is_array and len(item.value) > LONGEST_ARRAY:
        return f"{len(item.value):,} values"
    value = item.plain(LONGEST_ARRAY)
    if isinstance(value, list):
        value = [cut(element) if isinstance(element, str) else element for element in value]
    return _beginning(str(value))


def _beginning(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}... ({len(text):,} characters)"


def axes_text(shape: tuple[int, ...]) -> str:
    """Return a row-major shape as people write it: 768 x 3072."""
    return " x ".join(map(str, shape))


def show(*parts: "str | Table") -> None:
    """Print lines and tables on standard output, with an empty line between them."""
    from rich.text import Text

    if sys.stdout is None:
        return
    console = _console()
    for number, part in enumerate(parts):
        if number:
            console.print()
        console.print(Text(as_line(part)) if isinstance(part, str) else part)


def _console() -> "Console":
    """Return standard output's console; a pipe has no width: every row stays whole, on a line of its own."""
    from rich.console import Console

    return Console() if sys.stdout is not None and sys.stdout.isatty() else Console(width=10_000)


def metadata_object(metadata: "Iterable[MetadataItem]") -> dict[str, Any]:
    """Return metadata as docs/json.md describes it, by key."""
    return {item.key: _metadata_value(item) for item in metadata}


def _metadata_value(item: "MetadataItem") -> dict[str, Any]:
    value = item.plain(LONGEST_ARRAY)
    if not item.is_array:
        return {"type": item.value_type.name, "value": value}
    length = len(item.value)
    return {"type": item.value_type.name, "length": length, "first" if length > LONGEST_ARRAY else "value": value}
