"""Convert a model directory: open, plan, write."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from clipgguf.families import Request, open_model

# numpy and gguf, 20 MB of code and as much of a second as all the rest, are imported by the functions that need them,
# after the JSON is read: the memory that parsing a vocabulary took then serves them, instead of adding to the peak.
if TYPE_CHECKING:
    from clipgguf.plan import Plan
    from clipgguf.writer import Progress

PathLike = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class Conversion:
    """What a conversion did: the file, how much went in and out, how long it took, and what deserves a second look.

    ``bytes_in`` and ``bytes_out`` count tensor data, ``seconds`` is wall time. ``warnings`` and ``notes`` are lines of
    text; a warning says that the file may not be what was wanted, a note that it is, and how.
    """

    path: Path
    tensors: int
    bytes_in: int
    bytes_out: int
    seconds: float
    warnings: tuple[str, ...]
    notes: tuple[str, ...]


def convert(
    model_dir: PathLike,
    output: PathLike | None = None,
    *,
    text_only: bool = False,
    vision_only: bool = False,
    outtype: str = "f16",
    image_mean: Sequence[float] | None = None,
    image_std: Sequence[float] | None = None,
    threads: int | None = None,
    progress: "Progress | None" = None,
) -> Conversion:
    """Convert a Hugging Face CLIP directory to one GGUF file.

    ``output`` is the file itself if it ends in ``.gguf``, else a directory, made if missing; without it the file goes
    into the model directory. ``outtype`` is "f16" or "f32". ``image_mean`` and ``image_std`` are 3 values for pixels
    in [0, 1] and replace those of the image processor's file. ``threads`` is how many convert; the result does not
    depend on it. ``progress`` is called with the bytes of tensor data written and the bytes to write.

    Raises ConfigError, CheckpointError or OutputError (all of them ClipGGUFError) when the directory is no CLIP model
    that can be converted, or the file cannot be written; whatever was on disk is then as it was.
    Raises ValueError for arguments that contradict each other.
    """
    started = time.perf_counter()
    request = Request(
        model_dir=Path(model_dir),
        text_only=text_only,
        vision_only=vision_only,
        outtype=outtype,
        image_mean=image_mean,
        image_std=image_std,
    )
    plan = plan_conversion(request)
    path = _output_path(model_dir, output, plan.file_name)
    from clipgguf.writer import write_plan

    overflows = write_plan(plan, path, threads=threads, progress=progress)
    return Conversion(
        path=path,
        tensors=len(plan.tensors),
        bytes_in=plan.bytes_in,
        bytes_out=plan.bytes_out,
        seconds=time.perf_counter() - started,
        warnings=plan.warnings + _overflow_warnings(plan, overflows),
        notes=plan.notes,
    )


def plan_conversion(request: Request) -> "Plan":
    """Work out what the conversion that is asked for will write, from JSON and headers alone."""
    model = open_model(request)
    from clipgguf.plan import make_plan

    return make_plan(model, request.outtype)


def _output_path(model_dir: PathLike, output: PathLike | None, file_name: str) -> Path:
    if output is None:
        return Path(model_dir, file_name)
    if os.fspath(output).endswith(".gguf"):
        return Path(output)
    return Path(output, file_name)


def _overflow_warnings(plan: "Plan", overflows: dict[str, int]) -> tuple[str, ...]:
    warnings = []
    for tensor in plan.tensors:
        if count := overflows.get(tensor.name):
            advice = "; --outtype f32 keeps them" if tensor.outtype_decides else ""
            warnings.append(
                f"{tensor.name}: {count:,} of {tensor.elements:,} values are finite in the source and too large for "
                f"{tensor.ggml_type.name}, they became infinite{advice}"
            )
    return tuple(warnings)
