"""The checkpoints that benchmarks read: real sizes, random weights, made when they are missing and then kept."""

import math
import shutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import BenchmarkError
from tests.checkpoints import ITEMSIZE, REAL, TINY, write_model

# "tiny" is there to try the benchmarks themselves; its figures say nothing.
MODELS = {"tiny": TINY, **REAL}

LARGEST_SHARD = 5 * 10**9  # As transformers 4 saves.

# How many outputs are on disk at a time: ours, which others read, and that of whoever runs.
OUTPUTS_AT_A_TIME = 2


@dataclass(frozen=True, slots=True)
class ModelDir:
    """A checkpoint of one of MODELS with all its tensors of one safetensors dtype, in a directory of the work dir."""

    model: str
    dtype: str
    work_dir: Path

    @property
    def path(self) -> Path:
        """The directory, there or not."""
        return self.work_dir / f"{self.model}-{self.dtype}"

    @property
    def shards(self) -> tuple[Path, ...]:
        """Its files of weights, in order."""
        return tuple(sorted(self.path.glob("*.safetensors")))

    @property
    def elements(self) -> int:
        """How many values its tensors have."""
        return sum(math.prod(shape) for shape in MODELS[self.model].shapes().values())

    @property
    def nbytes(self) -> int:
        """The bytes of its tensors."""
        return self.elements * ITEMSIZE[self.dtype]

    def make(self) -> None:
        """Write the checkpoint, unless it is there. It appears under its name only when it is complete."""
        if self.path.is_dir():
            return
        say(f"making {self.path} ({self.nbytes / 1e9:.1f} GB)")
        partial = self.path.with_name(f"{self.path.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            shards = -(-self.nbytes // LARGEST_SHARD)
            write_model(partial, MODELS[self.model], dtype=self.dtype, shards=shards)
            partial.replace(self.path)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def make_all(work_dir: Path, models: Iterable[ModelDir], outtype: str = "f16", extra: int = 0) -> None:
    """Make all checkpoints that are missing, after a look whether they and the outputs have room on the disk.

    ``outtype`` is that of the outputs, ``extra`` what else is to be written, in bytes. Raises BenchmarkError when there
    is too little room: at once, and not after an hour of measuring.
    """
    models = list(dict.fromkeys(models))
    itemsize = ITEMSIZE["F32" if outtype == "f32" else "F16"]
    outputs = max((model.elements * itemsize for model in models), default=0) * OUTPUTS_AT_A_TIME
    needed = outputs + extra + sum(model.nbytes for model in models if not model.path.is_dir())
    work_dir.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(work_dir).free
    if free < needed:
        raise BenchmarkError(f"{work_dir}: has {free / 1e9:.1f} GB free, this needs {needed / 1e9:.1f} GB")
    for model in models:
        model.make()


def say(text: str) -> None:
    """Tell the user how far the work is."""
    print(f"benchmarks: {text}", file=sys.stderr, flush=True)
