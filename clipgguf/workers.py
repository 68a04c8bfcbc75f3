"""Threads that work: as many as are asked for, or as the system gives."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Workers(ThreadPoolExecutor):
    """A thread pool that goes on with fewer threads where no more can be started, and without any where none can.

    A limit on processes (``ulimit -u``, a container's) counts threads. What no thread can do, ``submit`` does itself.
    """

    def __init__(self, threads: int, name: str) -> None:
        """Take the most threads to start, which happens when there is work for them, and what they are called."""
        super().__init__(threads, thread_name_prefix=name)
        self._has_threads = False
        self._is_refused = False

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
