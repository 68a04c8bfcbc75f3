"""What can go wrong with a user's files, as exceptions whose text is ready to be shown."""

import reprlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

# How much of a value is shown: long strings and numbers without their middle, of lists the first items.
_SHORT = reprlib.Repr()
_SHORT.maxlevel = 4
_SHORT.maxlist = _SHORT.maxdict = 12
_SHORT.maxstring = _SHORT.maxlong = _SHORT.maxother = 200


# Nobody reads more lines of one kind, and a terminal would be busy with them for minutes.
MOST_OF_A_KIND = 10

T = TypeVar("T")


class ClipGGUFError(Exception):
    """A request that cannot be carried out, with one line for every reason.

    Each line says which file or tensor is meant, what is wrong with it, and what would be right.
    """

    def __init__(self, *problems: str) -> None:
        """Take one or more problems, each a line of text."""
        super().__init__(*problems)
        self.problems = problems

    def __str__(self) -> str:
        """Return the problems, one a line."""
        return "\n".join(self.problems)

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


@contextmanager
def collect(problems: list[str]) -> Iterator[None]:
    """Add the problems of an error that is raised inside to a list, so that those of the next step are found, too."""
    try:
        yield
    except ClipGGUFError as e:
        problems.extend(e.problems)


def first_few(items: Iterable[T], line: Callable[[T], str]) -> Iterator[str]:
    """Yield a line for each of the first items that all have the same fault, and how many more there are."""
    count = 0
    for count, item in enumerate(items, 1):
        if count <= MOST_OF_A_KIND:
            yield line(item)
    if count > MOST_OF_A_KIND:
        yield f"and {count - MOST_OF_A_KIND:,} more like these"


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
