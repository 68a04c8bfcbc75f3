"""One comparison: a checkpoint, an outtype, and everybody who can convert it, or at least copy it."""

import shutil

from benchmarks.contenders import OURS, floor, ours, reference, reference_versions, say_run
from benchmarks.measure import alternate, resting_memory
from benchmarks.model_dirs import ModelDir, make_all, say
from benchmarks.report import Report, Work


def compare(model: ModelDir, outtype: str, runs: int, python: str) -> Report:
    """Measure our conversion, the floor, the flushed floor and the torch reference, alternating.

    ``python`` is the interpreter for the reference, which is skipped where it cannot run. Raises BenchmarkError when
    somebody fails or there is too little room on the disk.
    """
    make_all(model.work_dir, [model], outtype)
    versions, skipped = reference_versions(python)
    if skipped is not None:
        say(f"the torch reference is skipped: {skipped}")
    outputs = model.work_dir / "outputs"
    first = ours(model, outputs, outtype)
    floors = [floor(first, outputs, shards=model.shards, flush=flush) for flush in (False, True)]
    theirs = [] if skipped is not None else [reference(model, outputs, python, outtype)]
    contenders = [first, *floors, *theirs]
    try:
        results = alternate(contenders, runs, say_run)
    finally:
        shutil.rmtree(outputs, ignore_errors=True)
    work = Work(
        model=model.model,
        dtype=model.dtype,
        outtype=outtype,
        shards=len(model.shards),
        bytes_in=sum(shard.stat().st_size for shard in model.shards),
        bytes_out=results[OURS].runs[0].output_nbytes,
    )
    return Report(work, results, resting_memory(), versions, skipped)
