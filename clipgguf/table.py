"""The rows of a family's tables: of its metadata, its tensors and their element types.

A table says what the checkpoint has and what the file shall have, so that it serves both ways: to convert a checkpoint
(``matching.py``), and to judge a file (``holding.py``).
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from clipgguf.shape import Axis, Pattern, parse
from clipgguf.tensor import Made, Then

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
    of the image processor's file, those after ``FOLDER/`` of the config.json of a folder inside the model's. Without a
    ``source`` it is the default itself. ``of`` makes it from the values before it, so that it can be told from a file
    as well; a ValueError says what is wrong with them. Without a default the config must have it. It must be of the
    default's type, or of ``kind``: an int is positive and of 32 bits, a float positive; INTEGERS are a list; SIDE is an
    int, or the two sides of a square in a list. A default may be ``PerModel``.

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
    checkpoint's; those of the tensors ``beside``, which are of the same shape or of ``beside_shape``, it is given as
    well, as they are stored.
    ``becomes`` is the shape in the file where that is another one, or that a file is held to where it tells less.
    ``otherwise`` is the rule where no tensor has this one's name. Of an ``optional`` tensor that stands in every block,
    all are there or none. With ``stack``, tensors whose names have numbers for ``{}`` are one in the file, along an
    axis before the others; how many is the size of that name. They may differ in how long they are where that is a
    value, the list ``padded``, which they tell: zeros follow the shorter ones' rows. What is ``made`` of the family's
    values alone no checkpoint has.
    """

    theirs: str
    ours: str | tuple[str, ...]
    shape: str
    then: Then | None = None
    beside: tuple[str, ...] = ()
    beside_shape: str = ""
    becomes: str = ""
    optional: bool = False
    otherwise: "Rule | None" = None
    stack: str = ""
    padded: str = ""
    made: Made | None = None

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

    @property
    def length(self) -> str:
        """The word for how long the file's tensor is, which those that it ``padded`` have each for themselves."""
        ((word,), *_) = self.pattern.written
        return word

    def each(self, count: int) -> "list[Rule]":
        """Return the rules of the tensors of which one is stacked."""

        def one(number: int) -> Rule:
            theirs, *beside = (name.replace("{}", str(number)) for name in (self.theirs, *self.beside))
            return replace(self, theirs=theirs, beside=tuple(beside), stack="")

        rules = [one(number) for number in range(count)]
        if not self.padded:
            return rules
        length = re.compile(rf"\b{self.length}\b")
        return [replace(rule, shape=length.sub(rf"\g<0>_{n}", rule.shape)) for n, rule in enumerate(rules)]


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
    file's names in order where that is not the rules'. ``also`` is another part for which readers ask for it.
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
    also: str = ""

    @property
    def tails(self) -> list[str]:
        """The checkpoint's names in all spellings, after the prefix."""
        names = [name for rule in self.rules for name in (rule.theirs, *rule.beside)]
        return [tail for name in names for tail in name.split("|")]

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
