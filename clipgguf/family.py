"""What a family of models is: tables of its metadata, its tensors and their element types.

A table says what the checkpoint has and what the file shall have, so that it serves both ways: to convert a checkpoint
(``matching.py``), and to judge a file (``holding.py``).
"""

import fnmatch
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from clipgguf.shape import Axis, Pattern, parse, size_name
from clipgguf.tensor import Then

# Element types by the names that ggml has for them; OUTTYPE is the one that was asked for.
F32, F16, OUTTYPE = "F32", "F16", "outtype"
# Of a Section that stands there for every number that any of its tensors has.
BEGUN = "begun"
# What a Value may be of besides the types of JSON.
INTEGERS = list[int]
SIDE = tuple[int, int]


@dataclass(frozen=True, slots=True)
class PerModel:
    """A Value's default where models of several kinds have one family: by model_type, and that of all others."""

    other: Any
    by_type: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Value:
    """A metadata value by its short name (``keys.py``), or only a size of shapes where it has no key there.

    It is what config.json has at ``source``, a dotted path or several separated by ``|``, or what the function
    ``source`` gives of the Inputs; ``default`` where that is missing or None. Paths that begin with ``processor.`` are
    of the image processor's file. Without a ``source`` it is the default itself. ``of`` makes it from the values before
    it, so that it can be told from a file as well; a ValueError says what is wrong with them. Without a default the
    config must have it. It must be of the default's type, or of ``kind``: an int is positive and of 32 bits, a float
    positive; INTEGERS are a list; SIDE is an int, or the two sides of a square in a list. A default may be
    ``PerModel``.

    It is not written when it is None or equal to ``unless``. With ``told_by_tensor`` the tensors overrule it. ``told``
    makes it from all values that a file has, where the file has it under another name.
    """

    name: str
    source: str | Callable[[Any], Any] | None = None
    default: Any = None
    of: Callable[[Mapping[str, Any]], Any] | None = None
    kind: Any = None
    unless: Any = None
    told_by_tensor: bool = False
    told: Callable[[Mapping[str, Any]], Any] | None = None

    @property
    def part(self) -> str:
        """The tower that it belongs to, empty for the whole file."""
        return self.name.rpartition(".")[0]

    def default_for(self, model_type: Any) -> Any:
        """Return the default of a config.json with this model_type."""
        if isinstance(self.default, PerModel):
            return self.default.by_type.get(model_type, self.default.other)
        return self.default


@dataclass(frozen=True, slots=True)
class Prefix:
    """What stands in front of a part's names: whatever stands in front of one of them, its landmark.

    What comes after, ``tail``, may have several spellings, separated by ``|``.
    """

    landmark: str
    # What messages put there when no tensor is called like the landmark.
    default: str = ""
    tail: str = ""

    def __add__(self, tail: str) -> "Prefix":
        """Return the prefix with something after it."""
        return Prefix(self.landmark, self.default, self.tail + tail)

    def spelled(self, prefix: str) -> list[str]:
        """Return every spelling of a prefix that was found with what comes after it."""
        return [prefix + tail for tail in self.tail.split("|")]

    @property
    def root(self) -> "Prefix":
        """The prefix without what comes after it."""
        return Prefix(self.landmark, self.default)

    def found(self, names: Mapping[str, Any]) -> list[str]:
        """Return all that stands in front of the landmark in some names, without the tail."""
        return [name.removesuffix(self.landmark) for name in names if name.endswith(self.landmark)]


@dataclass(frozen=True, slots=True)
class Rule:
    """A tensor: its name in the checkpoint, its name in the file, and its shape; both names after a section's prefix.

    Several spellings of the checkpoint's name are separated by ``|``. Several names in the file cut the leading axis of
    the shape's right side; a tensor without any is known, and not written. ``then`` makes the file's values from the
    checkpoint's. ``becomes`` is the shape that they have where that is another one, or that a file is held to where it
    tells less. ``otherwise`` is the rule where no tensor has this one's name. Of an ``optional`` tensor that stands in
    every block, all are there or none. With ``stack``, tensors whose names have numbers for ``{}`` are one in the file,
    along an axis before the others; how many is the size of that name.
    """

    theirs: str
    ours: str | tuple[str, ...]
    shape: str
    then: Then | None = None
    becomes: str = ""
    optional: bool = False
    otherwise: "Rule | None" = None
    stack: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """The names in the file."""
        return (self.ours,) if isinstance(self.ours, str) else self.ours

    @property
    def pattern(self) -> Pattern:
        """The shape, read."""
        return parse(self.shape)

    @property
    def written(self) -> tuple[Axis, ...]:
        """The axes in the file."""
        return parse(self.becomes).written if self.becomes else self.pattern.written


