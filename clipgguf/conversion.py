"""Convert a model directory: open, plan, write."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from clipgguf.destination import PathLike, check_output, output_path, safe_name

# numpy and gguf, 20 MB of code and as much of a second as all the rest, are imported by the functions that need them,
# after the JSON is read: the memory that parsing a vocabulary took then serves them, instead of adding to the peak.
if TYPE_CHECKING:
    from clipgguf.families import Request
    from clipgguf.plan import Plan
    from clipgguf.writer import Progress

__all__ = ["Conversion", "PathLike", "convert", "plan_conversion", "plan_path", "run_conversion"]


@dataclass(frozen=True, slots=True)
class Conversion:
    """What a conversion did: the file, how much went in and out, how long it took, and what deserves a second look.

    ``bytes_in`` and ``bytes_out`` count tensor data, ``seconds`` is wall time. ``warnings`` and ``notes`` are lines of
    text; a warning says that the file may not be what was wanted, a note that it is, and how. ``found`` says what the
    checkpoint was taken for, and ``outtype`` which element type "auto" became.
    """

    path: Path
    tensors: int
    bytes_in: int
    bytes_out: int
    seconds: float
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    found: str
    outtype: str


def convert(
    model_dir: PathLike,
    output: PathLike | None = None,
    *,
    text_only: bool = False,
    vision_only: bool = False,
    outtype: str = "f16",
    image_mean: Sequence[float] | None = None,
    image_std: Sequence[float] | None = None,
    llava_projector: PathLike | None = None,
    vision_tower: PathLike | None = None,
    vision_config: PathLike | None = None,
    feature_layer: int | None = None,
    keep_last_layer: bool = False,
    projector_type: str | None = None,
    variant: str | None = None,
    vocab: PathLike | None = None,
    ignore_unknown: bool = False,
    name: str | None = None,
    threads: int | None = None,
    progress: "Progress | None" = None,
) -> Conversion:
    """Convert a checkpoint of CLIP, OpenCLIP, SigLIP's vision tower or LLaVA to one GGUF file.

    ``model_dir`` is the model's directory, or a file of weights with the configuration beside it.

    ``output`` is the file itself if it ends in ``.gguf``, else a directory, made if missing; without it the file goes
    into the model directory. In it ``{name}`` stands for ``name``, else for the model directory's, as far as files can
    be called so, and ``{outtype}`` for the element type. ``outtype`` is "f32", "f16", "bf16", "q8_0", "q5_1",
    "q5_0", "q4_1", "q4_0" or "auto". ``image_mean`` and ``image_std`` are 3 values for pixels
    in [0, 1] and replace those of the image processor's file. ``name`` is written as general.name, instead of the
    configuration's or the directory's.

    A LLaVA checkpoint becomes an mmproj file, and so does a CLIP directory with ``llava_projector``: a file in torch's
    format, a safetensors file, or a LLaVA checkpoint. ``vision_tower`` is the directory of the tower where the
    checkpoint has none, ``vision_config`` the tower's config.json where none is beside it. ``feature_layer`` is the
    layer whose features the projector takes (-2: after all blocks but the last), ``keep_last_layer`` stores one
    block more for readers that leave out the last one themselves, and ``projector_type`` is "mlp", "ldp" or "ldpv2"
    where it should not be told from the tensors.

    ``variant`` chooses among the weights of a directory ("fp16" for model.fp16.safetensors). ``vocab`` is a vocab.json
    or tokenizer.json, or the directory that has one, where the model's has none. ``ignore_unknown`` leaves out tensors
    that no rule knows, with a warning instead of an error.

    ``threads`` is how many convert, 64 at most; the result does not
    depend on it. ``progress`` is called with the bytes of tensor data written and the bytes to write.

    Raises ConfigError, CheckpointError or OutputError (all of them ClipGGUFError) when the directory is no CLIP model
    that can be converted, or the file cannot be written; whatever was on disk is then as it was.
    Raises ValueError for arguments that contradict each other, or do not apply to the checkpoint.
    """
    from clipgguf.families import Request

    request = Request(
        model_dir=Path(model_dir),
        text_only=text_only,
        vision_only=vision_only,
        outtype=outtype,
        image_mean=None if image_mean is None else tuple(map(float, image_mean)),
        image_std=None if image_std is None else tuple(map(float, image_std)),
        llava_projector=None if llava_projector is None else Path(llava_projector),
        vision_tower=None if vision_tower is None else Path(vision_tower),
        vision_config=None if vision_config is None else Path(vision_config),
        feature_layer=feature_layer,
        keep_last_layer=keep_last_layer,
        projector_type=projector_type,
        variant=variant,
        vocab=None if vocab is None else Path(vocab),
        ignore_unknown=ignore_unknown,
        name=name,
    )
    return run_conversion(request, output, threads=threads, progress=progress)


def run_conversion(
    request: "Request",
    output: PathLike | None = None,
    *,
    threads: int | None = None,
    progress: "Progress | None" = None,
) -> Conversion:
    """Do what ``convert`` does, with everything but the output in a request."""
    started = time.perf_counter()
    check_output(output)
    plan = plan_conversion(request)
    path = plan_path(request, plan, output)
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
        found=plan.found,
        outtype=plan.outtype,
    )


def plan_conversion(request: "Request") -> "Plan":
    """Work out what the conversion that is asked for will write, from JSON and headers alone."""
    from clipgguf.families import open_model

    model = open_model(request)
    from clipgguf.plan import make_plan

    return make_plan(model, request.outtype)


def plan_path(request: "Request", plan: "Plan", output: PathLike | None) -> Path:
    """Return where the file of a plan goes; UsageError when ``output`` does not say it."""
    from clipgguf.config import directory_name

    name = safe_name(directory_name(request.directory) if request.name is None else request.name)
    return output_path(request.directory, output, plan.file_name, {"name": name, "outtype": plan.outtype})


def _overflow_warnings(plan: "Plan", overflows: dict[str, int]) -> tuple[str, ...]:
    warnings = []
    for tensor in plan.tensors:
        if count := overflows.get(tensor.name):
            advice = "; --outtype f32 keeps them" if tensor.keeps_more_as_f32 else ""
            warnings.append(
                f"{tensor.name}: {count:,} of {tensor.elements:,} values are finite in the source and too large for "
                f"{tensor.ggml_type.name}, they became infinite{advice}"
            )
    return tuple(warnings)
