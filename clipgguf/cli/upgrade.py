"""``clipgguf upgrade``."""

from typing import Annotated

import typer

from clipgguf.cli.output import message, show_path


def upgrade_command(
    old: Annotated[str, typer.Argument(metavar="OLD.gguf", help="An mmproj file that a script of llama.cpp's wrote.")],
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
    """Make an mmproj file right that today's llama.cpp refuses or computes wrongly, and change no tensor's bytes.

    Files from before have no clip.projector_type, and are refused; nor do they say with clip.vision.feature_layer how
    many blocks of the tower to run, and one too few is run. How many is known for CLIP's own towers. Files of Llama 4,
    Gemma 3n, Gemma 4, CogVLM and Granite Speech that llama.cpp's own converter wrote are rid of its faults: a norm of
    another name, scales of another shape, an activation that is missing.

    The file that is replaced keeps its mode and owner. Its path is all that goes to standard output.
    """
    from clipgguf.cli.progress import progress_bar
    from clipgguf.upgrading import upgrade

    with progress_bar(quiet) as progress:
        result = upgrade(old, output, feature_layer=feature_layer, progress=progress)
    if not quiet:
        done = [*([f"added {' and '.join(result.added)}"] if result.added else []), *result.changed]
        message("; ".join(done) if done else "nothing was needed")
    show_path(result.path)
