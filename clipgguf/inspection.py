"""Look into a GGUF file: what it is, what is in it, and who can read it, from its header alone."""

import math
from dataclasses import dataclass
from pathlib import Path

from clipgguf.checkpoint.gguf_file import MetadataItem
from clipgguf.clip_file import ClipFile
from clipgguf.errors import shown
from clipgguf.family import PARTS
from clipgguf.holding import values_of
from clipgguf.options import PathLike
from clipgguf.picture import merge_of, tokens_of
from clipgguf.readers import Verdict, verdicts
from clipgguf.sources.given import shown_place
from clipgguf.tensor import View

# Of what the metadata calls a projector, which is a word; nothing keeps a file from having megabytes there.
LONGEST_TYPE = 200


@dataclass(frozen=True, slots=True)
class TowerSummary:
    """A tower that a file has tensors of; what the file does not tell is None.

    ``name`` is "text", "vision" or "audio", ``family`` "CLIP", "SigLIP" or another family's title. ``blocks`` is what
    the metadata says, ``blocks_stored`` of how many there are tensors, ``blocks_run`` how many are meant to run: fewer,
    where a projector takes the features of an earlier layer. Image and patch sizes are in pixels, for the vision tower
    only, ``context_length`` and ``vocabulary`` in tokens, for the text tower, and ``mel_bins`` the frequencies that an
    audio tower takes. ``merge`` is how many patches along one side become one token, ``tokens`` how many tokens of a
    language model a picture of ``image_size``, or a tile, becomes; None also where pictures have any size.
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
    merge: int | None = None
    tokens: int | None = None
    context_length: int | None = None
    vocabulary: int | None = None
    mel_bins: int | None = None


@dataclass(frozen=True, slots=True)
class ProjectorSummary:
    """A projector: LLaVA's, told from its tensors, or another.

    ``kind`` is None for one that clipgguf does not know, ``projector_type`` what the metadata calls it, if anything, at
    most 200 characters of it; of a file with two they name both. ``embedding_length`` is the width that the language
    model must have, ``tensors`` how many are called mm.*.
    """

    kind: str | None
    projector_type: str | None
    tensors: int
    embedding_length: int | None


@dataclass(frozen=True, slots=True)
class TypeSummary:
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

    path: Path | str
    found: str
    nbytes: int
    version: int
    alignment: int
    towers: tuple[TowerSummary, ...]
    projector: ProjectorSummary | None
    element_types: tuple[TypeSummary, ...]
    metadata: tuple[MetadataItem, ...]
    tensors: tuple[View, ...]
    verdicts: tuple[Verdict, ...]


def inspect(path: PathLike) -> Inspection:
    """Look into a GGUF file, of CLIP or not, at a path or an address; reads its header alone, whatever its size.

    Raises CheckpointError when it is missing, truncated or no GGUF file, or when its header contradicts itself.
    """
    file = ClipFile.read(path)
    return Inspection(
        path=shown_place(path),
        found=_found(file),
        nbytes=file.file.source.size,
        version=file.file.version,
        alignment=file.file.alignment,
        towers=tuple(_tower(file, part) for part in PARTS if _has(file, part)),
        projector=_projector(file) if file.projector_names or file.projector_types else None,
        element_types=_element_types(file.file.tensors),
        metadata=file.file.metadata,
        tensors=file.file.tensors,
        verdicts=verdicts(file),
    )


def _found(file: ClipFile) -> str:
    if file.architecture not in (None, "clip"):
        return f"no CLIP model ({file.why_not_known})"
    if file.module is None:
        told = " and ".join(f"{key} is {shown(text)}" for key, text in file.projector_types.items())
        return f"mmproj of a family that is not known here ({told})"
    tower = "SigLIP" if file.is_siglip else "CLIP"
    if file.is_llava and file.projector_names:
        has = f"a {tower} vision tower" if file.has("vision") else "no tower"
        return f"mmproj for LLaVA: {file.kind.name if file.kind else 'unknown'} projector, {has}"
    if file.module not in ("clip", "llava"):
        assert file.family is not None
        return f"mmproj for {file.family.title}"
    if file.has("vision"):
        return "CLIP model of two towers" if file.has("text") else f"vision tower of {tower}"
    return "text tower of CLIP" if file.has("text") else "no CLIP model"


def _has(file: ClipFile, part: str) -> bool:
    """Return whether a tower is there, which of a file that does not tell of one of its family's it is not."""
    return file.has(part) and (file.family is None or part in file.family.parts)


def _tower(file: ClipFile, part: str) -> TowerSummary:
    is_vision, is_text = part == "vision", part == "text"
    name = "SigLIP" if is_vision and file.is_siglip else "CLIP"
    vocabulary = file.value("text.tokens") if is_text else None
    family = file.family if is_vision else None
    values = values_of(family, file.items) if family else {}
    return TowerSummary(
        name=part,
        family=name if file.module in ("clip", "llava") else file.family.title if file.family else None,
        width=file.value(f"{part}.width"),
        feed_forward=file.value(f"{part}.ffn"),
        heads=file.value(f"{part}.heads"),
        projection_dim=file.value(f"{part}.projection"),
        blocks=file.value(f"{part}.blocks"),
        blocks_stored=file.blocks_stored(part),
        blocks_run=file.blocks_wanted if is_vision else file.value(f"{part}.blocks"),
        image_size=file.value("vision.image") if is_vision else None,
        patch_size=file.value("vision.patch") if is_vision else None,
        merge=merge_of(family, values) if family else None,
        tokens=tokens_of(family, values) if family else None,
        context_length=file.value("text.positions") if is_text else None,
        vocabulary=None if vocabulary is None else len(vocabulary),
        mel_bins=None if is_vision or is_text else file.value("audio.mel_bins"),
    )


def _projector(file: ClipFile) -> ProjectorSummary:
    told = " and ".join(file.projector_types.values())
    kind = embedding = None
    if file.kind is not None:
        # Every kind of LLaVA's ends with a bias, of what it gives to the language model.
        bias = file.tensors[file.kind.rules[-1].names[0]]
        kind, embedding = file.kind.name, bias.shape[-1] if bias.shape else None
    elif file.family is not None and not file.is_llava:
        part = file.family.parts[0]
        kind, embedding = " and ".join(file.family.projectors), file.value(f"{part}.projection")
    return ProjectorSummary(kind, told[:LONGEST_TYPE] if told else None, len(file.projector_names), embedding)


def _element_types(tensors: tuple[View, ...]) -> tuple[TypeSummary, ...]:
    by_type: dict[str, list[View]] = {}
    for tensor in tensors:
        by_type.setdefault(tensor.dtype, []).append(tensor)
    found = [
        TypeSummary(name, len(some), sum(math.prod(t.shape) for t in some), sum(t.nbytes for t in some))
        for name, some in by_type.items()
    ]
    return tuple(sorted(found, key=lambda element_type: (-element_type.nbytes, element_type.name)))
