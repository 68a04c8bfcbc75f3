"""What can go wrong with a user's files, as exceptions whose text is ready to be shown."""

import itertools
import re
import reprlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

# How a value is shown: long strings and numbers without their middle, of lists the first items.
_SHORT = reprlib.Repr()
_SHORT.maxlevel = 4
_SHORT.maxlist = _SHORT.maxdict = 12
_SHORT.maxstring = _SHORT.maxlong = _SHORT.maxother = 200
# How much is shown of what a checkpoint can have us say: of a line its beginning and end, of lines some of each kind.
LONGEST_LINE = 1000
MOST_OF_A_KIND = 10
MOST_KINDS = 10
# Text in quotes; an apostrophe inside a word begins none.
_QUOTED = re.compile(r"""(?<!\w)'[^']*'|"[^"]*\"""")

T = TypeVar("T")


class ClipGGUFError(Exception):
    """A request that cannot be carried out, with one line for every reason: its ``problems``.

    Each line says which file or tensor is meant, what is wrong with it, and what would be right.
    """

    def __init__(self, *problems: str) -> None:
        """Take one or more problems, each a line of text."""
        super().__init__(*problems)
        self.problems = problems

    def __str__(self) -> str:
        """Return the problems, one a line; of very many some of each kind."""
        return "\n".join(condensed(self.problems))

    @classmethod
    def raise_all(cls, problems: Iterable[str]) -> None:
        """Raise one error with all the problems, or return when there are none."""
        if found := tuple(problems):
            raise cls(*found)


class ConfigError(ClipGGUFError):
    """A JSON file of the model directory that is missing, unreadable or describes no model that we convert."""


class CheckpointError(ClipGGUFError):
    """A weight file that is missing or damaged, or whose tensors do not fit the configuration."""


class OutputError(ClipGGUFError):
    """The GGUF file cannot be written where it was asked for."""


class UsageError(ValueError):
    """Arguments that make no sense, contradict each other or do not apply to the model; ``options`` has their names."""

    def __init__(self, reason: str, *options: str) -> None:
        """Take the reason, which goes on from the arguments ("is empty"), and their names."""
        super().__init__(reason, *options)
        self.reason = reason
        self.options = options

    def __str__(self) -> str:
        """Return what is wrong in one line."""
        return f"{' and '.join(self.options)} {self.reason}"


@contextmanager
def collect(problems: list[str]) -> Iterator[None]:
    """Add the problems of an error that is raised inside to a list, so that those of the next step are found, too."""
    try:
        yield
    except ClipGGUFError as e:
        problems.extend(e.problems)


def first_few(items: Iterable[T], line: Callable[[T], str]) -> Iterator[str]:
    """Yield a line for each of the first items that all have the same fault, and how many more there are."""
    rest = iter(items)
    yield from map(line, itertools.islice(rest, MOST_OF_A_KIND))
    if more := sum(1 for _ in rest):
        yield f"and {more:,} more like these"


def why_no_file(path: Path) -> str:
    """Return what is wrong with a path that is no regular file."""
    if path.is_symlink() and not path.exists():
        return "is a broken symbolic link"
    return "is no regular file" if path.exists() else "is missing"


def os_reason(error: OSError) -> str:
    """Return the operating system's words for an error, without the path and number that ``str`` adds."""
    return error.strerror or str(error)


def shown(value: object) -> str:
    """Return a value that a file has, as Python writes it, without what is too long or too deeply nested to be read."""
    return _SHORT.repr(value)


def condensed(lines: Iterable[str]) -> list[str]:
    """Return what is shown of many lines: ten of a kind and how many more there are, long lines cut.

    Lines are of one kind when they are the same but for quoted text, names, paths and numbers. What is said ten times
    or less comes first: among hundreds of lines about single tensors, it is the one that tells what is the matter.
    """
    counts: Counter[str] = Counter()
    kept: list[tuple[str, str]] = []
    others = 0
    for line in map(cut, lines):
        kind = _kind(line)
        if kind not in counts and len(counts) == MOST_KINDS:
            others += 1
            continue
        counts[kind] += 1
        if counts[kind] <= MOST_OF_A_KIND:
            kept.append((kind, line))
    shown_lines = [line for kind, line in kept if counts[kind] <= MOST_OF_A_KIND]
    for kind, count in counts.items():
        if (more := count - MOST_OF_A_KIND) > 0:
            shown_lines += [line for of, line in kept if of == kind]
            shown_lines.append(f"and {more:,} more like {'this' if more == 1 else 'these'}")
    if others:
        shown_lines.append(f"and {others:,} more of other kinds")
    return shown_lines


def _kind(line: str) -> str:
    """Return a line's plain words, without what differs from one tensor, file or key to another."""
    return " ".join(word for word in _QUOTED.sub("", line).split() if word.strip(",;:.()").isalpha())


def cut(text: str) -> str:
    """Return a line of text, of a very long one the beginning and the end."""
    if len(text) <= LONGEST_LINE:
        return text
    # A word more in front of it shall not have it cut again.
    half = LONGEST_LINE // 2 - 30
    return f"{text[:half]} [... {len(text) - 2 * half:,} characters ...] {text[-half:]}"
