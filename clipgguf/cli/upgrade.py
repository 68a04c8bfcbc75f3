"""``clipgguf upgrade``."""

from typing import Annotated

import typer

from clipgguf.cli.output import message, show_path


def upgrade_command(
    old: Annotated[str, typer.Argument(metavar="OLD.gguf", help="An mmproj file that a script wrote.")],
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="PATH",
            help="The new file if PATH ends in .gguf, else its directory. [default: replace OLD.gguf]",
        ),
    ] = None,
    feature_layer: Annotated[
        int | None,
        typer.Option(
            "--feature-layer",
            metavar="N",
            min=1,
            help="After how many of its blocks the projector takes the features, where the file does not tell.",
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, and no word on what was done.")] = False,
) -> None:
    """Add the metadata that today's llama.cpp needs to an mmproj file of a CLIP tower, and change no tensor.

    Files from before have no clip.projector_type, and are refused; nor do they say with clip.vision.feature_layer how
    many blocks of the tower to run, and one too few is run. How many is known for CLIP's own towers. The file that is
    replaced keeps its mode and owner. Its path is all that goes to standard output.
    """
    from clipgguf.cli.progress import progress_bar
    from clipgguf.upgrading import upgrade

    with progress_bar(quiet) as progress:
        result = upgrade(old, output, feature_layer=feature_layer, progress=progress)
    if not quiet:
        message(f"added {' and '.join(result.added)}" if result.added else "nothing was needed")
    show_path(result.path)
