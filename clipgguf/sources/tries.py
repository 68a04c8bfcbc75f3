"""Requests that are sent again: when, how often, and what is said of those that fail for good."""

import logging
import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from clipgguf.errors import CheckpointError

T = TypeVar("T")

# Tells what one has to wait for; the command line shows it.
LOG = logging.getLogger("clipgguf")
# How often without a single byte, and how many seconds between.
MOST_TRIES = 5
FIRST_WAIT, LONGEST_WAIT, LONGEST_TOLD_WAIT = 0.5, 8.0, 300.0
# The statuses of answers that another request may have a better one than.
AGAIN = (408, 425, 429, 500, 502, 503, 504)


class LineError(Exception):
    """A request that failed and may succeed when it is sent again, after ``wait`` seconds if the server asks for them.

    Without ``is_expired``, which is about the address alone, one waits a moment in any case.
    """

    def __init__(self, reason: str, wait: float | None = None, *, is_expired: bool = False) -> None:
        """Take the reason in words."""
        super().__init__(reason)
        self.wait, self.is_expired = wait, is_expired
        self._since = time.monotonic()

    def left(self, seconds: float) -> float:
        """Return how many are left of so many seconds from the error on."""
        return max(0.0, self._since + seconds - time.monotonic())


class MissingError(CheckpointError):
    """There is no such file."""


def waited(name: str, error: LineError, tries: int, closing: threading.Event) -> None:
    """Wait before a request is sent again; CheckpointError when it was sent so often already, or should wait long."""
    told = error.wait or 0
    if tries == MOST_TRIES or told > LONGEST_TOLD_WAIT:
        times = f"{MOST_TRIES} times" if tries == MOST_TRIES else f"and asks to wait {told:.0f} s"
        raise CheckpointError(f"{name}: cannot be read: {error}, {times}") from error
    # A moment, but not the same for all requests.
    own = min(FIRST_WAIT * 2 ** (tries - 1), LONGEST_WAIT) * random.uniform(0.75, 1.25)
    left = error.left(told or (0 if error.is_expired else own))
    if told and left:
        LOG.info("%s: %s, and asks to wait %.0f s", name, error, told)
    closing.wait(left)


def tried(name: str, ask: Callable[[], T]) -> T:
    """Return what an answer gives, asked for again where LineError is raised; CheckpointError after the last try."""
    for tries in range(1, MOST_TRIES + 1):
        try:
            return ask()
        except LineError as e:
            waited(name, e, tries, threading.Event())
    raise AssertionError
