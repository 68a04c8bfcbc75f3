"""A range of a file far away: its bytes in order, asked for again at the byte where the line breaks."""

import threading
from concurrent.futures import InvalidStateError
from typing import Protocol

from clipgguf.errors import CheckpointError
from clipgguf.sources import Fetch
from clipgguf.sources.callers import CALLERS
from clipgguf.sources.tries import LineError, waited

# How much of a body is read at a time.
PIECE_NBYTES = 1 << 18


class Body(Protocol):
    """What an answer has after its headers: bytes that are read in order."""

    def read(self, nbytes: int) -> bytes:
        """Return the next bytes, at most so many, and none at the end. Raises LineError when the line breaks."""

    def wake(self) -> None:
        """Have a thread that waits for bytes raise LineError; it is still to be closed."""

    def close(self) -> None:
        """End it, wherever it is."""


class Asked(Protocol):
    """A file that answers to requests for ranges."""

    name: str

    def answer(self, start: int, stop: int) -> tuple[Body, int]:
        """Ask once for a range; return an answer that begins at its first byte, and the byte where it ends.

        Raises LineError when it is worth to ask again, CheckpointError when it is not.
        """


class RangeFetch(Fetch):
    """A range that was asked for: its bytes in order, asked for again at the byte where the line breaks."""

    def __init__(self, file: Asked, start: int, stop: int) -> None:
        """Ask."""
        self._file, self._at, self._end, self._stop = file, start, start, stop
        self._tries = 0
        self._closing = threading.Event()
        self._body: Body | None = None
        self._is_read = False
        self._ask()

    def _ask(self) -> None:
        file, at, stop = self._file, self._at, self._stop
        self._answer = CALLERS.submit(lambda: file.answer(at, stop), lambda answer: answer[0].close())

    def begun(self) -> int:
        """Wait for the answer; return the byte where it ends. Raises CheckpointError when there is no answer."""
        while self._body is None:
            self._wait_for_answer()
        return self._end

    def _wait_for_answer(self) -> None:
        try:
            self._body, self._end = self._answer.result()
        except LineError as e:
            self._again(e)

    def read(self, target: memoryview) -> None:
        """Fill ``target`` with the next bytes. Raises CheckpointError when the line stays broken."""
        self._is_read = True
        try:
            self._read(target)
        finally:
            self._is_read = False
            if self._closing.is_set():
                self._drop()

    def _read(self, target: memoryview) -> None:
        while target:
            if self._body is None:
                self._wait_for_answer()
                continue
            try:
                nbytes = min(len(target), PIECE_NBYTES, self._end - self._at)
                data = self._body.read(nbytes) if nbytes else b""
            except LineError as e:
                self._again(e)
                continue
            if not data:  # It was a part of what was asked for, or the body ended early.
                self._again(None if self._at == self._end else LineError("the answer ends too early"))
                continue
            target[: len(data)] = data
            target = target[len(data) :]
            self._at += len(data)
            self._tries = 0
            CALLERS.count(len(data))

    def _again(self, error: LineError | None) -> None:
        """Ask for what is still missing, after a while."""
        self._drop()
        if error is not None:
            self._tries += 1
            waited(self._file.name, error, self._tries, self._closing)
        if self._closing.is_set():
            raise CheckpointError(f"{self._file.name}: reading was ended")
        self._ask()

    def _drop(self) -> None:
        if self._body is not None and self._at < self._end:
            self._body.close()
        self._body = None

    def close(self) -> None:
        """End it, also while another thread reads."""
        self._closing.set()
        try:
            self._answer.set_exception(CheckpointError(f"{self._file.name}: reading was ended"))
        except InvalidStateError:  # It has come.
            if not self._is_read and self._body is None and self._answer.exception() is None:
                self._body, self._end = self._answer.result()
        body = self._body
        if self._is_read and body is not None:
            body.wake()  # The thread that waits for bytes then closes it.
        else:
            self._drop()
