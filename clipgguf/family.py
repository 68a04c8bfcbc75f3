"""What a family of models is: its tables (``table.py``), and what stands beside them."""

import fnmatch
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from clipgguf.shape import Axis, size_name
from clipgguf.table import Prefix, Section, Types, Value

# What a file may have: towers of these.
PARTS = ("text", "vision", "audio")
# The values that say what the projectors of a file with one for each modality are; the last gives sound.
PROJECTOR_KEYS = ("vision.projector", "audio.projector", "audio.gen_projector")


@dataclass(frozen=True, slots=True)
class Base:
    """What all files of one origin have in common: types, values, and whether axes of length 1 vanish.

    With ``has_card``, the files have all metadata ``general.*`` that the model card and the names give.
    """

    types: tuple[Types, ...]
    values: tuple[Value, ...]
    squeezes: bool
    always_versioned: bool
    has_card: bool = False


@dataclass(frozen=True, slots=True)
class Mends:
    """What ``clipgguf upgrade`` makes right in files of llama.cpp's own converter.

    ``renamed`` are parts of tensors' names, as they are and as readers want them; ``reshaped`` ends of names, and how
    axes of length 1 are added, "n -> n 1 1"; ``added`` values by short name that all models of the family have alike.
    """

    renamed: tuple[tuple[str, str], ...] = ()
    reshaped: tuple[tuple[str, str], ...] = ()
    added: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Family:
    """A family of models, whole.

    ``title`` is its name for people, ``projector`` what llama.cpp knows its files by, as the value ``projector_key``.
    ``left_out`` are regular expressions for the beginnings of names that are never written, and whose files are not
    even opened; ``noted`` of those with a line for the user; ``ignored`` of those that are opened all the same.
    Of a family that sees and hears, ``alone_key`` is the ``projector_key`` of files of one part where that is another,
    ``apart`` has for each part such an expression for the names that are its own, and ``told_by``, for a part that not
    every model has, where config.json has its configuration. ``folders`` has for a part the folder inside the model's
    in which it lies, with a config.json and weights of its own: their names, in all tables, begin with that of the
    folder and a slash. ``unread`` has for a part that no reader runs, and that none minds beside another one, a line
    for the user; it is not written alone.
    ``shared`` are sizes that all parts have in common. ``layouts`` are other sections, of checkpoints with other names.
    ``merge`` is how many patches, along one side, become one token, or the value that is it. ``tokens`` gives how many
    tokens a picture becomes, of so many along a side; 0 where that is not told. ``mends`` are faults of other files.
    """

    title: str
    values: tuple[Value, ...]
    sections: tuple[Section, ...]
    base: Base
    projector: str = ""
    projector_key: str = "projector"
    alone_key: str = ""
    left_out: tuple[str, ...] = ()
    apart: Mapping[str, str] = field(default_factory=dict)
    told_by: Mapping[str, str] = field(default_factory=dict)
    folders: Mapping[str, str] = field(default_factory=dict)
    unread: Mapping[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    noted: tuple[tuple[str, str], ...] = ()
    types: tuple[Types, ...] = ()
    shared: frozenset[str] = frozenset()
    file_prefix: str = "mmproj-"
    description: str = ""
    layouts: tuple[tuple[Section, ...], ...] = ()
    merge: int | str = ""
    tokens: Callable[[int, Mapping[str, Any]], int] = lambda side, _: side**2
    mends: Mends = Mends()

    def in_layout_of(self, names: Mapping[str, Any]) -> "Family":
        """Return the family with the sections of which a checkpoint has most landmarks, by its tensors' names."""
        if not self.layouts:
            return self

        def landmarks(sections: tuple[Section, ...]) -> int:
            prefixes = {section.prefix.root for section in sections if isinstance(section.prefix, Prefix)}
            return sum(bool(prefix.found(names)) for prefix in prefixes)

        return replace(self, sections=max((self.sections, *self.layouts), key=landmarks))

    def of(self, parts: Iterable[str]) -> "Family":
        """Return the family with these of its parts alone."""
        dropped = [part for part in self.parts if part not in parts]
        if not dropped:
            return self

        def kept(sections: tuple[Section, ...]) -> tuple[Section, ...]:
            moved = (replace(s, part=s.also) if s.part in dropped else s for s in sections)
            return tuple(section for section in moved if section.part in parts)

        key = self.projector_key
        if key.partition(".")[0] in dropped:
            key = next(value.name for value in self.values if value.name.endswith(".projector") and value.name != key)
        return replace(
            self,
            sections=kept(self.sections),
            layouts=tuple(map(kept, self.layouts)),
            values=tuple(v for v in self.values if v.part not in dropped and v.name != key),
            projector_key=self.alone_key or key,
            projector=next((value.default for value in self.values if value.name == key), self.projector),
            left_out=(*self.left_out, *(self.apart[part] for part in dropped if part in self.apart)),
            folders={part: folder for part, folder in self.folders.items() if part not in dropped},
        )

    def lacking(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return a line for each part of which none of a checkpoint's tensors is, and that may be left out."""
        found = {part for name in names for part, pattern in self.apart.items() if re.search(pattern, name)}
        lost = [part for part in self.parts if part in self.apart and part not in found]
        rest = [part for part in self.parts if part in found and part not in self.unread]
        return tuple(
            f"no file has a tensor of the {part} tower of {self.title}, such as {self._first_name(part)!r}; "
            f"--{other}-only leaves it out"
            for part in lost
            for other in rest
        )

    def _first_name(self, part: str) -> str:
        """Return what the first tensor of a part is called, as messages have it."""
        section = next(section for section in self.sections if section.part == part)
        prefix = section.prefix
        starts = prefix.spelled(prefix.default) if isinstance(prefix, Prefix) else prefix.split("|")
        return starts[0] + section.rules[0].theirs.partition("|")[0]

    def leaves_out(self, name: str) -> bool:
        """Return whether a checkpoint's tensor is of a part that the file does not have, such as a language model."""
        return _beginning(self.left_out).match(name) is not None

    def ignores(self, name: str) -> bool:
        """Return whether a checkpoint's tensor is known, and not written."""
        return _beginning((*self.ignored, *dict(self.noted))).match(name) is not None

    def notes_on(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return the lines for the user about those of a checkpoint's tensors that are ``noted``."""
        counts = Counter(note for name in names for pattern, note in self.noted if re.match(pattern, name))
        return tuple(note.format(count=count) for note, count in counts.items())

    @property
    def all_values(self) -> tuple[Value, ...]:
        """The values, with those of the base and those that the family has as fields."""
        own = {value.name for value in self.values}
        other = {f"has_{part}" for part in PARTS if part not in self.parts}
        common = (value for value in self.base.values if value.name not in own | other)
        projector = Value(self.projector_key, default=self.projector or None)
        description = Value("description", default=self.description or None)
        return (*common, projector, description, *self.values)

    @property
    def projectors(self) -> tuple[str, ...]:
        """What its files call their projectors: one of the whole file, or one for each modality."""
        told = {value.name: value.default for value in self.all_values}
        names = ("projector",) if self.projector_key == "projector" else PROJECTOR_KEYS
        return tuple(told[name] for name in names if told.get(name))

    @property
    def parts(self) -> tuple[str, ...]:
        """The towers: "text", "vision", "audio"."""
        return tuple(dict.fromkeys(section.part for section in self.sections))

    def type_of(self, name: str, axes: int) -> Types:
        """Return the row of the types for a tensor of the file."""
        rows = (*self.types, *self.base.types)
        return next(row for row in rows if row.axes in (None, axes) and fnmatch.fnmatchcase(name, row.pattern))

    def size(self, part: str, word: str) -> str:
        """Return the full name of a size in a part's shapes."""
        return word if word in self.shared else f"{part}.{word}"

    def sizes_of(self, axes: tuple[Axis, ...], part: str, sizes: Mapping[str, int]) -> dict[str, int]:
        """Return those of the sizes, which are by full name, that are words of a part's axes, by word."""
        words = (size_name(name) for axis in axes for name in axis)
        return {word: sizes[size] for word in words if word and (size := self.size(part, word)) in sizes}


@lru_cache
def _beginning(patterns: tuple[str, ...]) -> "re.Pattern[str]":
    """Return what matches names that begin as any of some patterns says; without any, none does."""
    return re.compile("|".join(patterns) or r"(?!)")
