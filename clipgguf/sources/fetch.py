"""A range of a file on a web server: its bytes in order, asked for again at the byte where the line breaks."""

import contextlib
import logging
import random
import threading
from concurrent.futures import InvalidStateError
from typing import Protocol

import urllib3

from clipgguf.errors import CheckpointError
from clipgguf.sources import Fetch
from clipgguf.sources.line import LINE, LineError, Response, in_words

# Tells what one has to wait for; the command line shows it.
LOG = logging.getLogger("clipgguf")
# How much of a body is read at a time, and how often without a single byte.
PIECE_NBYTES = 1 << 18
MOST_TRIES = 5
FIRST_WAIT, LONGEST_WAIT, LONGEST_TOLD_WAIT = 0.5, 8.0, 300.0


class Asked(Protocol):
    """A file that answers to requests for ranges."""

    name: str

    def answer(self, start: int, stop: int) -> tuple[Response, int]:
        """Ask once for a range; return an answer that begins at its first byte, and the byte where it ends.

        Raises LineError when it is worth to ask again, CheckpointError when it is not.
        """


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


class WebFetch(Fetch):
    """A range that was asked for: its bytes in order, asked for again at the byte where the line breaks."""

    def __init__(self, file: Asked, start: int, stop: int) -> None:
        """Ask."""
        self._file, self._at, self._end, self._stop = file, start, start, stop
        self._tries = 0
        self._closing = threading.Event()
        self._response: Response | None = None
        self._is_read = False
        self._ask()

    def _ask(self) -> None:
        file, at, stop = self._file, self._at, self._stop
        self._answer = LINE.submit(lambda: file.answer(at, stop), lambda answer: answer[0].close())

    def begun(self) -> int:
        """Wait for the answer; return the byte where it ends. Raises CheckpointError when there is no answer."""
        while self._response is None:
            self._wait_for_answer()
        return self._end

    def _wait_for_answer(self) -> None:
        try:
            self._response, self._end = self._answer.result()
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
            if self._response is None:
                self._wait_for_answer()
                continue
            try:
                nbytes = min(len(target), PIECE_NBYTES, self._end - self._at)
                data = self._response.read(nbytes, decode_content=False) if nbytes else b""
            except (urllib3.exceptions.HTTPError, OSError, ValueError) as e:
                self._again(LineError(in_words(e)))
                continue
            if not data:  # It was a part of what was asked for, or the body ended early.
                self._again(None if self._at == self._end else LineError("the answer ends too early"))
                continue
            target[: len(data)] = data
            target = target[len(data) :]
            self._at += len(data)
            self._tries = 0
            LINE.count(len(data))

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
        if self._response is not None and self._at < self._end:
            self._response.close()
        self._response = None

    def close(self) -> None:
        """End it, also while another thread reads."""
        self._closing.set()
        try:
            self._answer.set_exception(CheckpointError(f"{self._file.name}: reading was ended"))
        except InvalidStateError:  # It has come.
            if not self._is_read and self._response is None and self._answer.exception() is None:
                self._response, self._end = self._answer.result()
        response = self._response
        if self._is_read and response is not None:
            with contextlib.suppress(ValueError, RuntimeError, OSError):
                response.shutdown()  # Wakes the thread that waits for bytes, which then closes it.
        else:
            self._drop()
