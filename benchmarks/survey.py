"""What the pictures show: memory over time on one model, and time against size on several; kept as JSON."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.contenders import floor, ours, reference, say_run
from benchmarks.measure import Contender, alternate
from benchmarks.memory_trace import Trace, trace_all
from benchmarks.model_dirs import ModelDir, make_all, say
from benchmarks.report import machine

# Grows when a key of the JSON changes its meaning or goes.
SCHEMA = 1
# More moments than the picture has pixels would only make the file large.
MOMENTS = 800


@dataclass(frozen=True, slots=True)
class Growth:
    """One program's wall seconds by the checkpoint's bytes: of each model the least, the median and the greatest."""

    key: str
    label: str
    models: tuple[str, ...]
    nbytes: tuple[int, ...]
    least: tuple[float, ...]
    median: tuple[float, ...]
    greatest: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Survey:
    """All that is drawn; a picture without figures is left out. ``machine`` is what they were measured on."""

    machine: Mapping[str, str | int]
    reference: Mapping[str, str] | None
    runs: int
    traced: str = ""
    traces: tuple[Trace, ...] = ()
    growth: tuple[Growth, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return the survey as JSON's types: times in seconds, sizes in bytes."""
        return {"schema": SCHEMA, **asdict(self)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Survey":
        """Return what ``as_json`` gave; KeyError or TypeError when it is something else."""
        return cls(
            machine=value["machine"],
            reference=value["reference"],
            runs=value["runs"],
            traced=value["traced"],
            traces=tuple(Trace(**_tuples(trace)) for trace in value["traces"]),
            growth=tuple(Growth(**_tuples(growth)) for growth in value["growth"]),
        )


def _tuples(value: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(item) if isinstance(item, list) else item for key, item in value.items()}


def survey(
    work_dir: Path,
    traced: str | None,
    sizes: Sequence[str],
    runs: int,
    python: str | None,
    reference_versions: Mapping[str, str] | None,
) -> Survey:
    """Trace the conversion of model ``traced``, time those of ``sizes``, all f32 to f16, and return the figures.

    ``python`` runs the torch reference; None where it is skipped. Raises BenchmarkError when somebody fails.
    """
    models = {name: ModelDir(name, "F32", work_dir) for name in (*([traced] if traced else []), *sizes)}
    make_all(work_dir, models.values())
    outputs = work_dir / "outputs"
    traces: list[Trace] = []
    try:
        if traced is not None:
            say(f"memory over time: {traced}")
            traces = trace_all(_converters(models[traced], outputs, python), runs)
        growth = _growth([models[name] for name in sizes], outputs, runs, python)
    finally:
        shutil.rmtree(outputs, ignore_errors=True)
    thinned = tuple(trace.thinned(MOMENTS) for trace in traces)
    return Survey(machine(), reference_versions, runs, traced or "", thinned, growth)


def _converters(model: ModelDir, outputs: Path, python: str | None) -> list[Contender]:
    theirs = [reference(model, outputs, python)] if python is not None else []
    return [ours(model, outputs, "f16"), *theirs]


def _growth(models: Sequence[ModelDir], outputs: Path, runs: int, python: str | None) -> tuple[Growth, ...]:
    rows: dict[str, list[tuple[str, str, int, float, float, float]]] = {}
    for model in models:
        say(f"time against size: {model.model}")
        first, *others = _converters(model, outputs, python)
        floors = [floor(first, outputs, shards=model.shards, flush=flush) for flush in (False, True)]
        for key, result in alternate([first, *floors, *others], runs, say_run).items():
            nbytes = sum(shard.stat().st_size for shard in model.shards)
            times = min(result.seconds), result.median, max(result.seconds)
            rows.setdefault(key, []).append((result.contender.label, model.model, nbytes, *times))
    found = []
    for key, points in rows.items():
        labels, *columns = zip(*sorted(points, key=lambda point: point[2]), strict=True)
        found.append(Growth(key, labels[0], *columns))
    return tuple(found)
