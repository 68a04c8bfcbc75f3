"""Threads that wait for what is far away, for the whole process; nobody waits for them when it ends."""

import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from queue import SimpleQueue
from typing import TypeVar

T = TypeVar("T")

# How many wait for answers: those that ahead.py asks for, and a few besides.
MOST_THREADS = 20


class Callers:
    """Daemon threads, started as they are needed. ``received`` counts the bytes that came over a line."""

    def __init__(self) -> None:
        """Start nothing yet."""
        self.received = 0
        self._lock = threading.Lock()
        self._work: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._threads = self._idle = self._waiting = 0

    def count(self, nbytes: int) -> None:
        """Count bytes that have come."""
        with self._lock:
            self.received += nbytes

    def submit(self, do: Callable[[], T], discard: Callable[[T], None] = lambda _: None) -> "Future[T]":
        """Have something done in a thread that nobody waits for when the process ends.

        The future may be given an exception from outside, so that who waits goes on; then a result is discarded.
        """
        future: Future[T] = Future()

        def run() -> None:
            try:
                result = do()
            except BaseException as e:
                with contextlib.suppress(InvalidStateError):
                    future.set_exception(e)
                return
            try:
                future.set_result(result)
            except InvalidStateError:
                discard(result)

        with self._lock:
            self._work.put(run)
            self._waiting += 1
            is_needed = self._waiting > self._idle and self._threads < MOST_THREADS
            with contextlib.suppress(RuntimeError):  # No more can be started: those that there are will come to it.
                if is_needed:
                    threading.Thread(target=self._serve, name="line", daemon=True).start()
                    self._threads += 1
            is_alone = not self._threads
        if is_alone:
            self._next()()
        return future

    def _next(self) -> Callable[[], None]:
        run = self._work.get()
        with self._lock:
            self._waiting -= 1
        return run

    def _serve(self) -> None:
        while True:
            with self._lock:
                self._idle += 1
            run = self._next()
            with self._lock:
                self._idle -= 1
            run()
            del run  # It holds what it was done for.


CALLERS = Callers()
