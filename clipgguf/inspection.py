"""Look into a GGUF file: what it is, what is in it, and who can read it, from its header alone."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from clipgguf.conversion import PathLike
from clipgguf.errors import shown

if TYPE_CHECKING:
    from clipgguf.checkpoint import SourceTensor
    from clipgguf.checkpoint.gguf_file import MetadataItem
    from clipgguf.contents import Contents
    from clipgguf.names import Tower
    from clipgguf.readers import Verdict

# Of what the metadata calls a projector, which is a word; nothing keeps a file from having megabytes there.
LONGEST_TYPE = 200


@dataclass(frozen=True, slots=True)
class TowerSummary:
    """A tower that a file has tensors of; a number is None where the metadata does not say it.

    ``name`` is "text" or "vision", ``family`` "CLIP" or "SigLIP", or None in a file of another family. ``blocks`` is
    what the metadata says, ``blocks_stored`` of how many there are tensors, ``blocks_run`` how many are meant to run:
    fewer, where a projector takes the features of an earlier layer, and None where the file does not tell. Image and
    patch sizes are in pixels, for the vision tower only, and ``context_length`` and ``vocabulary`` in tokens, for the
    text tower.
    """

    name: str
    family: str | None
    width: int | None
    feed_forward: int | None
    heads: int | None
    projection_dim: int | None
    blocks: int | None
    blocks_stored: int
    blocks_run: int | None
    image_size: int | None = None
    patch_size: int | None = None
    context_length: int | None = None
    vocabulary: int | None = None


@dataclass(frozen=True, slots=True)
class ProjectorSummary:
    """A projector: LLaVA's, told from its tensors, or another.

    ``kind`` is None for one that clipgguf does not know, ``projector_type`` what the metadata calls it, if anything, at
    most 200 characters of it. ``embedding_length`` is the width that the language model must have, ``tensors`` how many
    are called mm.*.
    """

    kind: str | None
    projector_type: str | None
    tensors: int
    embedding_length: int | None


@dataclass(frozen=True, slots=True)
class ElementType:
    """How much of a file is of one GGML type: tensors, values in them, and bytes."""

    name: str
    tensors: int
    elements: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a GGUF file is and holds.

    ``found`` says in words what it is; ``nbytes`` is the file's size, ``version`` that of GGUF. ``towers`` and
    ``projector`` are what there are tensors of, ``element_types`` are sorted by bytes, the largest first. ``metadata``
    and ``tensors`` are those of the file, in its order: items have a key, a value_type and a value (arrays are tuples),
    tensors a name, a dtype (the name of the GGML type), a row-major shape, an offset in the file, and nbytes.
    ``verdicts`` tell of each reader whether it can read the file (``reads``), and all the ``reasons`` why not;
    ``reads`` is None where that is not known here.
    """

    path: Path
    found: str
    nbytes: int
    version: int
    alignment: int
    towers: "tuple[TowerSummary, ...]"
    projector: ProjectorSummary | None
    element_types: tuple[ElementType, ...]
    metadata: "tuple[MetadataItem, ...]"
    tensors: "tuple[SourceTensor, ...]"
    verdicts: "tuple[Verdict, ...]"


def inspect(path: PathLike) -> Inspection:
    """Look into a GGUF file, of CLIP or not; reads its header alone, whatever its size.

    Raises CheckpointError when it is missing, truncated or no GGUF file, or when its header contradicts itself.
    """
    from clipgguf.checkpoint.gguf_file import read_gguf
    from clipgguf.contents import Contents
    from clipgguf.names import TEXT, VISION
    from clipgguf.readers import verdicts

    file = read_gguf(Path(path))
    contents = Contents.of(file)
    return Inspection(
        path=file.path,
        found=_found(contents),
        nbytes=file.size,
        version=file.version,
        alignment=file.alignment,
        towers=tuple(_tower(contents, tower) for tower in (TEXT, VISION) if contents.has(tower)),
        projector=_projector(contents) if contents.projector_names or contents.projector_types else None,
        element_types=_element_types(file.tensors),
        metadata=file.metadata,
        tensors=file.tensors,
        verdicts=verdicts(contents),
    )


def _found(contents: "Contents") -> str:
    from clipgguf.contents import ARCHITECTURE
    from clipgguf.names import TEXT, VISION

    architecture = contents.file.value(ARCHITECTURE)
    if architecture not in (None, "clip"):
        return f"no CLIP model ({ARCHITECTURE} is {shown(architecture)})"
    if contents.other_family is not None:
        told = " and ".join(f"{key} is {shown(text)}" for key, text in contents.projector_types.items())
        return f"mmproj of a family that is not known here ({told})"
    family = "SigLIP" if contents.is_siglip else "CLIP"
    if contents.projector_names:
        kind = contents.projector_kind
        tower = f"a {family} vision tower" if contents.has(VISION) else "no tower"
        return f"mmproj for LLaVA: {kind.name if kind else 'unknown'} projector, {tower}"
    if contents.has(VISION):
        return "CLIP model of two towers" if contents.has(TEXT) else f"vision tower of {family}"
    return "text tower of CLIP" if contents.has(TEXT) else "no CLIP model"


def _tower(contents: "Contents", tower: "Tower") -> TowerSummary:
    from gguf import GGUFValueType

    from clipgguf.names import VISION

    def number(key: str) -> int | None:
        value: int | None = contents.value(key, GGUFValueType.UINT32)
        return value

    is_vision = tower == VISION
    name = "vision" if is_vision else "text"
    family = "SigLIP" if is_vision and contents.is_siglip else "CLIP"
    blocks = contents.blocks_told(tower)
    tokens = contents.items.get("tokenizer.ggml.tokens")
    return TowerSummary(
        name=name,
        family=family if contents.other_family is None else None,
        width=number(f"clip.{name}.embedding_length"),
        feed_forward=number(f"clip.{name}.feed_forward_length"),
        heads=number(f"clip.{name}.attention.head_count"),
        projection_dim=number(f"clip.{name}.projection_dim"),
        blocks=blocks,
        blocks_stored=contents.blocks_stored(tower),
        blocks_run=contents.blocks_wanted if is_vision else blocks,
        image_size=number("clip.vision.image_size") if is_vision else None,
        patch_size=number("clip.vision.patch_size") if is_vision else None,
        context_length=None if is_vision else number("clip.text.context_length"),
        vocabulary=len(tokens.value) if not is_vision and tokens is not None and tokens.is_array else None,
    )


def _projector(contents: "Contents") -> ProjectorSummary:
    kind = contents.projector_kind
    told = next(iter(contents.projector_types.values()), None)
    # Every kind ends with a bias, of what it gives to the language model.
    last = contents.tensors[kind.rules[-1][1]].shape if kind else ()
    return ProjectorSummary(
        kind=kind.name if kind else None,
        projector_type=told[:LONGEST_TYPE] if told else None,
        tensors=len(contents.projector_names),
        embedding_length=last[-1] if last else None,
    )


def _element_types(tensors: "tuple[SourceTensor, ...]") -> tuple[ElementType, ...]:
    by_type: dict[str, list[SourceTensor]] = {}
    for tensor in tensors:
        by_type.setdefault(tensor.dtype, []).append(tensor)
    found = [
        ElementType(
            name=name,
            tensors=len(of_type),
            elements=sum(math.prod(tensor.shape) for tensor in of_type),
            nbytes=sum(tensor.nbytes for tensor in of_type),
        )
        for name, of_type in by_type.items()
    ]
    return tuple(sorted(found, key=lambda element_type: (-element_type.nbytes, element_type.name)))
