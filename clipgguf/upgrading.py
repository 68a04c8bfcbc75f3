"""Mend mmproj files that were written before llama.cpp asked for more: new metadata, the same tensors."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from clipgguf.destination import PathLike, output_path
from clipgguf.errors import CheckpointError, OutputError, shown

if TYPE_CHECKING:
    from clipgguf.checkpoint.gguf_file import GGUFFile, MetadataItem
    from clipgguf.contents import Contents
    from clipgguf.writer import Progress


@dataclass(frozen=True, slots=True)
class Upgrade:
    """What an upgrade did: the file that is now right, and the metadata that it lacked, as "key = value" lines.

    Nothing was lacking where ``added`` is empty.
    """

    path: Path
    added: tuple[str, ...]


def upgrade(
    old: PathLike,
    output: PathLike | None = None,
    *,
    feature_layer: int | None = None,
    progress: "Progress | None" = None,
) -> Upgrade:
    """Add what today's llama.cpp needs to an mmproj file: ``clip.projector_type`` and ``clip.vision.feature_layer``.

    Both are told from the tensors, whose bytes stay what they are. After how many of the blocks that are stored the
    projector takes the features can only be told for CLIP's own towers: for others ``feature_layer`` says it.

    ``output`` is a file if it ends in ``.gguf``, else a directory; without it the old file is replaced, when the new
    one is complete, and not touched when nothing is lacking. It keeps its mode and its owner, and a symbolic link stays
    one. Raises CheckpointError when the file is no mmproj of CLIP or does not tell its layer, OutputError when the new
    one cannot be written or the old one is read-only; ValueError for a ``feature_layer`` below 1.
    """
    from clipgguf.checkpoint.gguf_file import read_gguf
    from clipgguf.contents import ARCHITECTURE
    from clipgguf.plan import Plan, PlannedTensor
    from clipgguf.writer import write_plan

    if feature_layer is not None and feature_layer < 1:
        raise ValueError(f"feature_layer is {feature_layer}, should be the number of blocks to run, at least 1")
    source = Path(old)
    file = read_gguf(source)
    added = _missing(file, feature_layer)
    path = source if output is None else output_path(source.parent, output, source.name)
    in_place = output is None or (path.exists() and path.samefile(source))
    if not added and in_place:
        return Upgrade(source, ())
    if in_place:
        _check_writable(source)
    plan = Plan(
        file_name=path.name,
        metadata=(*(item for item in file.metadata if item.key != ARCHITECTURE), *added),
        tensors=tuple(PlannedTensor.copy_of(tensor) for tensor in file.tensors),
        warnings=(),
        notes=(),
    )
    # Of a symbolic link, as the Hugging Face cache is made of, what it leads to is replaced.
    write_plan(plan, path.resolve() if in_place else path, progress=progress)
    return Upgrade(path, tuple(f"{item.key} = {_text(item.value)}" for item in added))


def _check_writable(path: Path) -> None:
    """Raise OutputError for a file that is meant to stay as it is; the system would have it replaced all the same."""
    if not path.stat().st_mode & 0o222 or not os.access(path, os.W_OK):
        raise OutputError(f"{path}: is read-only, so it is not replaced; -o writes the new file elsewhere")


def _text(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)


def _missing(file: "GGUFFile", feature_layer: int | None) -> "list[MetadataItem]":
    """Return the metadata that an mmproj file lacks; CheckpointError when it is none, or cannot tell."""
    from gguf import GGUFValueType

    from clipgguf.checkpoint.gguf_file import MetadataItem
    from clipgguf.contents import ARCHITECTURE, FEATURE_LAYER, PROJECTOR_TYPE, Contents
    from clipgguf.families.projectors import KINDS
    from clipgguf.names import VISION

    def refuse(reason: str) -> CheckpointError:
        return CheckpointError(f"{file.path}: is no mmproj of a CLIP tower that could be upgraded: {reason}")

    contents = Contents.of(file)
    if file.value(ARCHITECTURE) != "clip":
        raise refuse(f"{ARCHITECTURE} is {shown(file.value(ARCHITECTURE))}, should be 'clip'")
    if contents.other_family is not None:
        raise refuse(contents.other_family)
    kind = contents.projector_kind
    if kind is None:
        raise refuse(f"its tensors are none of the projectors that are known ({', '.join(k.name for k in KINDS)})")
    told = contents.projector_types
    if wrong := [f"{key} is {text!r}" for key, text in told.items() if text != kind.projector_type]:
        raise refuse(f"{wrong[0]}, but its tensors are those of {kind.projector_type!r}")
    if not told and PROJECTOR_TYPE in contents.items:
        raise refuse(f"{PROJECTOR_TYPE} is {shown(contents.items[PROJECTOR_TYPE].value)}, should be a word")
    # Without a type the names alone tell the family, and other families' projectors are called what LLaVA's are.
    if not told and (names := contents.unknown_names):
        raise refuse(f"it has tensors that LLaVA's files do not have, as {names[0]!r}")
    count, stored = file.value("clip.vision.block_count"), contents.blocks_stored(VISION)
    blocks = contents.blocks_told(VISION)
    if blocks is None or blocks != stored:
        what = f"{shown(count)} and no UINT32" if blocks is None and count is not None else shown(count)
        raise refuse(f"clip.vision.block_count is {what}, but tensors of {stored} blocks are stored")
    # The writer, gguf-py's, takes no empty array.
    CheckpointError.raise_all(
        f"{file.path}: metadata key {shown(item.key)} is an empty array, which cannot be written again"
        for item in file.metadata
        if item.is_array and not item.value
    )
    missing = []
    if not told:
        missing.append(MetadataItem(PROJECTOR_TYPE, GGUFValueType.STRING, kind.projector_type))
    layer = _layer(contents, blocks, feature_layer)
    if FEATURE_LAYER not in contents.items:
        missing.append(MetadataItem(FEATURE_LAYER, GGUFValueType.INT32, [layer]))
    return missing


def _layer(contents: "Contents", stored: int, feature_layer: int | None) -> int | None:
    """Return after how many blocks the projector takes the features; None where the file says it in another way."""
    from clipgguf.contents import FEATURE_LAYER

    path = contents.file.path
    if feature_layer is not None and feature_layer > stored:
        raise CheckpointError(f"{path}: has {stored:,} blocks, --feature-layer is {feature_layer:,}")
    if FEATURE_LAYER in contents.items:
        said = contents.feature_layers
        if feature_layer is not None and said != (feature_layer,):
            raise CheckpointError(
                f"{path}: {FEATURE_LAYER} is {shown(contents.items[FEATURE_LAYER].value)} and is not changed, "
                f"--feature-layer is {feature_layer:,}"
            )
        return None
    layer = feature_layer or contents.blocks_wanted
    if layer is None:
        raise CheckpointError(
            f"{path}: does not tell whether all of its {stored:,} blocks are meant to run: pass --feature-layer "
            f"{stored} if the script left out the tower's last block, as most do, or one less if the file has them all"
        )
    return layer
