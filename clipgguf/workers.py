"""Threads that work: as many as are asked for, or as the system gives."""

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

# The most threads by default, and the most that can be asked for: each takes over 2 MiB, and long before there are as
# many, the disk or the interpreter's lock is what all wait for.
MOST_THREADS = 8
MOST_ASKED_FOR = 64


def thread_count(threads: int | None) -> int:
    """Return how many threads to work on: as many as are asked for, else one a core; ValueError for less than one."""
    if threads is not None:
        if threads < 1:
            raise ValueError(f"threads is {threads}, should be at least 1")
        return min(threads, MOST_ASKED_FOR)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MOST_THREADS)


class Workers(ThreadPoolExecutor):
    """A thread pool that goes on with fewer threads where no more can be started, and without any where none can.

    A limit on processes (``ulimit -u``, a container's) counts threads. What no thread can do, ``submit`` does itself.
    """

    _has_threads = False
    _is_refused = False

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> "Future[T]":
        """Have a function called; the future has what it returns or raises."""
        outcome: Future[T] = Future()

        def run() -> None:
            try:
                outcome.set_result(fn(*args, **kwargs))
            except BaseException as e:
                outcome.set_exception(e)

        if not self._is_refused:
            try:
                super().submit(run)
                self._has_threads = True
            except RuntimeError:  # "can't start new thread": but the threads that there are will come to the work.
                self._is_refused = not self._has_threads
        if self._is_refused:
            run()
        return outcome
