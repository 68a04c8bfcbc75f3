"""Many conversions, each in a process of its own: the list of them, what is recorded of each, and the processes.

A process of its own gives its memory back, and whatever ends it costs one model.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from clipgguf.errors import ClipGGUFError, OutputError, os_reason
from clipgguf.sources.given import is_far, shown_place

# How every line of the command line's messages begins, and one that says why something cannot be done.
MESSAGE, ERROR = "clipgguf: ", "clipgguf: error: "
# How a record begins: a line that is cut off can be told by it from a line of another file.
_BEGINNING = '{"arguments": '
# A process that is told to end may take so many seconds.
_GRACE_SECONDS = 5.0
# It imports what this process would: "-m" alone would put the working directory first, whatever is in there.
_START = "import os, sys; sys.path[:] = sys.argv.pop(1).split(os.pathsep); from clipgguf.__main__ import main; main()"


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a list: its number, from 1 on, and the arguments of a conversion."""

    number: int
    arguments: tuple[str, ...]

    @property
    def shown(self) -> tuple[str, ...]:
        """The arguments for messages and records: addresses without what may give access."""
        return tuple(map(_shown, self.arguments))


def _shown(argument: str) -> str:
    option, is_option, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
    return f"{option}{is_option}{shown_place(value)}" if is_far(value) else argument


def read_list(path: Path) -> list[Line]:
    """Read a list, of a command line's arguments in each line; ClipGGUFError with all that is wrong with it.

    Words are told as a shell does it, without its variables and patterns. Empty lines, and those that begin with "#",
    are passed over, and "convert" in front of the arguments may be left out.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as e:
        raise ClipGGUFError(f"{path}: cannot be read: {os_reason(e)}") from e
    except UnicodeDecodeError as e:
        raise ClipGGUFError(f"{path}: is no text in UTF-8, should be a list of arguments, a model a line") from e
    lines: dict[tuple[str, ...], Line] = {}
    problems = []
    for number, written in enumerate(text.split("\n"), 1):
        if not written.strip() or written.lstrip().startswith("#"):
            continue
        try:
            words = shlex.split(written)
        except ValueError as e:
            problems.append(f"{path}: line {number}: {str(e)[0].lower()}{str(e)[1:]}")
            continue
        line = Line(number, tuple(words[1:] if words[0] == "convert" else words))
        if (other := lines.setdefault(line.shown, line)) is not line:
            problems.append(f"{path}: line {number}: is line {other.number} once more")
    ClipGGUFError.raise_all(problems)
    return list(lines.values())


@dataclass(frozen=True, slots=True)
class Record:
    """What became of a line: what ``--json`` gives when it is done, the lines of the errors when it is not.

    ``exit_code`` is the process's (128 + N where signal N ended it), ``bytes`` the size of the file. ``verified`` says
    that it was compared with its checkpoint, and not made, in so many ``seconds``.
    """

    arguments: tuple[str, ...]
    exit_code: int
    seconds: float
    errors: tuple[str, ...] = ()
    result: Mapping[str, Any] | None = None
    bytes: int | None = None
    verified: bool = False

    @classmethod
    def read(cls, text: str) -> "Record | None":
        """Read a line of a file of results; None when it is none."""
        try:
            values = json.loads(text)
            record = cls(**{**values, "arguments": tuple(values["arguments"]), "errors": tuple(values["errors"])})
        except (ValueError, TypeError, KeyError):
            return None
        is_text = all(isinstance(text, str) for text in (*record.arguments, *record.errors))
        return record if is_text and (record.exit_code or isinstance(record.path, str)) else None

    @property
    def path(self) -> Any:
        """The file's path, of what is done."""
        return self.result.get("path") if isinstance(self.result, Mapping) else None

    @property
    def commit(self) -> str | None:
        """The commit of the checkpoint, where it has one."""
        return self.result.get("commit") if isinstance(self.result, Mapping) else None

    def is_there(self) -> bool:
        """Return whether it is done, and the file is there with its size."""
        try:
            return not self.exit_code and Path(self.path).stat().st_size == self.bytes
        except OSError:
            return False


