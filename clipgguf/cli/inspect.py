"""``clipgguf inspect``."""

from collections.abc import Iterable
from dataclasses import asdict
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clipgguf.cli.options import AsJson
from clipgguf.cli.output import show_json, size
from clipgguf.cli.tables import FOLD, RIGHT, WHOLE, axes_text, metadata_object, metadata_table, show, table
from clipgguf.errors import CheckpointError, collect

if TYPE_CHECKING:
    from rich.table import Table

    from clipgguf.inspection import Inspection, ProjectorSummary, TowerSummary


# What is said of a reader that is required, where it does not read the file.
_REFUSALS = {False: "{} cannot read it", None: "whether {} can read it is not known here"}


class ReaderName(str, Enum):
    """The readers of clipgguf.readers, which is too slow to import for --help; typer takes several of an Enum only."""

    CLIP_CPP = "clip.cpp"
    POWERINFER = "PowerInfer"
    LLAMA_CPP = "llama.cpp"


def inspect_command(
    paths: Annotated[list[str], typer.Argument(metavar="FILE.gguf...", help="GGUF files, of CLIP or not.")],
    as_json: AsJson = False,
    tensors: Annotated[
        bool | None,
        typer.Option("--tensors/--no-tensors", help="List the tensors, or do not. [default: of a single file]"),
    ] = None,
    require: Annotated[
        list[ReaderName] | None,
        typer.Option(
            "--require",
            metavar="READER",
            case_sensitive=False,
            help="Exit 1 unless clip.cpp, PowerInfer or llama.cpp can read each file; may be given several times.",
        ),
    ] = None,
) -> None:
    """Show what GGUF files are, their metadata and tensors, and whether clip.cpp, PowerInfer and llama.cpp read them.

    Only the files' headers are read.
    """
    from clipgguf.inspection import inspect

    problems: list[str] = []
    objects = []
    for number, path in enumerate(paths):
        with collect(problems):
            inspection = inspect(path)
            if as_json:
                objects.append(_json_object(inspection, with_tensors=tensors is not False))
            else:
                with_tensors = len(paths) == 1 if tensors is None else tensors
                _show_tables(inspection, with_tensors=with_tensors, is_next=number > 0)
            for verdict in inspection.verdicts:
                if verdict.reader in (require or ()):
                    said = f"{inspection.path}: {_REFUSALS.get(verdict.reads, '').format(verdict.reader)}"
                    problems += [f"{said}: {reason}" for reason in verdict.reasons]
    if as_json and (objects or len(paths) > 1):
        show_json(objects if len(paths) > 1 else objects[0])
    CheckpointError.raise_all(problems)


def _show_tables(inspection: "Inspection", *, with_tensors: bool, is_next: bool) -> None:
    """Print what is known of a file; the next one stands apart."""
    parts = [(f"{tower.name} tower", _tower_text(tower)) for tower in inspection.towers]
    if inspection.projector is not None:
        parts.append(("projector", _projector_text(inspection.projector)))
    shown: list[str | Table] = [""] if is_next else []
    shown.append(
        f"{inspection.path}: {inspection.found}; {len(inspection.tensors):,} tensors, {size(inspection.nbytes)}, "
        f"GGUF version {inspection.version}"
    )
    if parts:
        shown.append(table({"part": WHOLE, "what it is": FOLD}, parts))
    shown.append(metadata_table(inspection.metadata))
    if with_tensors:
        columns = {"tensor": FOLD, "shape": FOLD, "type": WHOLE, "offset": RIGHT, "bytes": RIGHT}
        rows = ((t.name, axes_text(t.shape), t.dtype, t.offset, t.nbytes) for t in inspection.tensors)
        shown.append(table(columns, rows))
    columns = {"type": WHOLE, "tensors": RIGHT, "values": RIGHT, "bytes": RIGHT}
    shown.append(table(columns, ((t.name, t.tensors, t.elements, t.nbytes) for t in inspection.element_types)))
    show(*shown, table({"reader": WHOLE, "reads it": FOLD}, _verdict_rows(inspection)))


def _verdict_rows(inspection: "Inspection") -> Iterable[tuple[str, str]]:
    for verdict in inspection.verdicts:
        if verdict.reads:
            yield verdict.reader, "yes"
        word = "not known here" if verdict.reads is None else "no"
        for number, reason in enumerate(verdict.reasons):
            yield ("" if number else verdict.reader), f"{word}: {reason}"


def _tower_text(tower: "TowerSummary") -> str:
    known = [
        ("width", tower.width),
        ("feed-forward", tower.feed_forward),
        ("heads", tower.heads),
        ("blocks stored", tower.blocks_stored),
        ("blocks run", tower.blocks_run),
        ("projection_dim", tower.projection_dim),
        ("context", tower.context_length),
        ("vocabulary", tower.vocabulary),
        ("mel bins", tower.mel_bins),
        ("image", tower.image_size),
        ("patch", tower.patch_size),
        ("patches to a token", tower.merge and tower.merge**2),
        ("tokens of an image", tower.tokens),
    ]
    sizes = ", ".join(f"{what} {number:,}" for what, number in known if number is not None)
    return f"{tower.family}; {sizes}" if tower.family else sizes


def _projector_text(projector: "ProjectorSummary") -> str:
    words = [f"{projector.kind or 'of no known kind'}, {projector.tensors:,} tensors"]
    if projector.embedding_length is not None:
        words.append(f"for a language model {projector.embedding_length:,} wide")
    if projector.projector_type != projector.kind:
        words.append(f"clip.projector_type {projector.projector_type or 'missing'}")
    return ", ".join(words)


def _json_object(inspection: "Inspection", *, with_tensors: bool) -> dict[str, Any]:
    """Return an inspection as docs/json.md describes it."""
    made: dict[str, Any] = {
        "path": str(inspection.path),
        "found": inspection.found,
        "bytes": inspection.nbytes,
        "version": inspection.version,
        "alignment": inspection.alignment,
        "towers": {
            tower.name: {key: value for key, value in asdict(tower).items() if key != "name" and value is not None}
            for tower in inspection.towers
        },
        "projector": None if inspection.projector is None else asdict(inspection.projector),
        "element_types": [
            {"type": t.name, "tensors": t.tensors, "elements": t.elements, "bytes": t.nbytes}
            for t in inspection.element_types
        ],
        "metadata": metadata_object(inspection.metadata),
    }
    if with_tensors:
        made["tensors"] = [
            {"name": t.name, "type": t.dtype, "shape": t.shape, "offset": t.offset, "bytes": t.nbytes}
            for t in inspection.tensors
        ]
    made["readers"] = {v.reader: {"reads": v.reads, "reasons": v.reasons} for v in inspection.verdicts}
    return made
