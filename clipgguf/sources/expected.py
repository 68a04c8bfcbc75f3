"""Files of a folder far away, each opened once; those that are expected are opened all at the same time."""

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from itertools import islice
from typing import Generic, TypeVar

T = TypeVar("T")

# Each may hold the beginning of its file, a quarter of a mebibyte.
MOST_AT_ONCE = 16


class Files(Generic[T]):
    """What opening files gave, or the error that it ended in, by name."""

    def __init__(self, open_file: Callable[[str], T]) -> None:
        """Take what opens a file by name."""
        self._open = open_file
        self._lock = threading.Lock()
        self._files: dict[str, Future[T]] = {}

    def __contains__(self, name: str) -> bool:
        """Return whether a file was asked for, whether or not it is there."""
        return name in self._files

    def expect(self, names: Iterable[str]) -> None:
        """Have files opened by threads of their own; an error is for who asks for the file, if anybody does."""
        for name in islice(names, MOST_AT_ONCE):
            future, is_new = self._future(name)
            if is_new:
                thread = threading.Thread(target=self._run, args=(name, future), name="open", daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # No more threads can be started: who needs it opens it.
                    with self._lock:
                        del self._files[name]

    def get(self, name: str) -> T:
        """Return a file, and open it if nobody does; raises what opening it raises."""
        future, is_new = self._future(name)
        if is_new:
            self._run(name, future)
        return future.result()

    def _future(self, name: str) -> tuple["Future[T]", bool]:
        with self._lock:
            is_new = name not in self._files
            return self._files.setdefault(name, Future()), is_new

    def _run(self, name: str, future: "Future[T]") -> None:
        try:
            result = self._open(name)
        except BaseException as e:
            future.set_exception(e)
        else:
            future.set_result(result)
