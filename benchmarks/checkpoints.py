"""The checkpoints that are converted: real sizes, random weights, made when they are missing and then kept."""

import math
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, cast

from benchmarks.process import BenchmarkError, say
from clipgguf import Options, convert
from clipgguf.options import Outtype
from tests.checkpoints import TINY
from tests.json_files import write_json
from tests.weights import ITEMSIZE, Shapes, write_random_weights, write_sparse_safetensors

LARGEST_SHARD = 5 * 10**9  # As transformers 4 saves.


class Model(Protocol):
    """A model as the shapes of its tensors and its JSON files, such as ``tests.checkpoints.Clip``."""

    def shapes(self) -> Shapes:
        """Return the shapes of all tensors by name."""

    def files(self) -> dict[str, Any]:
        """Return the JSON files beside the weights by name."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model with all its tensors of one safetensors dtype; ``small`` stands in for it with --quick."""

    name: str
    model: Model
    dtype: str = "F32"
    small: Model = TINY

    @property
    def directory(self) -> str:
        """The name of its directory."""
        return f"{self.name}-{self.dtype}"

    @property
    def nbytes(self) -> int:
        """The bytes of its tensors."""
        return sum(math.prod(shape) for shape in self.model.shapes().values()) * ITEMSIZE[self.dtype]

    def quick(self) -> "Checkpoint":
        """Return its small one."""
        return replace(self, name=f"{self.name}-small", model=self.small)

    def make(self, work_dir: Path) -> None:
        """Write it in bounded memory. It appears under its name only when it is complete."""
        path = work_dir / self.directory
        say(f"making {path} ({self.nbytes / 1e9:.1f} GB)")
        partial = path.with_name(f"{path.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for name, value in self.model.files().items():
            write_json(partial / name, value)
        self.write_weights(partial)
        partial.replace(path)

    def write_weights(self, directory: Path) -> None:
        """Write its files of weights."""
        write_random_weights(directory, self.model.shapes(), self.dtype, shards=-(-self.nbytes // LARGEST_SHARD))


@dataclass(frozen=True, slots=True)
class FarCheckpoint(Checkpoint):
    """A checkpoint that comes over a line, which is as long for zeros: its weights are a hole, and take no disk.

    Its directory is a model of a hub that serves the directory for checkpoints.
    """

    @property
    def directory(self) -> str:
        """The name of its directory, and of the model."""
        return f"far/{self.name}-{self.dtype}"

    def write_weights(self, directory: Path) -> None:
        """Write its file of weights."""
        write_sparse_safetensors(directory / "model.safetensors", self.model.shapes(), self.dtype)


@dataclass(frozen=True, slots=True)
class ReadyFile(Checkpoint):
    """A checkpoint's GGUF file in the type that keeps its values, as programs want it that only quantize.

    The checkpoint itself must have been made before.
    """

    @property
    def directory(self) -> str:
        """The name of its directory."""
        return f"{self.name}-{self.dtype}-gguf"

    def make(self, work_dir: Path) -> None:
        """Convert the checkpoint."""
        path = work_dir / self.directory
        path.mkdir()
        options = Options(outtype=cast(Outtype, self.dtype.lower()))
        checkpoint = Checkpoint(self.name, self.model, self.dtype)
        convert(work_dir / checkpoint.directory, path / "ready.gguf", options)


def make_all(work_dir: Path, checkpoints: Iterable[Checkpoint]) -> None:
    """Make all checkpoints that are missing, after a look whether they and the outputs have room on the disk.

    Two outputs are there at a time, and none is larger than its checkpoint. Raises BenchmarkError when there is too
    little room: at once, and not after an hour of measuring.
    """
    wanted = {checkpoint.directory: checkpoint for checkpoint in checkpoints}
    missing = [checkpoint for name, checkpoint in wanted.items() if not (work_dir / name).is_dir()]
    outputs = 2 * max((checkpoint.nbytes for checkpoint in wanted.values()), default=0)
    needed = outputs + sum(checkpoint.nbytes for checkpoint in missing)
    work_dir.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(work_dir).free
    if free < needed:
        raise BenchmarkError(f"{work_dir}: has {free / 1e9:.1f} GB free, this needs {needed / 1e9:.1f} GB")
    for checkpoint in missing:
        checkpoint.make(work_dir)
