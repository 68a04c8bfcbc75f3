"""A checkpoint that is understood: what a plan is made of."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from clipgguf.checkpoint import Checkpoint
from clipgguf.family import Family
from clipgguf.inputs import Inputs, read_values
from clipgguf.matching import Match, Output
from clipgguf.model_card import ModelCard
from clipgguf.quantized import refuse_quantized
from clipgguf.sources import File, Folder
from clipgguf.tensor import View

# The options that a file with a part has a use for, of those that do not apply to every model.
USES = {"text": ("vocab",), "vision": ("image_mean", "image_std"), "audio": ()}


@dataclass(frozen=True, slots=True)
class Model:
    """A checkpoint that fits a family.

    ``values`` are the metadata by short name, and sizes besides; ``outputs`` the tensors in the order of the file.
    ``found`` says for people what the checkpoint was taken for. ``warnings`` and ``notes`` are lines for the user,
    ``told_notes`` those about a file that is verified. ``uses`` are the options that not every model has a use for.
    ``card`` is what the metadata ``general.*`` are made from, where the file shall have them all. ``place`` is the
    directory or file that was given.
    """

    family: Family
    found: str
    values: Mapping[str, Any]
    outputs: tuple[Output, ...]
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    uses: frozenset[str] = frozenset()
    told_notes: tuple[str, ...] = ()
    card: ModelCard | None = None
    place: Folder | File | None = None


def open_family(family: Family, inputs: Inputs) -> Model:
    """Open the checkpoint of a family; ConfigError or CheckpointError with all that is wrong."""
    # All JSON before the headers, whose validation imports numpy: what parsing a vocabulary needs is then free again.
    values = read_values(family, inputs)
    noted: set[str] = set()

    def wanted(name: str) -> bool:
        if family.notes_on((name,)):
            noted.add(name)
        return not (family.leaves_out(name) or name in noted)

    checkpoint = inputs.open_checkpoint(wanted)
    tensors = checkpoint.tensors
    for folder in family.folders.values():
        tensors = tensors | inputs.open_inner(folder, wanted)
    refuse_quantized(inputs.config.values, inputs.config.path, tensors.values())
    model = matched_model(family, inputs, values, tensors, checkpoint)
    return replace(model, notes=(*model.notes, *family.notes_on(noted)))


def matched_model(
    family: Family,
    inputs: Inputs,
    values: Mapping[str, Any],
    tensors: Mapping[str, View],
    checkpoint: Checkpoint,
    spelling: Iterable[str] = (),
    strays: Iterable[View] = (),
) -> Model:
    """Hold tensors against a family whose values are read.

    ``spelling`` are prefixes that were taken off before, ``strays`` tensors beside, which are unknown.
    """
    where, config_name = inputs.directory, inputs.config.path.name
    found = Match(family.in_layout_of(tensors), tensors, values, where, config_name, tuple(strays))
    found.find(inputs.options.ignore_unknown)
    told, warnings = _told_by_tensors(inputs, values, found)
    names = " and ".join(f"{prefix}*" for prefix in dict.fromkeys((*found.prefixes.values(), *spelling)))
    others = " and ".join(Checkpoint.others(checkpoint.container))
    beside = f" ({others} beside it not read)" if others else ""
    return Model(
        family=family,
        found=f"{family.title} in {checkpoint.container.name}{beside}{names and f', tensors {names}'}",
        values={**values, **told},
        outputs=found.outputs,
        warnings=(*inputs.warnings, *found.warnings, *warnings),
        notes=(*inputs.notes, *found.notes),
        told_notes=tuple(inputs.told_notes),
        card=inputs.card,
        uses=frozenset(option for part in family.parts for option in USES[part]),
    )


def _told_by_tensors(inputs: Inputs, values: Mapping[str, Any], found: Match) -> tuple[dict[str, Any], list[str]]:
    """Return the values that the tensors tell, or contradict, and a warning for each that the configuration has."""
    family, warnings = found.family, list[str]()
    told: dict[str, Any] = dict(found.told)
    for value in family.all_values:
        size = family.size(value.part, value.name.rpartition(".")[2])
        length = found.sizes.get(size)
        if value.told_by_tensor and value.part in family.parts and length not in (None, values[value.name]):
            told[value.name] = length
            origin = found.origins.get(value.name, found.origins[size])
            warnings.append(
                f"{inputs.labels[value.name]} is {values[value.name]}, but {origin} has {length}; {length} is written"
            )
    return told, warnings