class Results:
    """A file of records, a JSON object a line, that others may append to as well."""

    def __init__(self, path: Path) -> None:
        """Read what is there. Raises ClipGGUFError for a file of another kind, OutputError when it cannot be read."""
        self.path = path
        self._last: dict[tuple[str, ...], Record] = {}
        # Whose file it is: of two that wrote the same one, the later.
        self._writers: dict[Path, tuple[str, ...]] = {}
        try:
            lines = path.read_bytes().split(b"\n") if path.exists() else []
        except OSError as e:
            raise OutputError(f"{path}: cannot be read: {os_reason(e)}") from e
        for number, written in enumerate(lines, 1):
            text = written.decode("utf-8", "replace")
            if (record := Record.read(text)) is not None:
                self._take(record)
            elif text[: len(_BEGINNING)] != _BEGINNING[: len(text)]:  # And not one that was cut off.
                what = "is no result of `clipgguf batch`, should be a file that it wrote, or none"
                raise ClipGGUFError(f"{path}: line {number}: {what}")

    def _take(self, record: Record) -> None:
        self._last[record.arguments] = record
        if not record.exit_code:
            self._writers[Path(record.path).absolute()] = record.arguments

    def done(self, line: Line) -> Record | None:
        """Return the record of a line that is done, and whose file is there; None for all others."""
        record = self._last.get(line.shown)
        is_done = record is not None and record.is_there()
        return record if is_done and record and self.writer(record) == line.shown else None

    def writer(self, record: Record) -> tuple[str, ...] | None:
        """Return the arguments by which the file of a record that is done was last written, None if it never was."""
        return self._writers.get(Path(record.path).absolute())

    def add(self, record: Record) -> None:
        """Append a record, in one piece. Raises OutputError."""
        line = json.dumps(asdict(record)) + "\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a+b", buffering=0) as file:
                if file.tell():
                    file.seek(-1, os.SEEK_END)
                    if file.read(1) != b"\n":  # A record was cut off.
                        line = "\n" + line
                file.write(line.encode())
        except OSError as e:
            raise OutputError(f"{self.path}: cannot be written: {os_reason(e)}") from e
        self._take(record)


@dataclass(frozen=True, slots=True)
class Ended:
    """How a process ended: its exit code, what it printed on standard output, and its errors, a line each."""

    exit_code: int
    output: str
    errors: tuple[str, ...]

    @property
    def result(self) -> dict[str, Any] | None:
        """The JSON object that it printed, if that is what it printed."""
        try:
            value = json.loads(self.output)
        except ValueError:
            return None
        return value if isinstance(value, dict) else None


class Children:
    """Processes of the command line; a context manager that ends those that still run."""

    def __init__(self) -> None:
        """Start none yet."""
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[str]] = set()
        self._is_over = False

    def __enter__(self) -> "Children":
        """Return the processes themselves."""
        return self

    def __exit__(self, *_: object) -> None:
        """End what runs, at once: politely, and by force what does not end in a few seconds. No more are started."""
        with self._lock:
            self._is_over = True
            running = tuple(self._running)
        for process in running:
            process.terminate()
        for process in running:
            try:
                process.wait(_GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()

    def run(self, arguments: Sequence[str], heard: Callable[[str], None]) -> Ended:
        """Run the command line with arguments to its end, from any thread; ``heard`` gets its messages as they come.

        Raises InterruptedError when no more are to be started, OSError when none can be.
        """
        environment = {**os.environ, "PYTHONIOENCODING": "utf-8:backslashreplace"}
        words = [sys.executable, "-c", _START, os.pathsep.join(sys.path), *arguments]
        with tempfile.TemporaryFile() as output:
            with self._lock:
                if self._is_over:
                    raise InterruptedError("no more are started")
                process = subprocess.Popen(
                    words,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.PIPE,
                    encoding="utf-8",
                    errors="replace",
                )
                self._running.add(process)
            try:
                assert process.stderr is not None
                with process.stderr as lines:
                    errors, last = _heard(lines, heard)
                code = process.wait()
            finally:
                with self._lock:
                    self._running.discard(process)
            output.seek(0)
            printed = output.read().decode("utf-8", "replace")
        if code < 0:
            return Ended(128 - code, printed, (*errors, f"was ended by {_signal_name(-code)}"))
        return Ended(code, printed, tuple(errors or [last or f"ended with exit code {code}"]) if code else ())


def _heard(lines: Iterable[str], heard: Callable[[str], None]) -> tuple[list[str], str]:
    """Hand on lines as they come; return those that are errors, and the last one that is not empty."""
    errors, last = [], ""
    for text in _without_ends(lines):
        last = text
        if text.startswith(ERROR):
            errors.append(text.removeprefix(ERROR))
        heard(text.removeprefix(MESSAGE))
    return errors, last


def _without_ends(lines: Iterable[str]) -> Iterator[str]:
    return (text for line in lines if (text := line.rstrip()))


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
