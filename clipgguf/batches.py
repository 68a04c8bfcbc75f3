"""Lists of conversions, what is recorded of each, and what becomes of a line of one.

Each conversion has a process of its own: it gives its memory back, and whatever ends it costs one model.
"""

import json
import os
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from clipgguf.children import Children, Ended
from clipgguf.errors import ClipGGUFError, OutputError, os_reason
from clipgguf.sources.given import is_far, shown_place

# How a record begins: a line that is cut off can be told by it from a line of another file.
_BEGINNING = '{"arguments": '


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

    def is_there(self, directory: Path) -> bool:
        """Return whether it is done, and the file is there with its size; relative paths are meant from a directory."""
        try:
            return not self.exit_code and (directory / self.path).stat().st_size == self.bytes
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
        """Return the record of a line that is done, and whose file no other has written since; None for all others."""
        record = self._last.get(line.shown)
        is_done = record is not None and not record.exit_code
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


# Gets the number of a line, and what is run and said for it.
Heard = Callable[[int, str], None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a line, and whether that is to be recorded: what was done before is not, unless it is verified."""

    line: Line
    record: Record
    is_new: bool

    @classmethod
    def failed(cls, line: Line, seconds: float, *errors: str, exit_code: int = 1, is_new: bool = True) -> "Outcome":
        """Return that a line failed, why, and after how long."""
        return cls(line, Record(line.shown, exit_code, seconds, errors), is_new)


@dataclass(frozen=True, slots=True)
class Task:
    """What is to be done for a line, here or on another machine.

    ``done`` is the record of what was done before, ``verify_words`` what ``verify`` takes after the file, where that
    is to be verified then.
    """

    line: Line
    done: Record | None = None
    verify_words: Sequence[str] | None = None

    def outcome(self, children: Children, heard: Heard) -> Outcome:
        """Do it, from any thread; what ``Children.run`` raises comes out."""
        started = time.monotonic()
        line, done = self.line, self.done

        def run(*arguments: str) -> Ended:
            heard(line.number, shlex.join(Line(line.number, arguments).shown))
            return children.run(arguments, lambda text: heard(line.number, text))

        def failed(ended: Ended, is_new: bool) -> Outcome:
            errors = ended.errors or ("gave no result",)
            seconds = time.monotonic() - started
            return Outcome.failed(line, seconds, *errors, exit_code=ended.exit_code or 1, is_new=is_new)

        if done is not None and done.is_there(children.directory):
            ended = self._asked_again(done, children)
            if ended is not None and ended.exit_code:
                return failed(ended, False)
            if ended is None or (ended.result or {}).get("commit") == done.commit:
                if self.verify_words is None:
                    return Outcome(line, done, False)
                ended = run("verify", "--json", str(done.path), *self.verify_words)
                if ended.exit_code:  # Without a result it could not be compared, and may be right.
                    return failed(ended, ended.result is not None)
                return Outcome(line, replace(done, seconds=time.monotonic() - started, verified=True), True)
        ended = run("convert", "--json", *line.arguments)
        if ended.exit_code or (result := ended.result) is None:
            return failed(ended, True)
        nbytes = (children.directory / result["path"]).stat().st_size
        return Outcome(line, Record(line.shown, 0, time.monotonic() - started, (), result, nbytes), True)

    def _asked_again(self, done: Record, children: Children) -> Ended | None:
        """Return what a conversion would make now of what is done; None where that cannot be another commit."""
        if done.commit is None or any(done.commit in argument for argument in self.line.arguments):
            return None
        return children.run(["convert", "--dry-run", "--json", *self.line.arguments], lambda text: None)


# Does tasks, and gives the outcomes as they come; what still runs when the context is left ends.
Doing = Callable[[Sequence[Task], Heard], AbstractContextManager[Iterator[Outcome]]]
