"""``clipgguf verify``."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clipgguf.cli.options import MODEL_DIR, AsJson, Threads, takes_options
from clipgguf.cli.output import messages, show_json, show_messages
from clipgguf.cli.tables import FOLD, RIGHT, WHOLE, WIDE, WIDE_RIGHT, axes_text, show, table
from clipgguf.options import Options

if TYPE_CHECKING:
    from rich.table import Table

    from clipgguf.verification import Finding, TensorCheck, Verification

# How many tensors the table has without --all.
MOST_WORST = 20
_ERRORS = {"worst error": RIGHT, "mean error": WIDE_RIGHT, "of allowed": RIGHT}
COLUMNS = {"tensor": FOLD, "shape": WIDE, "from": WIDE, "to": WHOLE, "verdict": WHOLE, "differing": RIGHT, **_ERRORS}


@takes_options(verifies=True)
def verify_command(
    file: Annotated[Path, typer.Argument(metavar="FILE.gguf", help="The GGUF file.")],
    model_dir: Annotated[str, MODEL_DIR],
    options: Any = None,
    show_all: Annotated[
        bool, typer.Option("--all", help=f"Show every tensor, and not only the {MOST_WORST} worst of what is wrong.")
    ] = False,
    as_json: AsJson = False,
    threads: Threads = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No progress, notes or tables, only what is wrong.")
    ] = False,
) -> None:
    """Compare a GGUF file with the checkpoint that it was made of: tensors, all their values, metadata.

    Exits 1 unless the file is what a conversion would write now. Towers, element types and layers are taken from the
    file; of the conversion's other options, give those that it had.
    """
    from clipgguf.cli.progress import progress_bar
    from clipgguf.verification import verify

    with progress_bar(quiet) as progress:
        result = verify(file, model_dir, Options(**options), threads=threads, progress=progress)
    show_messages(result.warnings, () if quiet or as_json else result.notes)
    if as_json:
        show_json(_json_object(result))
    elif not quiet:
        _show_result(result, show_all=show_all)
    messages("error", [f"{file}: {problem}" for problem in result.problems])
    if not (quiet or as_json):
        words = "agrees: {} is" if result.agrees else "differs: {} is not"
        show(f"{words.format(file)} what a conversion of {result.model_dir} gives")
    if not result.agrees:
        raise typer.Exit(1)


def _show_result(result: "Verification", *, show_all: bool) -> None:
    """Print what was compared, tables of what is wrong (or of everything), and the counts."""
    worst_first = sorted(result.tensors, key=lambda tensor: tensor.badness, reverse=True)
    shown = worst_first if show_all else [tensor for tensor in worst_first if not tensor.is_good][:MOST_WORST]
    parts: list[str | Table] = [f"{result.path}: compared with a conversion to {result.outtype} of {result.found}"]
    if shown:
        parts.append(table(COLUMNS, map(_row, shown)))
    if rest := [tensor for tensor in worst_first[len(shown) :] if not tensor.is_good]:
        parts.append(f"and {len(rest):,} more: {_counts_text(rest)} (--all shows them)")
    metadata = "the metadata agree"
    if different := len(result.metadata):
        parts.append(table({"metadata": FOLD}, [(difference.problem,) for difference in result.metadata]))
        metadata = f"{different:,} difference{'' if different == 1 else 's'} in the metadata"
    show(*parts, f"{len(result.tensors):,} tensors: {_counts_text(result.tensors)}; {metadata}")


def _row(tensor: "TensorCheck") -> list[object]:
    compared = tensor.comparison
    shape = axes_text(tensor.shape if tensor.shape is not None else tensor.expected_shape or ())
    row: list[object] = [tensor.name, shape, tensor.source_dtype or "", tensor.ggml_type or "", tensor.verdict]
    if compared is not None:
        row.append(tensor.differing if compared.differing else "")
        row += [f"{compared.worst_error:.2e}", f"{compared.mean_error:.2e}", f"{compared.worst_of_allowed:.3f}"]
    return row


def _counts(tensors: "Sequence[TensorCheck]") -> "dict[Finding, int]":
    """Return how many tensors have each verdict, the worst verdict first."""
    from clipgguf.verification import FINDINGS

    counts = Counter(tensor.verdict for tensor in tensors)
    return {verdict: counts[verdict] for verdict in FINDINGS}


def _counts_text(tensors: "Sequence[TensorCheck]") -> str:
    return ", ".join(f"{count:,} {verdict}" for verdict, count in _counts(tensors).items() if count)


def _json_object(result: "Verification") -> dict[str, Any]:
    """Return a verification as docs/json.md describes it."""
    return {
        "path": str(result.path),
        "model_dir": str(result.model_dir),
        "agrees": result.agrees,
        "found": result.found,
        "outtype": result.outtype,
        "verdicts": _counts(result.tensors),
        "tensors": [_json_tensor(tensor) for tensor in result.tensors],
        "metadata": [asdict(difference) for difference in result.metadata],
        "warnings": result.warnings,
        "notes": result.notes,
    }


def _json_tensor(tensor: "TensorCheck") -> dict[str, Any]:
    compared = tensor.comparison
    return {
        "name": tensor.name,
        "verdict": tensor.verdict,
        "type": tensor.ggml_type,
        "shape": tensor.shape,
        "source": tensor.source,
        "source_type": tensor.source_dtype,
        "expected_shape": tensor.expected_shape,
        "differing": compared and compared.differing,
        "units": compared and tensor.units,
        "first_difference": tensor.first_difference,
        "became_infinite": compared and compared.infinite,
        "worst_error": compared and compared.worst_error,
        "mean_error": compared and compared.mean_error,
        "worst_of_allowed": compared and compared.worst_of_allowed,
    }
