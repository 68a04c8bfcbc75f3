"""Hold a checkpoint's tensors against a family's tables: every name known, every shape right, and what is written."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from clipgguf.errors import CheckpointError, ConfigError, collect
from clipgguf.family import Family, Prefix, Rule, Section, numbers
from clipgguf.shape import lengths, shape_of, shape_text, size_name, words
from clipgguf.sources import File, Folder
from clipgguf.tensor import DTYPES, Joined, Tensor, View


@dataclass(frozen=True, slots=True)
class Output:
    """A tensor of the file: its name, where its values come from, and its shape, row-major."""

    name: str
    source: Tensor
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Match:
    """A checkpoint that fits a family.

    ``outputs`` are in the order of the file, ``sizes`` what the shapes' words turned out to be, by full name,
    ``origins`` what says so, in words, and ``prefixes`` what stood in front of the names. ``warnings`` and ``notes``
    are lines for the user.
    """

    outputs: tuple[Output, ...]
    sizes: Mapping[str, int]
    origins: Mapping[str, str]
    prefixes: tuple[str, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]


def match(
    family: Family,
    tensors: Mapping[str, View],
    values: Mapping[str, Any],
    *,
    where: Folder,
    config_name: str,
    ignore_unknown: bool = False,
) -> Match:
    """Find a family's tensors in a checkpoint.

    ``values`` are the family's by short name; those that are sizes bind the words of the shapes, and a word that no
    value binds has the size of the first tensor that has it. ``where`` and ``config_name`` are what messages call the
    checkpoint and its configuration.

    Raises CheckpointError with all that is wrong: tensors that are missing, unknown, of a wrong shape or dtype.
    """
    return _Matching(family, tensors, values, where, config_name).run(ignore_unknown)


def refuse_quantized(config: Mapping[str, Any], path: File, tensors: Iterable[View]) -> None:
    """Raise ConfigError when a config.json says that the checkpoint is quantized, and one of the wanted tensors is.

    Often the language model alone is: its tower and its projector can be converted.
    """
    quantization = config.get("quantization_config")
    if not quantization:
        return
    tensor = next((t for t in tensors if t.dtype not in (*DTYPES, "I64")), None)
    if tensor is not None:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else None
        by = method if isinstance(method, str) and method else "quantization_config"
        raise ConfigError(
            f"{path}: the checkpoint is quantized ({by}; {tensor.name!r} is of type {tensor.dtype}), supported are "
            f"weights in {', '.join(DTYPES)}"
        )


def refuse_or_warn(unknown: list[str], ignore_unknown: bool) -> tuple[str, ...]:
    """Raise CheckpointError for lines about unknown tensors, or return them as warnings where they shall be ignored."""
    if not ignore_unknown:
        CheckpointError.raise_all(f"{line}; --ignore-unknown leaves it out" for line in unknown)
    return tuple(f"{line}; it is left out" for line in unknown)


@dataclass(slots=True)
class _Matching:
    """One run of ``match``: what is known so far, and what is wrong."""

    family: Family
    tensors: Mapping[str, View]
    values: Mapping[str, Any]
    where: Folder
    config_name: str
    sizes: dict[str, int] = field(default_factory=dict)
    # What asks for a size: the configuration, or the first tensor that had it.
    origins: dict[str, str] = field(default_factory=dict)
    prefixes: dict[Prefix, str] = field(default_factory=dict)
    # Of which no tensor is there by which they could be told.
    lost: set[Prefix] = field(default_factory=set)
    used: set[str] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)

    @property
    def all_values(self) -> Mapping[str, Any]:
        """The family's values, and the sizes that tensors have told."""
        return {**self.sizes, **self.values}

    def run(self, ignore_unknown: bool) -> Match:
        family = self.family
        for value in family.all_values:
            found = self.values.get(value.name)
            if type(found) is int and not value.told_by_tensor:
                self.sizes[value.name] = found
                self.origins[value.name] = self.config_name
        if not self.tensors:
            parts = " and ".join(family.parts)
            raise CheckpointError(f"{self.where}: no file has a tensor of the {parts} tower of {family.title}")
        CheckpointError.raise_all(self._too_deep())
        self._find_prefixes()
        outputs = [output for section in family.sections for output in self._section(section)]
        unknown = [
            f"{tensor.file}: tensor {tensor.name!r} is unknown, {family.title} of this configuration has no such tensor"
            for name, tensor in self.tensors.items()
            if not (self.lost or name in self.used or family.leaves_out(name) or family.ignores(name))
        ]
        warnings: tuple[str, ...] = ()
        with collect(self.problems):
            warnings = refuse_or_warn(unknown, ignore_unknown)
        CheckpointError.raise_all(self.problems)
        notes = Counter(note for name in self.tensors for note in self._notes_for(name))
        lines = (note.format(count=count) for note, count in notes.items())
        return Match(tuple(outputs), self.sizes, self.origins, tuple(self.prefixes.values()), warnings, tuple(lines))

    def _notes_for(self, name: str) -> list[str]:
        return [note for pattern, note in self.family.noted if re.match(pattern, name)]

    def _too_deep(self) -> Iterator[str]:
        # A config can ask for four thousand million blocks; they are not worth a line each.
        for section in self.family.sections:
            times = len(numbers(section, self.family, self.all_values))
            if times > len(self.tensors):
                yield (
                    f"{self.where}: {self.config_name} asks for {times:,} blocks in {section.part}_model, "
                    f"the whole checkpoint has {len(self.tensors):,} tensors"
                )

    def _find_prefixes(self) -> None:
        for section in self.family.sections:
            if not isinstance(section.prefix, Prefix):
                continue
            key = section.prefix.root
            if key in self.prefixes or key in self.lost:
                continue
            found = key.found(self.tensors)
            if len(found) > 1:
                prefixes = ", ".join(map(repr, found))
                raise CheckpointError(
                    f"{self.where}: "
                    f"has tensor {key.landmark!r} after {len(found)} prefixes, {prefixes}; supported is one"
                )
            if found or any(name.startswith(key.default) for name in self.tensors):
                self.prefixes[key] = found[0] if found else key.default
            else:
                self.lost.add(key)
                self.problems.append(
                    f"{self.where}: no file has a tensor {key.landmark!r} after any prefix, so that the names beside "
                    "it cannot be told"
                )

    def _section(self, section: Section) -> Iterator[Output]:
        if isinstance(section.prefix, Prefix):
            key = section.prefix.root
            if key in self.lost:
                return
            starts = section.prefix.spelled(self.prefixes[key])
        else:
            starts = section.prefix.split("|")
        ours = numbers(section, self.family, self.all_values)
        stored = self.sizes[self.family.size(section.part, section.stored)] if section.stored else len(ours)
        self.problems.extend(self._now_and_then(section, starts, stored))
        for number, our_number in enumerate(ours):
            begins = [start.replace("{}", str(number)) for start in starts]
            if number >= stored:
                # Left out, so that it need not be there.
                tails = [tail for rule in section.rules for tail in rule.theirs.split("|")]
                self.used.update(start + tail for start in begins for tail in tails)
                continue
            found = [pair for rule in section.rules for pair in self._rule(rule, section, begins)]
            for name, (source, shape) in section.ordered(found):
                yield Output(section.ours.replace("{}", str(our_number)) + name, source, shape)

    def _now_and_then(self, section: Section, starts: list[str], stored: int) -> Iterator[str]:
        """Yield what is wrong with optional tensors that some of a section's blocks have and others have not."""
        for rule in section.rules if stored > 1 else ():
            if not rule.optional:
                continue
            names = [
                [start.replace("{}", str(number)) + theirs for start in starts for theirs in rule.theirs.split("|")]
                for number in range(stored)
            ]
            missing = [spellings[0] for spellings in names if not self.tensors.keys() & spellings]
            if 0 < len(missing) < stored:
                yield f"{self.where}: no file has tensor {missing[0]!r}, which other blocks have"

    def _rule(
        self, rule: Rule, section: Section, starts: list[str]
    ) -> Iterator[tuple[str, tuple[Tensor, tuple[int, ...]]]]:
        """Yield what becomes of one rule's tensor: names after the section's prefix, sources and shapes."""
        names = [start + theirs for start in starts for theirs in rule.theirs.split("|")]
        name = next((name for name in names if name in self.tensors), None)
        if name is None and rule.otherwise is not None:
            yield from self._rule(rule.otherwise, section, starts)
            return
        known = self._known(rule, section.part)
        pattern = rule.pattern
        if name is None:
            if not rule.optional:
                self.problems.append(
                    f"{self.where}: no file has tensor {names[0]!r}, {self.config_name} asks for it with shape "
                    f"{shape_text(shape_of(pattern.stored, known))}"
                )
            return
        tensor = self.tensors[name]
        self.used.add(name)
        if tensor.dtype not in DTYPES:
            self.problems.append(
                f"{tensor.file}: tensor {tensor.name!r} is of type {tensor.dtype}, supported are {', '.join(DTYPES)}"
            )
        parts = lengths(pattern.stored, tensor.shape, known)
        if parts is None:
            self.problems.append(self._misfit(rule, section.part, tensor, known))
            return
        for part, length in parts.items():
            if (word := size_name(part)) is not None:
                size, own = self.family.size(section.part, word), f"{section.part}.{word}"
                origin = f"tensor {tensor.name!r} of shape {shape_text(tensor.shape)}"
                if size not in self.sizes:
                    self.sizes[size], self.origins[size] = length, origin
                # Of a size that the towers share, each has a tensor of its own.
                self.origins.setdefault(own, origin)
        arrangements = tensor.rearranged(pattern, parts, len(rule.names))
        for ours, (shape, view) in zip(rule.names, arrangements, strict=True):
            if rule.then is None:
                yield ours, (view, shape)
                continue
            try:
                made = rule.then(view, shape, self.all_values)
            except ValueError as e:
                self.problems.append(f"{tensor.file}: {e}")
                continue
            yield ours, (made, shape if isinstance(made, Joined) or not rule.becomes else made.shape)

    def _known(self, rule: Rule, part: str) -> dict[str, int]:
        """Return the sizes that are known of a rule's words."""
        sizes = {word: self.sizes.get(self.family.size(part, word)) for word in words(rule.pattern.stored)}
        return {word: size for word, size in sizes.items() if size is not None}

    def _misfit(self, rule: Rule, part: str, tensor: View, known: Mapping[str, int]) -> str:
        where = f"{tensor.file}: tensor {tensor.name!r} has shape {shape_text(tensor.shape)}"
        if 0 in tensor.shape:
            return f"{where}, no axis should be of length 0"
        # The configuration asks if what it says is enough to contradict the shape, else a tensor that was there first.
        full = {word: self.family.size(part, word) for word in known}
        configured = {word: size for word, size in known.items() if self.origins[full[word]] == self.config_name}
        asks = self.config_name
        if lengths(rule.pattern.stored, tensor.shape, configured) is not None:
            asks = next(self.origins[full[word]] for word in known if word not in configured)
        return f"{where}, {asks} asks for {shape_text(shape_of(rule.pattern.stored, known))}"
