"""Compare a GGUF file's metadata with what a conversion would write."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from gguf import GGUFValueType

from clipgguf.checkpoint.gguf_file import ARCHITECTURE, MetadataItem
from clipgguf.clip_file import ClipFile
from clipgguf.keys import KEYS
from clipgguf.planning import Plan

# All other general.* are labels, which follow from names, the model card and what was asked for; no reader needs them.
_NO_LABELS = frozenset({ARCHITECTURE, *(KEYS[name].key for name in ("type", "file_type", "quantization_version"))})
# What the torch script does not write and ``clipgguf upgrade`` adds.
_ADDED_BY_UPGRADE = frozenset({KEYS["projector"].key, KEYS["vision.feature_layer"].key})
# How many characters of a value a message shows at most.
_LONGEST = 80


@dataclass(frozen=True, slots=True)
class MetadataDifference:
    """A metadata key that is not as a conversion writes it.

    ``what`` tells what ``expected`` and ``found`` are: with "value" values, of an array those at ``index``; with "type"
    the names of GGUF's value types; with "length" numbers of values in an array. With "missing", the key is not there,
    and ``expected`` is the whole value.
    """

    key: str
    what: Literal["missing", "type", "length", "value"]
    expected: Any
    found: Any = None
    index: int | None = None

    @property
    def problem(self) -> str:
        """The fault in words."""
        where = f"metadata key {self.key!r}"
        if self.what == "missing":
            return f"{where} is missing, should be {_text(self.expected)}"
        if self.what == "type":
            return f"{where} is of type {self.found}, should be {self.expected}"
        if self.what == "length":
            return f"{where} has {self.found:,} values, should have {self.expected:,}"
        at = "" if self.index is None else f" at index {self.index:,}"
        return f"{where} is {_text(self.found)}{at}, should be {_text(self.expected)}"


def compare_metadata(file: ClipFile, plan: Plan) -> tuple[tuple[MetadataDifference, ...], tuple[str, ...]]:
    """Return how a file's metadata differs from a plan's, and notes about what matters to no reader."""
    expected = plan.whole_metadata
    differences: list[MetadataDifference] = []
    notes: list[str] = []
    for item in expected:
        found = list(_differences(item, file.items.get(item.key)))
        if _is_label(item.key):
            notes += [difference.problem for difference in found]
        else:
            differences += found
    missing = {difference.key for difference in differences if difference.what == "missing"}
    if missing and missing <= _ADDED_BY_UPGRADE and file.module in ("clip", "llava"):
        notes.append(f"clipgguf upgrade adds {' and '.join(sorted(missing))}")
    known = {item.key for item in expected}
    notes += [f"metadata key {key!r} is one that no conversion writes" for key in file.items if key not in known]
    return tuple(differences), tuple(notes)


def _is_label(key: str) -> bool:
    return key.startswith("general.") and key not in _NO_LABELS


def _differences(expected: MetadataItem, found: MetadataItem | None) -> Iterator[MetadataDifference]:
    key = expected.key
    if found is None:
        yield MetadataDifference(key, "missing", expected.plain())
    elif found.type_name != expected.type_name:
        yield MetadataDifference(key, "type", expected.type_name, found.type_name)
    elif expected.is_array:
        if len(found.value) != len(expected.value):
            yield MetadataDifference(key, "length", len(expected.value), len(found.value))
        pairs = zip(_stored(expected), _stored(found), strict=False)
        index = next((index for index, (should, is_) in enumerate(pairs) if should != is_), None)
        if index is not None:
            yield MetadataDifference(key, "value", expected.plain()[index], found.plain()[index], index)
    elif _stored(expected) != _stored(found):
        yield MetadataDifference(key, "value", expected.plain(), found.plain())


def _stored(item: MetadataItem) -> Any:
    """Return the value, or the list of values, as it can be compared: a FLOAT32 as the bits that a file has of it."""
    if item.value_type != GGUFValueType.FLOAT32:
        return item.value
    bits: Any = np.asarray(item.value, "<f4").view("<u4").tolist()
    return bits


def _text(value: Any) -> str:
    if isinstance(value, list) and len(value) > 8:
        return f"an array of {len(value):,} values"
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
