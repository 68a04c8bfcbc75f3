"""Make old mmproj files right: what llama.cpp asks for since they were written, and faults of its own converter.

Metadata is added, and some tensors get another name or shape; their bytes stay what they are.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from clipgguf.checkpoint.gguf_file import ARCHITECTURE, MetadataItem
from clipgguf.clip_file import ClipFile
from clipgguf.destination import output_path
from clipgguf.errors import CheckpointError, OutputError, shown
from clipgguf.families.llava_projectors import KINDS
from clipgguf.keys import KEYS
from clipgguf.mending import mended
from clipgguf.options import PathLike
from clipgguf.planning import Plan, PlannedTensor
from clipgguf.writer import Progress, write_plan


@dataclass(frozen=True, slots=True)
class Upgrade:
    """What an upgrade did: the file that is now right, and the metadata that it lacked, as "key = value" lines.

    ``changed`` are lines about tensors that have another name or shape now.
    """

    path: Path
    added: tuple[str, ...]
    changed: tuple[str, ...] = ()


def upgrade(
    old: PathLike,
    output: PathLike | None = None,
    *,
    feature_layer: int | None = None,
    progress: Progress | None = None,
) -> Upgrade:
    """Make an mmproj file right that today's llama.cpp refuses, or computes something else from.

    To LLaVA's files ``clip.projector_type`` and ``clip.vision.feature_layer`` are added, as the tensors tell them.
    After how many of the blocks that are stored the projector takes the features can only be told for CLIP's own
    towers: for others ``feature_layer`` says it. Files of other families are rid of those faults of llama.cpp's own
    converter that their family's table has. The tensors' bytes stay what they are.

    ``output`` is a file if it ends in ``.gguf``, else a directory; without it the old file is replaced, when the new
    one is complete, and not touched when nothing is lacking. It keeps its mode and its owner, and a symbolic link stays
    one. Raises CheckpointError when the file is no mmproj that could lack anything or does not tell its layer,
    OutputError when the new one cannot be written or the old one is read-only; ValueError for a ``feature_layer`` below
    1.
    """
    if feature_layer is not None and feature_layer < 1:
        raise ValueError(f"feature_layer is {feature_layer}, should be the number of blocks to run, at least 1")
    source = Path(old)
    file = ClipFile.read(source)
    right = mended(file)
    added = right.added
    if not (right.added or right.changes):
        added = tuple(_missing(file, feature_layer))
    elif feature_layer is not None:
        assert file.family is not None
        raise CheckpointError(f"{source}: is an mmproj for {file.family.title}, --feature-layer is for LLaVA's")
    _refuse_empty_arrays(file)
    path = source if output is None else output_path(source.parent, output, source.name, {})
    in_place = output is None or (path.exists() and path.samefile(source))
    if not (added or right.changes) and in_place:
        return Upgrade(source, ())
    if in_place and not (source.stat().st_mode & 0o222 and os.access(source, os.W_OK)):
        # It is meant to stay as it is; the system would have it replaced all the same.
        raise OutputError(f"{source}: is read-only, so it is not replaced; -o writes the new file elsewhere")
    metadata = (*(item for item in file.file.metadata if item.key != ARCHITECTURE), *added)
    tensors = tuple(map(PlannedTensor.copy_of, right.tensors))
    plan = Plan(path.name, metadata, tensors, warnings=(), notes=())
    # Of a symbolic link, as the Hugging Face cache is made of, what it leads to is replaced.
    write_plan(plan, path.resolve() if in_place else path, progress=progress)
    lines = tuple(f"{item.key} = {item.value[0] if item.is_array else item.value}" for item in added)
    return Upgrade(path, lines, right.changes)


def _missing(file: ClipFile, feature_layer: int | None) -> "list[MetadataItem]":
    """Return the metadata that an mmproj file lacks; CheckpointError when it is none, or cannot tell."""
    path = file.file.source
    if reason := _why_not(file):
        raise CheckpointError(f"{path}: is no mmproj of a CLIP tower that could be upgraded: {reason}")
    assert file.kind is not None
    missing = [] if file.projector_types else [KEYS["projector"].item(file.kind.projector_type)]
    layer = _layer(file, feature_layer)
    return missing if layer is None else [*missing, KEYS["vision.feature_layer"].item([layer])]


def _refuse_empty_arrays(file: ClipFile) -> None:
    """Raise CheckpointError for metadata that a plan does not take, nor gguf-py's writer."""
    CheckpointError.raise_all(
        f"{file.file.source}: metadata key {shown(item.key)} is an empty array, which cannot be written again"
        for item in file.file.metadata
        if item.is_array and not item.value
    )


def _why_not(file: ClipFile) -> str | None:
    """Return why a file is no mmproj of LLaVA's, or how it contradicts itself; None where it may be upgraded."""
    if file.architecture != "clip":
        return f"{ARCHITECTURE} is {shown(file.architecture)}, should be 'clip'"
    if file.why_not_known is not None:
        return file.why_not_known
    if file.module not in ("clip", "llava"):
        return f"it is one for {file.family.title if file.family else file.module}, which lacks nothing"
    if file.kind is None:
        return f"its tensors are none of the projectors that are known ({', '.join(k.name for k in KINDS)})"
    told, key = file.projector_types, KEYS["projector"].key
    if wrong := [f"{key} is {text!r}" for key, text in told.items() if text != file.kind.projector_type]:
        return f"{wrong[0]}, but its tensors are those of {file.kind.projector_type!r}"
    if not told and key in file.items:
        return f"{key} is {shown(file.items[key].value)}, should be a word"
    # Without a type the names alone tell the family, and other families' projectors are called what LLaVA's are.
    if not told and (names := file.unknown_names):
        return f"it has tensors that LLaVA's files do not have, as {names[0]!r}"
    blocks, stored, key = file.value("vision.blocks"), file.blocks_stored("vision"), KEYS["vision.blocks"].key
    if blocks != stored:
        count = file.file.value(key)
        what = f"{shown(count)} and no UINT32" if blocks is None and count is not None else shown(count)
        return f"{key} is {what}, but tensors of {stored} blocks are stored"
    return None


def _layer(file: ClipFile, feature_layer: int | None) -> int | None:
    """Return after how many blocks the projector takes the features; None where the file says it in another way."""
    path, key, stored = file.file.source, KEYS["vision.feature_layer"].key, file.value("vision.blocks")
    if feature_layer is not None and feature_layer > stored:
        raise CheckpointError(f"{path}: has {stored:,} blocks, --feature-layer is {feature_layer:,}")
    if key in file.items:
        if feature_layer is not None and file.feature_layers != (feature_layer,):
            raise CheckpointError(
                f"{path}: {key} is {shown(file.items[key].value)} and is not changed, "
                f"--feature-layer is {feature_layer:,}"
            )
        return None
    layer = feature_layer or file.blocks_wanted
    if layer is None:
        raise CheckpointError(
            f"{path}: does not tell whether all of its {stored:,} blocks are meant to run: pass --feature-layer "
            f"{stored} if the script left out the tower's last block, as most do, or one less if the file has them all"
        )
    return layer