@dataclass(frozen=True, slots=True)
class Section:
    """Rules whose names begin alike, in the order of the file.

    With ``times``, the value of that name says how often the section stands there, with ``{}`` in the prefixes for the
    number; of these, as many are written as the size ``stored`` says, and the others are left out. Where the value is a
    list, these are the numbers in the file; the checkpoint counts from 0, unless it has the ``same_numbers``. Where it
    is true or false, the section is there once or not at all, and a file that does not tell has all of its tensors or
    none. BEGUN is for every number that any of its tensors has, in the checkpoint and in the file, and no number may be
    left out.

    A word in the rules' shapes whose value is a list has a size for each block. Words in ``own`` are sizes of each
    block, too, but of those that tensors tell; sections with the same ``ours`` have them in common. ``order`` are the
    file's names in order where that is not the rules'.
    """

    prefix: Prefix | str
    ours: str
    rules: tuple[Rule, ...]
    times: str = ""
    stored: str = ""
    part: str = "vision"
    order: tuple[str, ...] = ()
    own: tuple[str, ...] = ()
    same_numbers: bool = False

    def rules_of(self, number: int) -> tuple[Rule, ...]:
        """Return the rules of a block, in whose shapes its own sizes have the block's name besides."""
        if not self.own:
            return self.rules
        block = re.sub(r"\W", "_", self.ours.replace("{}", str(number)))
        own = re.compile(rf"\b({'|'.join(self.own)})\b")
        return tuple(replace(rule, shape=own.sub(rf"\1_{block}", rule.shape)) for rule in self.rules)


@dataclass(frozen=True, slots=True)
class Types:
    """The element type of tensors whose names in the file fit a pattern, of ``axes`` axes where that is given.

    ``in_f32`` and ``in_f16`` hold for files of these outtypes. ``note`` is a line for the user where the type is
    another than was asked for; with ``{name}`` in it, one for each tensor.
    """

    pattern: str
    type: str
    axes: int | None = None
    in_f32: str | None = None
    in_f16: str | None = None
    note: str = ""

    def for_outtype(self, outtype: str) -> str:
        """Return the type in a file of an outtype ("F32", "F16", ...)."""
        found = {F32: self.in_f32, F16: self.in_f16}.get(outtype) or self.type
        return outtype if found == OUTTYPE else found


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
    left_out: tuple[str, ...] = ()
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

    def leaves_out(self, name: str) -> bool:
        """Return whether a checkpoint's tensor is of a part that the file does not have, such as a language model."""
        return re.match("|".join(self.left_out) or r"(?!)", name) is not None

    def ignores(self, name: str) -> bool:
        """Return whether a checkpoint's tensor is known, and not written."""
        return any(re.match(pattern, name) for pattern in (*self.ignored, *dict(self.noted)))

    def notes_on(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return the lines for the user about those of a checkpoint's tensors that are ``noted``."""
        counts = Counter(note for name in names for pattern, note in self.noted if re.match(pattern, name))
        return tuple(note.format(count=count) for note, count in counts.items())

    @property
    def all_values(self) -> tuple[Value, ...]:
        """The values, with those of the base and those that the family has as fields."""
        own = {value.name for value in self.values}
        projector = Value(self.projector_key, default=self.projector or None)
        description = Value("description", default=self.description or None)
        return (*(v for v in self.base.values if v.name not in own), projector, description, *self.values)

    @property
    def parts(self) -> tuple[str, ...]:
        """The towers: "text", "vision", "audio"."""
        return tuple(dict.fromkeys(section.part for section in self.sections))

    def type_of(self, name: str, axes: int) -> Types:
        """Return the row of the types for a tensor of the file."""
        rows = (row for row in (*self.types, *self.base.types) if row.axes in (None, axes))
        return next(row for row in rows if fnmatch.fnmatchcase(name, row.pattern))

    def size(self, part: str, word: str) -> str:
        """Return the full name of a size in a part's shapes."""
        return word if word in self.shared else f"{part}.{word}"

    def sizes_of(self, axes: tuple[Axis, ...], part: str, sizes: Mapping[str, int]) -> dict[str, int]:
        """Return those of the sizes, which are by full name, that are words of a part's axes, by word."""
        words = (size_name(name) for axis in axes for name in axis)
        return {word: sizes[size] for word in words if word and (size := self.size(part, word)) in sizes}
