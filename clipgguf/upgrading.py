"""Mend mmproj files that were written before llama.cpp asked for more: new metadata, the same tensors."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from clipgguf.conversion import PathLike
from clipgguf.destination import output_path
from clipgguf.errors import CheckpointError

if TYPE_CHECKING:
    from clipgguf.checkpoint.gguf_file import GGUFFile, MetadataItem
    from clipgguf.writer import Progress

ARCHITECTURE = "general.architecture"


@dataclass(frozen=True, slots=True)
class Upgrade:
    """What an upgrade did: the file that is now right, and the metadata that it lacked, as "key = value" lines.

    Nothing was lacking where ``added`` is empty.
    """

    path: Path
    added: tuple[str, ...]


def upgrade(old: PathLike, output: PathLike | None = None, *, progress: "Progress | None" = None) -> Upgrade:
    """Add what today's llama.cpp needs to an mmproj file: ``clip.projector_type`` and ``clip.vision.feature_layer``.

    Both are told from the tensors, whose bytes stay what they are. ``output`` is a file if it ends in ``.gguf``, else a
    directory; without it the old file is replaced, when the new one is complete, and not touched when nothing is
    lacking. Raises CheckpointError when the file is no mmproj of CLIP, OutputError when the new one cannot be written.
    """
    from clipgguf.checkpoint.gguf_file import read_gguf
    from clipgguf.plan import Plan, PlannedTensor
    from clipgguf.writer import write_plan

    source = Path(old)
    file = read_gguf(source)
    added = _missing(file)
    path = source if output is None else output_path(source.parent, output, source.name)
    if not added and (output is None or (path.exists() and path.samefile(source))):
        return Upgrade(source, ())
    plan = Plan(
        file_name=path.name,
        metadata=(*(item for item in file.metadata if item.key != ARCHITECTURE), *added),
        tensors=tuple(PlannedTensor.copy_of(tensor) for tensor in file.tensors),
        warnings=(),
        notes=(),
    )
    write_plan(plan, path, progress=progress)
    return Upgrade(path, tuple(f"{item.key} = {_text(item.value)}" for item in added))


def _text(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)


def _missing(file: "GGUFFile") -> "list[MetadataItem]":
    """Return the metadata that an mmproj file lacks; CheckpointError when it is none."""
    from gguf import GGUFValueType

    from clipgguf.checkpoint.gguf_file import MetadataItem
    from clipgguf.contents import FEATURE_LAYER, Contents
    from clipgguf.families.projectors import KINDS
    from clipgguf.names import VISION

    def refuse(reason: str) -> CheckpointError:
        return CheckpointError(f"{file.path}: is no mmproj of a CLIP tower that could be upgraded: {reason}")

    contents = Contents.of(file)
    if file.value(ARCHITECTURE) != "clip":
        raise refuse(f"{ARCHITECTURE} is {file.value(ARCHITECTURE)!r}, should be 'clip'")
    kind = contents.projector_kind
    if kind is None:
        raise refuse(f"its tensors are none of the projectors that are known ({', '.join(k.name for k in KINDS)})")
    count, stored = file.value("clip.vision.block_count"), contents.blocks_stored(VISION)
    told = contents.blocks_told(VISION)
    if told != stored:
        what = f"{count!r} and no UINT32" if told is None and count is not None else repr(count)
        raise refuse(f"clip.vision.block_count is {what}, but tensors of {stored} blocks are stored")
    # The writer, gguf-py's, takes no empty array.
    CheckpointError.raise_all(
        f"{file.path}: metadata key {item.key!r} is an empty array, which cannot be written again"
        for item in file.metadata
        if item.is_array and not item.value
    )
    wanted = (
        MetadataItem("clip.projector_type", GGUFValueType.STRING, kind.projector_type),
        MetadataItem(FEATURE_LAYER, GGUFValueType.INT32, [contents.blocks_wanted]),
    )
    present = {item.key for item in file.metadata} | (
        # llama.cpp takes either spelling.
        {"clip.projector_type"} if file.value("clip.vision.projector_type") else set()
    )
    return [item for item in wanted if item.key not in present]
