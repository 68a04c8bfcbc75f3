"""How far a command is, and what it waits for, on standard error."""

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterator

from clipgguf.cli.output import message, size
from clipgguf.sources.given import bytes_received


@contextlib.contextmanager
def progress_bar(quiet: bool) -> Iterator[Callable[[int, int], None] | None]:
    """Show a bar over bytes with the rate on standard error while in use, where somebody is looking.

    What comes over a line has its own bytes and rate beside it; who does not want quiet is told what a server makes us
    wait for.
    """
    if quiet or sys.stderr is None:
        yield None
        return
    logger, handler = logging.getLogger("clipgguf"), _Messages()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        if sys.stderr.isatty():
            with _bar() as progress:
                yield progress
        else:
            yield None
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


class _Messages(logging.Handler):
    """Prints what the library has to tell meanwhile."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a line."""
        message(record.getMessage())


@contextlib.contextmanager
def _bar() -> Iterator[Callable[[int, int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    far = TextColumn("{task.fields[line]}")
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(), far)
    started, before = time.monotonic(), bytes_received()

    def show(done: int, total: int) -> None:
        received = bytes_received() - before
        rate = received / max(time.monotonic() - started, 1e-3)
        line = f"{size(received)} over the line, {size(int(rate))}/s" if received else ""
        bar.update(task, completed=done, total=total, line=line)

    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None, line="")
        yield show
