"""``clipgguf convert``, and its plan as a table."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clipgguf.cli.options import MODEL_DIR, AsJson, Threads, takes_options
from clipgguf.cli.output import message, show_json, show_messages, show_path, size
from clipgguf.cli.tables import FOLD, RIGHT, WHOLE, WIDE, axes_text, metadata_object, metadata_table, show, table
from clipgguf.errors import OutputError, UsageError
from clipgguf.options import Options

if TYPE_CHECKING:
    from pathlib import Path

    from clipgguf.conversion import Conversion
    from clipgguf.destination import Outlook, Place
    from clipgguf.planning import Plan


@takes_options()
def convert_command(
    model_dir: Annotated[str | None, MODEL_DIR] = None,
    model_dir_option: Annotated[
        str | None, typer.Option("--model-dir", "-m", metavar="MODEL_DIR", help="Another way to give MODEL_DIR.")
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "--output-dir",
            "-o",
            metavar="PATH",
            help="Directory for the file (made if missing), or the file itself if PATH ends in .gguf; also "
            "s3://BUCKET/PREFIX/, gs://, az:// or hf://OWNER/NAME. {name} and {outtype} stand for the model's name "
            "and the element type: 'out/{name}-{outtype}.gguf'. "
            "[default: the model's directory, the current one where it has none here]",
        ),
    ] = None,
    options: Any = None,
    use_f32: Annotated[bool, typer.Option("--use-f32", help="The same as --outtype f32.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be written and where, and write nothing.")
    ] = False,
    as_json: AsJson = False,
    threads: Threads = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, notes or summary.")] = False,
) -> None:
    """Convert a checkpoint to a GGUF file.

    Nothing but the file's path goes to standard output.
    """
    from clipgguf.cli.progress import progress_bar
    from clipgguf.conversion import convert

    if use_f32 and options.get("outtype", "f32") != "f32":
        raise UsageError("exclude each other", "use_f32", "outtype")
    asked = Options(**(options | {"outtype": "f32"} if use_f32 else options))
    given = [directory for directory in (model_dir, model_dir_option) if directory is not None]
    if len(given) != 1:
        what = "is given twice, as an argument and as --model-dir" if given else "is missing"
        raise typer.BadParameter(what, param_hint="'MODEL_DIR'")
    (model,) = given
    if dry_run:
        _dry_run(model, asked, output, as_json=as_json, quiet=quiet)
        return
    with progress_bar(quiet) as progress:
        result = convert(model, output, asked, threads=threads, progress=progress)
    show_messages(result.warnings, () if quiet or as_json else result.notes)
    if as_json:
        show_json({**asdict(result), "path": str(result.path)})
        return
    if not quiet:
        message(
            f"{result.found}: {result.tensors:,} tensors, {size(result.bytes_in)} in, {size(result.bytes_out)} out, "
            f"{result.seconds:.1f} s{_origin_text(result)}"
        )
    show_path(result.path)


def _origin_text(result: "Conversion[Path | str]") -> str:
    """Return what came over the line, and of which version the checkpoint is; empty for one that just lies here."""
    over = f", {size(result.bytes_read)} over the line" if result.bytes_read else ""
    return f"{over}, from commit {result.commit}" if result.commit else over


def _dry_run(model: str, options: Options, output: str | None, *, as_json: bool, quiet: bool) -> None:
    """Print on standard output what a conversion would write, and where; OutputError when it could not."""
    from clipgguf.conversion import plan, planned_place
    from clipgguf.destination import check_output, outlook

    check_output(output)
    made = plan(model, options)
    path = planned_place(output, options, made)
    expected = outlook(path, made.bytes_out)
    show_messages(made.warnings, () if quiet or as_json else made.notes)
    if as_json:
        show_json(_json_object(made, path, expected))
    else:
        _show_plan(made, path, expected)
    if expected.problem is not None:
        raise OutputError(expected.problem)


def _json_object(plan: "Plan", path: "Place", expected: "Outlook") -> dict[str, Any]:
    """Return a plan as docs/json.md describes it: the keys of a conversion, and what is known before it alone."""
    from clipgguf.kernels import encoders

    return {
        "path": str(path),
        "tensors": len(plan.tensors),
        "bytes_in": plan.bytes_in,
        "bytes_out": plan.bytes_out,
        "seconds": None,
        "warnings": plan.warnings,
        "notes": plan.notes,
        "found": plan.found,
        "outtype": plan.outtype,
        "encoders": encoders(),
        "bytes_read": plan.bytes_far,
        "commit": plan.commit,
        "replaces": expected.replaces,
        "problem": expected.problem,
        "plan": {
            "metadata": metadata_object(plan.metadata),
            "tensors": [
                {
                    "name": tensor.name,
                    "type": tensor.ggml_type.name,
                    "shape": tensor.shape,
                    "bytes": tensor.nbytes,
                    "source": tensor.source.name,
                    "source_type": tensor.source.dtype,
                    "source_bytes": tensor.source.nbytes,
                }
                for tensor in plan.tensors
            ],
        },
    }


def _show_plan(plan: "Plan", path: "Place", expected: "Outlook") -> None:
    """Print a plan on standard output: metadata, tensors, totals, and where the file would go."""
    sizes = {"bytes in": RIGHT, "bytes out": RIGHT}
    columns = {"tensor": FOLD, "source": WIDE, "shape": FOLD, "from": WHOLE, "to": WHOLE, **sizes}
    rows = (
        (t.name, t.source.name, axes_text(t.shape), t.source.dtype, t.ggml_type.name, t.source.nbytes, t.nbytes)
        for t in plan.tensors
    )
    show(
        plan.found,
        metadata_table(plan.metadata),
        table(columns, rows),
        f"{len(plan.tensors):,} tensors, {plan.bytes_in:,} bytes in, {plan.bytes_out:,} bytes out"
        + (f"; {plan.bytes_far:,} bytes would come over the line" if plan.bytes_far else "")
        + (f", from commit {plan.commit}" if plan.commit else ""),
        f"{path}: {_outlook_text(expected)}",
    )


def _outlook_text(expected: "Outlook") -> str:
    if expected.problem is not None:
        return "could not be written"
    if expected.replaces is not None:
        return f"would be written, and replace a file of {expected.replaces:,} bytes"
    return "would be written" if expected.makes is None else f"would be written, in a new directory {expected.makes}"
