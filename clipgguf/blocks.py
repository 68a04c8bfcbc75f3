"""Which of a section's blocks there are, by the family's values and by names, and what stands in front of these."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from clipgguf.errors import CheckpointError
from clipgguf.family import Family
from clipgguf.sources import Folder
from clipgguf.table import Prefix, Section


def sizes_in(number: int, values: Mapping[str, Any]) -> dict[str, int]:
    """Return the sizes of a block, by full name, of values that are lists with one for each."""
    lists = {name: value for name, value in values.items() if isinstance(value, list | tuple) and number < len(value)}
    return {name: value[number] for name, value in lists.items() if type(value[number]) is int}


def begun(starts: Iterable[str], tails: Iterable[str], names: Iterable[str]) -> list[int]:
    """Return the numbers that stand for ``{}`` between starts and tails in any name, or 0 where there is no ``{}``."""
    start = "|".join(re.escape(start).replace(r"\{\}", "([0-9]{1,9})") for start in starts)
    pattern = re.compile(f"(?:{start})(?:{'|'.join(map(re.escape, tails))})")
    found = [match for name in names if (match := pattern.fullmatch(name))]
    return sorted({int(next(filter(None, match.groups()), 0)) for match in found})


def numbers(section: Section, family: Family, values: Mapping[str, Any]) -> Sequence[int]:
    """Return the numbers that a section has in the file, by the family's values; [0] where it stands there once.

    None of them where the values do not tell.
    """
    if not section.times:
        return range(1)
    times = values.get(family.size(section.part, section.times))
    return times if isinstance(times, list | tuple) else range(times or 0)


def the_prefix(key: Prefix, names: Mapping[str, Any], where: Folder) -> str | None:
    """Return what stands in front of a landmark, None when it is not there; CheckpointError when it is there twice."""
    found = key.found(names)
    if len(found) > 1:
        raise CheckpointError(
            f"{where}: has tensor {key.landmark!r} after {len(found)} prefixes, {', '.join(map(repr, found))}; "
            "supported is one"
        )
    return found[0] if found else None
