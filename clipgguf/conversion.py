"""Convert a model directory: open, plan, write."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar, overload

from clipgguf.destination import Place, check_output, output_place, safe_name
from clipgguf.families import open_model
from clipgguf.kernels import encoders
from clipgguf.options import DEFAULTS, Options, PathLike
from clipgguf.sources.given import bytes_received

# numpy and gguf, 20 MB of code and as much of a second as all the rest, are imported by the functions that need them,
# after the JSON is read: the memory that parsing a vocabulary took then serves them, instead of adding to the peak.
if TYPE_CHECKING:
    import os

    from clipgguf.planning import Plan
    from clipgguf.writer import Progress

PathOrAddress = TypeVar("PathOrAddress", Path, Path | str, covariant=True)


@dataclass(frozen=True, slots=True)
class Conversion(Generic[PathOrAddress]):
    """What a conversion did: ``bytes_in`` and ``bytes_out`` count tensor data, ``seconds`` is wall time.

    ``path`` is the file; where that is not on this machine, its address as text.

    ``bytes_read`` are what came over the line where the checkpoint is not on this machine, and ``commit`` is which
    version of it, where it is the Hugging Face hub's.

    ``warnings`` and ``notes`` are lines of text; a warning says that the file may not be what was wanted, a note that
    it is, and how. ``found`` says what the checkpoint was taken for, and ``outtype`` which element type "auto" became.
    ``encoders`` is "compiled" or "numpy", by which the element types were converted, to the same bytes.
    """

    path: PathOrAddress
    tensors: int
    bytes_in: int
    bytes_out: int
    seconds: float
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    found: str
    outtype: str
    encoders: str
    bytes_read: int = 0
    commit: str | None = None


@overload
def convert(
    model_dir: PathLike,
    output: "os.PathLike[str] | None" = None,
    options: Options = DEFAULTS,
    *,
    threads: int | None = None,
    progress: "Progress | None" = None,
) -> Conversion[Path]: ...


@overload
def convert(
    model_dir: PathLike,
    output: PathLike | None = None,
    options: Options = DEFAULTS,
    *,
    threads: int | None = None,
    progress: "Progress | None" = None,
) -> Conversion[Path | str]: ...


def convert(
    model_dir: PathLike,
    output: PathLike | None = None,
    options: Options = DEFAULTS,
    *,
    threads: int | None = None,
    progress: "Progress | None" = None,
) -> Conversion[Path] | Conversion[Path | str]:
    """Convert a checkpoint to one GGUF file.

    ``model_dir`` is the model's directory, or a file of weights with the configuration beside it; as text it may be
    "hf://OWNER/NAME[@REVISION][/FOLDER]", or an address in an object store or on the web. ``output`` is the file itself
    if it ends in ``.gguf``, else a directory, made if missing; without it the file goes into the model directory, or
    into the working directory where the model has none of its own here. In it ``{name}`` stands for the option
    ``name``, else for the model directory's, as far as files can be called so, and ``{outtype}`` for the element type.
    As text it may also be an address in an object store ("s3://BUCKET/PREFIX/") or a model of the hub
    ("hf://OWNER/NAME"): the file appears there when it is complete, or not at all.

    ``threads`` is how many convert; the result does not depend on it. ``progress`` is called with the bytes of tensor
    data written and the bytes to write.

    Raises ConfigError, CheckpointError or OutputError (all of them ClipGGUFError) when the directory is no model that
    can be converted, or the file cannot be written; whatever was on disk is then as it was, but for what the next
    conversion from the hub or the web goes on with, where the line broke. Raises UsageError (a
    ValueError) for options that do not apply to the model, and for an output that can be no file.
    """
    started, before = time.perf_counter(), bytes_received()
    check_output(output)
    made = plan(model_dir, options)
    place = planned_place(output, options, made)
    if isinstance(place, Path):
        from clipgguf.writer import write_plan

        overflows = write_plan(made, place, threads=threads, progress=progress)
    else:
        from clipgguf.uploads import upload_plan

        overflows = upload_plan(made, place, threads=threads, progress=progress)
    return Conversion(
        path=place if isinstance(place, Path) else str(place),
        tensors=len(made.tensors),
        bytes_in=made.bytes_in,
        bytes_out=made.bytes_out,
        seconds=time.perf_counter() - started,
        warnings=made.warnings + _overflow_warnings(made, overflows),
        notes=made.notes,
        found=made.found,
        outtype=made.outtype,
        encoders=encoders(),
        bytes_read=bytes_received() - before,
        commit=made.commit,
    )


def plan(model_dir: PathLike, options: Options = DEFAULTS) -> "Plan":
    """Work out what ``convert`` would write, from JSON and headers alone; it raises what that raises."""
    model = open_model(model_dir, options)
    from clipgguf.planning import make_plan

    return make_plan(model, options.outtype)


def planned_place(output: PathLike | None, options: Options, made: "Plan") -> Place:
    """Return where the file of a plan goes; UsageError when ``output`` does not say it."""
    name = safe_name(made.title if options.name is None else options.name)
    return output_place(made.directory or Path(), output, made.file_name, {"name": name, "outtype": made.outtype})


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
