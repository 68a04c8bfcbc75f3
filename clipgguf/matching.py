"""Hold a checkpoint's tensors against a family's tables: every name known, every shape right, and what is written."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from clipgguf.blocks import begun, numbers, sizes_in, the_prefix
from clipgguf.errors import CheckpointError
from clipgguf.family import Family
from clipgguf.shape import Pattern, lengths, parse, shape_of, shape_text, size_name, with_ones_of
from clipgguf.sources import Folder
from clipgguf.table import BEGUN, Prefix, Rule, Section
from clipgguf.tensor import DTYPES, Joined, Tensor, View, padded


@dataclass(frozen=True, slots=True)
class Output:
    """A tensor of the file: its name, where its values come from, and its shape, row-major."""

    name: str
    source: Tensor
    shape: tuple[int, ...]


@dataclass(slots=True)
class Match:
    """A checkpoint that is held against a family; ``where`` and ``config_name`` are what messages call it.

    ``values`` are the family's by short name, ``strays`` tensors beside, which are unknown whatever their names.
    ``sizes`` are what the shapes' words turned out to be, by full name, ``origins`` what says so: the configuration, or
    the first tensor that had it. ``outputs`` are in the order of the file, ``prefixes`` what stands in front of names,
    and ``lost`` those of which no tensor is there by which they could be told.
    """

    family: Family
    tensors: Mapping[str, View]
    values: Mapping[str, Any]
    where: Folder
    config_name: str
    strays: tuple[View, ...] = ()
    sizes: dict[str, int] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    prefixes: dict[Prefix, str] = field(default_factory=dict)
    lost: set[Prefix] = field(default_factory=set)
    used: set[str] = field(default_factory=set)
    # Of the sections that have as many blocks as are begun: their numbers by what stands in front.
    begun: dict[str, set[int]] = field(default_factory=dict)
    # The values that are told by tensors which are padded: how long each of them is.
    told: dict[str, list[int]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    outputs: tuple[Output, ...] = ()
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def all_values(self) -> Mapping[str, Any]:
        """The family's values, and the sizes that tensors have told."""
        return {**self.sizes, **self.values}

    def find(self, ignore_unknown: bool) -> None:
        """Find all tensors.

        The values that are sizes bind the words of the shapes, and a word that no value binds has the size of the first
        tensor that has it. Raises CheckpointError with all that is wrong: tensors that are missing, unknown, of a wrong
        shape or dtype.
        """
        family = self.family
        bound = {value.name for value in family.all_values if not value.told_by_tensor}
        self.sizes |= {name: value for name, value in self.values.items() if name in bound and type(value) is int}
        lists = {name for name, value in self.values.items() if isinstance(value, list)}
        self.origins |= dict.fromkeys((*self.sizes, *lists), self.config_name)
        if not self.tensors:
            parts = " and ".join(family.parts)
            raise CheckpointError(f"{self.where}: no file has a tensor of the {parts} tower of {family.title}")
        CheckpointError.raise_all(f"{self.where}: {line}" for line in family.lacking(self.tensors))
        # A config can ask for four thousand million blocks; they are not worth a line each.
        CheckpointError.raise_all(
            f"{self.where}: {self.config_name} asks for {times:,} blocks in {section.part}_model, the whole checkpoint "
            f"has {len(self.tensors):,} tensors"
            for section in family.sections
            if (times := len(numbers(section, self.family, self.all_values))) > len(self.tensors)
        )
        self._find_prefixes()
        self.outputs = tuple(output for section in family.sections for output in self._section(section))
        self.problems.extend(self._gaps())
        rest = [
            tensor
            for name, tensor in self.tensors.items()
            if not (self.lost or name in self.used or family.leaves_out(name) or family.ignores(name))
        ]
        unknown = [
            f"{tensor.file}: tensor {tensor.name!r} is unknown, {family.title} of this configuration has no such tensor"
            for tensor in (*rest, *self.strays)
        ]
        if not ignore_unknown:
            self.problems += [f"{line}; --ignore-unknown leaves it out" for line in unknown]
        CheckpointError.raise_all(dict.fromkeys(self.problems))
        self.notes = family.notes_on(self.tensors)
        self.warnings = tuple(f"{line}; it is left out" for line in unknown)

    def _find_prefixes(self) -> None:
        prefixes = [section.prefix for section in self.family.sections]
        for key in dict.fromkeys(prefix.root for prefix in prefixes if isinstance(prefix, Prefix)):
            found = the_prefix(key, self.tensors, self.where)
            if found is not None or any(name.startswith(key.default) for name in self.tensors):
                self.prefixes[key] = key.default if found is None else found
            else:
                self.lost.add(key)
                self.problems.append(
                    f"{self.where}: no file has a tensor {key.landmark!r} after any prefix, so that the names beside "
                    f"it cannot be told"
                )

    def _section(self, section: Section) -> Iterator[Output]:
        if isinstance(section.prefix, str):
            starts = section.prefix.split("|")
        elif section.prefix.root in self.lost:
            return
        else:
            starts = section.prefix.spelled(self.prefixes[section.prefix.root])
        if section.times == BEGUN:
            yield from self._begun(section, starts)
            return
        ours = numbers(section, self.family, self.all_values)
        stored = self.sizes[self.family.size(section.part, section.stored)] if section.stored else len(ours)
        self.problems.extend(self._now_and_then(section, starts, ours if section.same_numbers else range(stored)))
        for number, our_number in enumerate(ours):
            theirs = our_number if section.same_numbers else number
            begins = [start.replace("{}", str(theirs)) for start in starts]
            if number >= stored:
                # Left out, so that it need not be there.
                self.used.update(start + tail for start in begins for tail in section.tails)
                continue
            self.sizes |= sizes_in(our_number, self.values)
            found = [output for rule in section.rules_of(our_number) for output in self._rule(rule, section, begins)]
            if section.order:
                found.sort(key=lambda output: section.order.index(output.name))
            for output in found:
                name = section.ours.replace("{}", str(our_number)) + output.name
                yield Output(name, output.source, output.shape)

    def _begun(self, section: Section, starts: list[str]) -> Iterator[Output]:
        for number in begun(starts, section.tails, self.tensors):
            self.begun.setdefault(starts[0], set()).add(number)
            begins = [start.replace("{}", str(number)) for start in starts]
            for rule in section.rules_of(number):
                for output in self._rule(rule, section, begins):
                    name = section.ours.replace("{}", str(number)) + output.name
                    yield Output(name, output.source, output.shape)

    def _gaps(self) -> Iterator[str]:
        for start, there in self.begun.items():
            if (gap := next(n for n in range(len(there) + 1) if n not in there)) < len(there):
                yield (
                    f"{self.where}: no file has a tensor {start.replace('{}', str(gap)) + '*'!r}, up to "
                    f"{start.replace('{}', str(max(there))) + '*'!r} all should be there"
                )

    def _now_and_then(self, section: Section, starts: list[str], numbers: Sequence[int]) -> Iterator[str]:
        """Yield what is wrong with optional tensors that some of a section's blocks have and others have not."""
        for rule in section.rules if len(numbers) > 1 else ():
            if not rule.optional:
                continue
            names = [
                [start.replace("{}", str(number)) + theirs for start in starts for theirs in rule.theirs.split("|")]
                for number in numbers
            ]
            missing = [spellings[0] for spellings in names if not self.tensors.keys() & spellings]
            if 0 < len(missing) < len(numbers):
                yield f"{self.where}: no file has tensor {missing[0]!r}, which other blocks have"

    def _stack(self, rule: Rule, section: Section, starts: list[str]) -> Iterator[Output]:
        """Yield the tensor that several become, named as after the section's prefix."""
        count = self.sizes[self.family.size(section.part, rule.stack)]
        tensors = f"tensors {starts[0] + rule.theirs!r}"
        if count > len(self.tensors):
            has = f"the whole checkpoint has {len(self.tensors):,}"
            self.problems.append(f"{self.where}: {self.config_name} asks for {count:,} {tensors}, {has}")
            return
        found = [output for one in rule.each(count) for output in self._rule(one, section, starts)]
        parts = tuple(part for output in found for part in output.source.parts)
        views = tuple(part for part in parts if isinstance(part, View))
        if len(dtypes := sorted({view.dtype for view in views})) > 1:
            self.problems.append(f"{views[0].file}: {tensors} are of several types, {', '.join(dtypes)}")
        elif parts and len(parts) == count:
            lengths = [output.shape[0] for output in found]
            if rule.padded:
                self.told[self.family.size(section.part, rule.padded)] = lengths
                self.sizes[self.family.size(section.part, rule.length)] = max(lengths)
            source = padded(views, max(lengths)) if rule.padded else Joined(parts)
            yield Output(found[0].name, source, (count, max(lengths), *found[0].shape[1:]))

    def _rule(self, rule: Rule, section: Section, starts: list[str]) -> Iterator[Output]:
        """Yield what becomes of one rule's tensor, or of those that it stacks, named as after the section's prefix."""
        if rule.stack:
            yield from self._stack(rule, section, starts)
            return
        if rule.made is not None:
            try:
                computed = rule.made(self.all_values)
                yield Output(rule.names[0], computed, computed.shape)
            except ValueError as e:
                self.problems.append(f"{self.where}: {self.config_name}: {e}")
            return
        is_there = any(start + theirs in self.tensors for start in starts for theirs in rule.theirs.split("|"))
        if rule.otherwise is not None and not is_there:
            yield from self._rule(rule.otherwise, section, starts)
            return
        is_optional = rule.optional and not is_there
        beside_shape = rule.beside_shape or rule.shape
        wanted = ((rule.theirs, rule.shape), *((name, beside_shape) for name in rule.beside))
        fits = (self._tensor(name, parse(shape), section, starts, is_optional) for name, shape in wanted)
        found = [fit for fit in fits if fit is not None]
        if len(found) < len(wanted):
            return
        (tensor, parts), *others = found
        arrangements = tensor.rearranged(rule.pattern, parts, len(rule.names))
        for ours, (shape, view) in zip(rule.names, arrangements, strict=True):
            if rule.then is None:
                yield Output(ours, view, shape)
                continue
            try:
                made = rule.then(view, shape, self.all_values, *(view for view, _ in others))
            except ValueError as e:
                self.problems.append(f"{tensor.file}: {e}")
                continue
            yield Output(ours, made, self._written(rule, section.part, made) or shape)

    def _tensor(
        self, spellings: str, pattern: Pattern, section: Section, starts: list[str], is_optional: bool
    ) -> tuple[View, dict[str, int]] | None:
        """Return a tensor and the lengths of all parts of its axes; None where it is not there or does not fit.

        What is wrong is then among the problems, and what sizes it tells among the sizes.
        """
        names = [start + theirs for start in starts for theirs in spellings.split("|")]
        name = next((name for name in names if name in self.tensors), None)
        known = self.family.sizes_of(pattern.stored, section.part, self.sizes)
        if name is None:
            if not is_optional:
                # Of several spellings the one of which a weight or a bias is there.
                layers = ((name, name.rpartition(".")[0]) for name in names)
                beside = (name for name, layer in layers if self.tensors.keys() & {f"{layer}.weight", f"{layer}.bias"})
                likely = next(beside, names[0])
                self.problems.append(
                    f"{self.where}: no file has tensor {likely!r}, {self.config_name} asks for it with shape "
                    f"{shape_text(shape_of(pattern.stored, known))}"
                )
            return None
        tensor = self.tensors[name]
        self.used.add(name)
        if tensor.dtype not in DTYPES:
            self.problems.append(
                f"{tensor.file}: tensor {tensor.name!r} is of type {tensor.dtype}, supported are {', '.join(DTYPES)}"
            )
        parts = lengths(pattern.stored, tensor.shape, known)
        if parts is None and self.family.base.squeezes:
            # Axes of length 1 vanish from the file, so that they may be there or not.
            ones = with_ones_of(pattern.stored, tensor.shape, known)
            if ones is not None and (parts := lengths(pattern.stored, ones, known)) is not None:
                tensor = tensor.with_ones(ones)
        if parts is None:
            self.problems.append(self._misfit(pattern, section.part, tensor, known))
            return None
        for part, length in parts.items():
            if (word := size_name(part)) is not None:
                size, own = self.family.size(section.part, word), f"{section.part}.{word}"
                origin = f"tensor {tensor.name!r} of shape {shape_text(tensor.shape)}"
                if size not in self.sizes:
                    self.sizes[size], self.origins[size] = length, origin
                # Of a size that the towers share, each has a tensor of its own.
                self.origins.setdefault(own, origin)
        return tensor, parts

    def _written(self, rule: Rule, part: str, made: Tensor) -> tuple[int, ...] | None:
        """Return the shape in the file of what a rule has made, where that is another than the checkpoint's.

        What is computed may have other axes than the file has; its elements are in the file's order.
        """
        if not rule.becomes or isinstance(made, Joined):
            return None
        shape = shape_of(rule.written, self.family.sizes_of(rule.written, part, self.sizes))
        told = tuple(length for length in shape if length is not None)
        is_whole = len(told) == len(shape) and math.prod(told) * made.itemsize == made.nbytes
        return told if is_whole else made.shape

    def _misfit(self, pattern: Pattern, part: str, tensor: View, known: Mapping[str, int]) -> str:
        where = f"{tensor.file}: tensor {tensor.name!r} has shape {shape_text(tensor.shape)}"
        if 0 in tensor.shape:
            return f"{where}, no axis should be of length 0"
        # The configuration asks if what it says is enough to contradict the shape, else a tensor that was there first.
        origins = {word: self.origins[self.family.size(part, word)] for word in known}
        configured = {word: size for word, size in known.items() if origins[word] == self.config_name}
        asks = self.config_name
        if lengths(pattern.stored, tensor.shape, configured) is not None:
            asks = next(origin for origin in origins.values() if origin != self.config_name)
        return f"{where}, {asks} asks for {shape_text(shape_of(pattern.stored, known))}"
