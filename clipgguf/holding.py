"""Hold a GGUF file's tensors against a family's tables, by the names and shapes that the tables have for the file."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from clipgguf.blocks import begun, numbers, sizes_in
from clipgguf.family import Family
from clipgguf.keys import KEYS
from clipgguf.shape import lengths, shape_of, size_name, squeeze
from clipgguf.table import Section

# So many missing tensors are looked for: metadata can tell of a million more than are there.
MOST_MISSING = 1000


@dataclass(slots=True)
class Held:
    """What a file lacks of a family's tensors, and which have another shape: name, shape, and the right one."""

    missing: list[str] = field(default_factory=list)
    misfits: list[tuple[str, tuple[int, ...], tuple[int | None, ...]]] = field(default_factory=list)
    # There may be more missing than are named.
    is_cut: bool = False


def values_of(family: Family, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return a family's values by short name, those that a file's metadata, by key, tells.

    Where it does not, they are as readers take them; what is not known so is not among them.
    """
    values: dict[str, Any] = {}
    for value in family.all_values:
        found = KEYS[value.name].read(metadata) if value.name in KEYS else None
        if found is None and value.of is not None:
            try:
                found = value.of(values)
            except (KeyError, ValueError, ArithmeticError):  # The file does not tell what it is made of.
                found = None
        if found is None:
            found = value.unless
        if found is not None:
            values[value.name] = found
    for value in family.all_values:
        if value.told is not None:
            with suppress(KeyError, ValueError, ArithmeticError, TypeError):
                values[value.name] = value.told(values)
    return values


def hold(family: Family, shapes: Mapping[str, tuple[int, ...]], values: Mapping[str, Any]) -> Held:
    """Hold a file's tensors, their shapes by name, against a family's tables; ``values`` are what the file tells.

    Of a part of which the file does not tell how often it stands there, what is begun must be whole. Of an optional
    tensor that some blocks have, all must.
    """
    held = Held()
    sizes = {name: value for name, value in values.items() if type(value) is int}
    for section in family.sections:
        whole = replace(section, times=section.stored or section.times)
        there = numbers(whole, family, values)
        if not there and values.get(family.size(section.part, section.times)) is None:
            there = begun([section.ours], [name for rule in section.rules for name in rule.names], shapes)
        needed = _in_some_blocks(section, there, shapes)
        for number in there:
            sizes |= sizes_in(number, values)
            _hold_section(held, family, section, number, shapes, sizes, needed)
            if len(held.missing) > MOST_MISSING:
                held.is_cut = True
                return held
    return held


def _in_some_blocks(section: Section, there: Sequence[int], shapes: Mapping[str, tuple[int, ...]]) -> set[str]:
    """Return the names in the file, after a section's prefix, of optional tensors that any of its blocks has."""
    names = [name for rule in section.rules if rule.optional for name in rule.names]
    return {name for name in names if any(section.ours.replace("{}", str(number)) + name in shapes for number in there)}


def _hold_section(
    held: Held,
    family: Family,
    section: Section,
    number: int,
    shapes: Mapping[str, Any],
    sizes: dict[str, int],
    needed: set[str],
) -> None:
    """Hold one block; ``needed`` are the optional names that it must have, since others have them."""
    for rule in section.rules_of(number):
        axes = (*(((rule.stack,),) if rule.stack else ()), *rule.written[len(rule.names) > 1 :])
        for tail in rule.names:
            name = section.ours.replace("{}", str(number)) + tail
            shape = shapes.get(name)
            if shape is None:
                if not rule.optional or tail in needed:
                    held.missing.append(name)
                continue
            known = family.sizes_of(axes, section.part, sizes)
            right = shape_of(axes, known)
            if family.base.squeezes:
                wanted = tuple(axis for axis, length in zip(axes, right, strict=True) if length != 1)
                found = lengths(wanted, squeeze(shape), known)
            else:
                found = lengths(axes, shape, known)
            if found is None:
                held.misfits.append((name, shape, right))
                continue
            for part, length in found.items():
                if (word := size_name(part)) is not None:
                    sizes.setdefault(family.size(section.part, word), length)
