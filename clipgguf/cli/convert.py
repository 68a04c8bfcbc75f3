"""``clipgguf convert``, and its plan as a table."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from clipgguf.cli.options import (
    MODEL_DIR,
    AsJson,
    IgnoreUnknown,
    ImageMean,
    ImageStd,
    LlavaProjector,
    ProjectorType,
    Threads,
    Variant,
    VisionConfig,
    VisionTower,
    Vocab,
)
from clipgguf.cli.output import (
    FOLD,
    RIGHT,
    WHOLE,
    WIDE,
    message,
    metadata_object,
    metadata_table,
    progress_bar,
    shape_text,
    show,
    show_json,
    show_messages,
    show_path,
    size,
    table,
)
from clipgguf.errors import OutputError, UsageError

if TYPE_CHECKING:
    from clipgguf.destination import Outlook
    from clipgguf.families import Request
    from clipgguf.plan import Plan


def convert_command(
    model_dir: Annotated[str | None, MODEL_DIR] = None,
    model_dir_option: Annotated[
        str | None,
        typer.Option("--model-dir", "-m", metavar="MODEL_DIR", help="Another way to give MODEL_DIR."),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "--output-dir",
            "-o",
            metavar="PATH",
            help="Directory for the file (made if missing), or the file itself if PATH ends in .gguf. {name} and "
            "{outtype} stand for the model's name and the element type: 'out/{name}-{outtype}.gguf'. "
            "[default: the model's directory]",
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            "--name",
            metavar="NAME",
            help="The model's name: general.name in the file, and {name} in --output. "
            "[default: the config's; in --output the directory's]",
        ),
    ] = None,
    text_only: Annotated[bool, typer.Option("--text-only", help="Convert the text tower alone.")] = False,
    vision_only: Annotated[bool, typer.Option("--vision-only", help="Convert the vision tower alone.")] = False,
    outtype: Annotated[
        Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "auto"] | None,
        typer.Option(
            "--outtype",
            case_sensitive=False,
            help="Element type of the matrices; auto: bf16 for bf16, else f16. [default: f16]",
        ),
    ] = None,
    use_f32: Annotated[bool, typer.Option("--use-f32", help="The same as --outtype f32.")] = False,
    image_mean: ImageMean = None,
    image_std: ImageStd = None,
    llava_projector: LlavaProjector = None,
    vision_tower: VisionTower = None,
    vision_config: VisionConfig = None,
    feature_layer: Annotated[
        int | None,
        typer.Option(
            "--feature-layer",
            metavar="N",
            help="The layer whose features the projector takes; -2 is after all blocks but the last. "
            "[default: the config's, else -2]",
        ),
    ] = None,
    keep_last_layer: Annotated[
        bool,
        typer.Option(
            "--keep-last-layer",
            help="Store one block more than is run: for PowerInfer and older llama.cpp, which leave out the last one "
            "themselves. Today's llama.cpp runs the right ones either way.",
        ),
    ] = False,
    projector_type: ProjectorType = None,
    variant: Variant = None,
    vocab: Vocab = None,
    ignore_unknown: IgnoreUnknown = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be written and where, and write nothing.")
    ] = False,
    as_json: AsJson = False,
    threads: Threads = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, notes or summary.")] = False,
) -> None:
    """Convert a checkpoint of CLIP, OpenCLIP, SigLIP or LLaVA to a GGUF file.

    Nothing but the file's path goes to standard output.
    """
    from clipgguf.conversion import run_conversion
    from clipgguf.families import Request

    if use_f32 and outtype not in (None, "f32"):
        raise UsageError("exclude each other", "use_f32", "outtype")
    request = Request(
        model_dir=Path(_one_of(model_dir, model_dir_option)),
        text_only=text_only,
        vision_only=vision_only,
        outtype="f32" if use_f32 else outtype or "f16",
        image_mean=image_mean,
        image_std=image_std,
        llava_projector=llava_projector,
        vision_tower=vision_tower,
        vision_config=vision_config,
        feature_layer=feature_layer,
        keep_last_layer=keep_last_layer,
        projector_type=projector_type,
        variant=variant,
        vocab=vocab,
        ignore_unknown=ignore_unknown,
        name=name,
    )
    if dry_run:
        _dry_run(request, output, as_json=as_json, quiet=quiet)
        return
    with progress_bar(quiet) as progress:
        result = run_conversion(request, output, threads=threads, progress=progress)
    show_messages(result.warnings, () if quiet or as_json else result.notes)
    if as_json:
        show_json({**asdict(result), "path": str(result.path)})
        return
    if not quiet:
        message(
            f"{result.found}: {result.tensors:,} tensors, {size(result.bytes_in)} in, {size(result.bytes_out)} out, "
            f"{result.seconds:.1f} s"
        )
    show_path(result.path)


def _one_of(argument: str | None, option: str | None) -> str:
    directories = [directory for directory in (argument, option) if directory is not None]
    if len(directories) != 1:
        what = "is given twice, as an argument and as --model-dir" if directories else "is missing"
        raise typer.BadParameter(what, param_hint="'MODEL_DIR'")
    return directories[0]


def _dry_run(request: "Request", output: str | None, *, as_json: bool, quiet: bool) -> None:
    """Print on standard output what a conversion would write, and where; OutputError when it could not."""
    from clipgguf.conversion import plan_conversion, plan_path
    from clipgguf.destination import check_output, outlook

    check_output(output)
    plan = plan_conversion(request)
    path = plan_path(request, plan, output)
    expected = outlook(path, plan.bytes_out)
    show_messages(plan.warnings, () if quiet or as_json else plan.notes)
    if as_json:
        show_json(_json_object(plan, path, expected))
    else:
        _show_plan(plan, path, expected)
    if expected.problem is not None:
        raise OutputError(expected.problem)


def _json_object(plan: "Plan", path: Path, expected: "Outlook") -> dict[str, Any]:
    """Return a plan as docs/json.md describes it: the keys of a conversion, and what is known before it alone."""
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


def _show_plan(plan: "Plan", path: Path, expected: "Outlook") -> None:
    """Print a plan on standard output: metadata, tensors, totals, and where the file would go."""
    tensors = table(
        {
            "tensor": FOLD,
            "source": WIDE,
            "shape": FOLD,
            "from": WHOLE,
            "to": WHOLE,
            "bytes in": RIGHT,
            "bytes out": RIGHT,
        },
        [
            (t.name, t.source.name, shape_text(t.shape), t.source.dtype, t.ggml_type.name, t.source.nbytes, t.nbytes)
            for t in plan.tensors
        ],
    )
    show(
        plan.found,
        metadata_table(plan.metadata),
        tensors,
        f"{len(plan.tensors):,} tensors, {plan.bytes_in:,} bytes in, {plan.bytes_out:,} bytes out",
        f"{path}: {_outlook_text(expected)}",
    )


def _outlook_text(expected: "Outlook") -> str:
    if expected.problem is not None:
        return "could not be written"
    if expected.replaces is not None:
        return f"would be written, and replace a file of {expected.replaces:,} bytes"
    return "would be written" if expected.makes is None else f"would be written, in a new directory {expected.makes}"
