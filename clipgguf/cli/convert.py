"""``clipgguf convert``, and its plan as a table."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from clipgguf import __version__
from clipgguf.cli.options import (
    MODEL_DIR,
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
    check_variant,
)
from clipgguf.cli.output import (
    FOLD,
    RIGHT,
    WHOLE,
    message,
    metadata_table,
    progress_bar,
    shape_text,
    show,
    show_messages,
    show_path,
    size,
    table,
)

if TYPE_CHECKING:
    from clipgguf.plan import Plan


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"clipgguf {__version__}")
        raise typer.Exit


def convert_command(
    model_dir: Annotated[str | None, MODEL_DIR] = None,
    model_dir_option: Annotated[
        str | None,
        typer.Option("--model-dir", "-m", metavar="MODEL_DIR", help="The same, as the old script spells it."),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "--output-dir",
            "-o",
            metavar="PATH",
            help="Directory for the file (made if missing), or the file itself if PATH ends in .gguf. "
            "[default: the model's directory]",
        ),
    ] = None,
    text_only: Annotated[bool, typer.Option("--text-only", help="Convert the text tower alone.")] = False,
    vision_only: Annotated[bool, typer.Option("--vision-only", help="Convert the vision tower alone.")] = False,
    outtype: Annotated[
        Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "auto"],
        typer.Option("--outtype", help="Element type of the matrices; auto: bf16 for bf16, else f16."),
    ] = "f16",
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
        bool, typer.Option("--dry-run", help="Print what would be written, as a table, and write nothing.")
    ] = False,
    threads: Threads = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, notes or summary.")] = False,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version and exit.")
    ] = False,
) -> None:
    """Convert a checkpoint of CLIP, OpenCLIP, SigLIP or LLaVA to a GGUF file.

    The file's path is all that goes to standard output.

    This is what clipgguf does unless its first argument names another command (inspect, upgrade or verify; see
    clipgguf verify --help).
    A directory that is called like a command is reached as ./NAME.
    """
    from clipgguf.conversion import plan_conversion, run_conversion
    from clipgguf.families import Request

    directory = _one_of(model_dir, model_dir_option)
    exclusive = {"--text-only": text_only, "--vision-only": vision_only, "--llava-projector": llava_projector}
    if len(given := [option for option, value in exclusive.items() if value]) > 1:
        raise typer.BadParameter(f"excludes {given[1]}", param_hint=f"'{given[0]}'")
    check_variant(variant)
    request = Request(
        model_dir=Path(directory),
        text_only=text_only,
        vision_only=vision_only,
        outtype="f32" if use_f32 else outtype,
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
    )
    if dry_run:
        plan = plan_conversion(request)
        show_messages(plan.warnings, () if quiet else plan.notes)
        _show_plan(plan)
        return
    with progress_bar(quiet) as progress:
        result = run_conversion(request, output, threads=threads, progress=progress)
    show_messages(result.warnings, () if quiet else result.notes)
    if not quiet:
        message(
            f"{result.found}: {result.tensors:,} tensors, {size(result.bytes_in)} in, {size(result.bytes_out)} out, "
            f"{result.seconds:.1f} s"
        )
    show_path(result.path)


def _one_of(argument: str | None, option: str | None) -> str:
    directories = [directory for directory in (argument, option) if directory is not None]
    if "" in directories:
        raise typer.BadParameter("is empty", param_hint="'MODEL_DIR'")
    if len(directories) != 1:
        what = "is given twice, as an argument and as --model-dir" if directories else "is missing"
        raise typer.BadParameter(what, param_hint="'MODEL_DIR'")
    return directories[0]


def _show_plan(plan: "Plan") -> None:
    """Print a plan on standard output: metadata, tensors, totals."""
    tensors = table(
        {
            "tensor": FOLD,
            "source": FOLD,
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
        f"{plan.file_name}: {len(plan.tensors):,} tensors, {plan.bytes_in:,} bytes in, {plan.bytes_out:,} bytes out",
    )
