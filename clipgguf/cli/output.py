"""What every command prints: messages, results, JSON; safe for a terminal, whatever a checkpoint has in it."""

import contextlib
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from clipgguf.errors import UsageError, condensed, cut


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


def as_line(text: str) -> str:
    """Return text that a checkpoint may have chosen as a line: safe for a terminal, and very long text cut."""
    return printable(cut(text))


def message(text: str) -> None:
    """Print a line on standard error, of a very long one the beginning and the end."""
    # A standard error that takes nothing is no reason to keep the result from standard output.
    with contextlib.suppress(OSError):
        typer.echo(f"clipgguf: {as_line(text)}", err=True)


def show_messages(warnings: tuple[str, ...], notes: tuple[str, ...]) -> None:
    """Print notes and warnings, a line each."""
    messages("note", notes)
    messages("warning", warnings)


def messages(kind: str, lines: Sequence[str]) -> None:
    """Print what is a "note", a "warning" or an "error", a line each, of very many the first of each sort."""
    for line in condensed(lines):
        message(f"{kind}: {line}")


def usage_text(error: UsageError) -> str:
    """Return what is wrong with arguments, which are called as the command line has them."""
    options = [f"--{option.replace('_', '-')}" for option in error.options]
    return f"{' and '.join(options)} {error.reason}"


def show_json(value: "Mapping[str, Any] | Sequence[Any]") -> None:
    """Print JSON on standard output; numbers that it does not have become "nan", "inf" and "-inf"."""
    typer.echo(json.dumps(_json_value(value), indent=2, allow_nan=False))


def _json_value(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _json_value(element) for key, element in value.items()}
    if isinstance(value, (list, tuple)):
        return list(map(_json_value, value))
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def show_path(path: Path | str) -> None:
    """Print a path or an address on standard output: its very bytes, but no control characters to a terminal."""
    if sys.stdout is not None and sys.stdout.isatty():
        typer.echo(printable(str(path)))
    else:
        typer.echo(os.fsencode(path))
