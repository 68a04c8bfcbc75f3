"""Arguments and options that several commands share, each with its text, and what typer does not check of them."""

from pathlib import Path
from typing import Annotated, Literal

import typer

MODEL_DIR = typer.Argument(
    metavar="MODEL_DIR", help="Directory of the model (config.json and its weights), or a file of weights in it."
)

ImageMean = Annotated[
    tuple[float, float, float] | None,
    typer.Option("--image-mean", metavar="R G B", help="Mean of the pixels, for pixels from 0 to 1."),
]
ImageStd = Annotated[
    tuple[float, float, float] | None,
    typer.Option("--image-std", metavar="R G B", help="Standard deviation of the pixels."),
]
LlavaProjector = Annotated[
    Path | None,
    typer.Option(
        "--llava-projector",
        metavar="PATH",
        help="The projector that makes an mmproj file of the CLIP model: llava.projector, mm_projector.bin, a "
        "safetensors file, or a LLaVA checkpoint's directory.",
    ),
]
VisionTower = Annotated[
    Path | None,
    typer.Option("--vision-tower", metavar="DIR", help="The vision tower of a LLaVA checkpoint that has none."),
]
VisionConfig = Annotated[
    Path | None,
    typer.Option("--vision-config", metavar="FILE", help="The vision tower's config.json where none is beside it."),
]
ProjectorType = Annotated[
    Literal["mlp", "ldp", "ldpv2"] | None,
    typer.Option(
        "--projector-type", case_sensitive=False, help="The projector's kind. [default: told from its tensors]"
    ),
]
Variant = Annotated[
    str | None,
    typer.Option("--variant", metavar="NAME", help="Which of several weights: fp16 for model.fp16.safetensors."),
]
Vocab = Annotated[
    Path | None,
    typer.Option(
        "--vocab", metavar="PATH", help="vocab.json or tokenizer.json, or their directory, if not beside the model."
    ),
]
IgnoreUnknown = Annotated[
    bool, typer.Option("--ignore-unknown", help="Leave out tensors that no rule knows, with a warning.")
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads", min=1, metavar="N", help="Threads that do the work, at most 64. [default: the cores, at most 8]"
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables, for programs.")]
