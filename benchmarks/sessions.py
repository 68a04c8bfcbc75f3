"""What the bars are measured on: sessions of contenders that run in turn.

Bars on the same checkpoint share a session, so that the torch reference runs once a round and not once for each.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.contenders import floor, ours, reference
from benchmarks.measure import Contender
from benchmarks.model_dirs import ModelDir, say
from benchmarks.tensor_count import SMALL, write_one_tensor, write_tensors

# The keys of contenders that only one session has; the others are those of benchmarks.contenders.
SMALLER, LARGER = "smaller", "larger"
MANY, ONE = "many-tensors", "one-tensor"
VERSION, IMPORT = "version", "import-typer"


@dataclass(frozen=True, slots=True)
class Setting:
    """With what the sessions are held: two sizes of models, how many small tensors, how many runs.

    ``python`` runs the torch reference; None where it is skipped. ``runs`` holds for every session, None for
    each session's own number, ``quick`` for its number when there is little time.
    """

    work_dir: Path
    base: str
    large: str
    tensors: int
    python: str | None
    runs: int | None
    quick: bool

    @property
    def outputs(self) -> Path:
        """The directory of the outputs, which is removed in the end."""
        return self.work_dir / "outputs"

    def model(self, size: str, dtype: str) -> ModelDir:
        """Return the checkpoint of size "base" or "large"."""
        return ModelDir({"base": self.base, "large": self.large}[size], dtype, self.work_dir)


@dataclass(frozen=True, slots=True)
class Session:
    """Contenders that alternate: what they read, who they are, how often they run (and how often when quick)."""

    models: tuple[tuple[str, str], ...]
    contenders: Callable[[Setting], list[Contender]]
    runs: int
    quick_runs: int

    def number_of_runs(self, setting: Setting) -> int:
        """Return how many runs of each contender count."""
        return setting.runs or (self.quick_runs if setting.quick else self.runs)


def _conversions(
    size: str, dtype: str, *outtypes: str, shards_read: bool = True, with_reference: bool = False
) -> Callable[[Setting], list[Contender]]:
    def contenders(setting: Setting) -> list[Contender]:
        model, outputs = setting.model(size, dtype), setting.outputs
        first, *others = (ours(model, outputs, outtype, key=f"clipgguf-{outtype}") for outtype in outtypes)
        shards = model.shards if shards_read else ()
        floors = [floor(first, outputs, shards=shards, flush=flush) for flush in (False, True)]
        theirs = [reference(model, outputs, setting.python)] if with_reference and setting.python else []
        return [first, *floors, *theirs, *others]

    return contenders


def _sizes(setting: Setting) -> list[Contender]:
    return [
        ours(setting.model(size, "F32"), setting.outputs, "f16", key=key)
        for key, size in ((SMALLER, "base"), (LARGER, "large"))
    ]


def _tensors(setting: Setting) -> list[Contender]:
    contenders = []
    for key, label, write in (
        (MANY, f"{setting.tensors:,} tensors", write_tensors),
        (ONE, "one tensor", write_one_tensor),
    ):
        source = setting.work_dir / f"{key}-{setting.tensors}x{SMALL[0]}x{SMALL[1]}.safetensors"
        if not source.exists():
            say(f"making {source}")
            write(source, setting.tensors)
        output = setting.outputs / key / "model-f16.gguf"
        command = (sys.executable, "-m", "benchmarks.tensor_count", str(source), str(output))
        contenders.append(Contender(key, label, command, (source,), output, key))
    return contenders


def _start_up(setting: Setting) -> list[Contender]:
    # By -m and not by the console script: that may belong to another installation than the code here.
    return [
        Contender(VERSION, "--version", (sys.executable, "-m", "clipgguf", "--version"), (), None, ""),
        Contender(IMPORT, "import typer", (sys.executable, "-c", "import typer"), (), None, ""),
    ]


SESSIONS: Mapping[str, Session] = {
    "start-up": Session((), _start_up, 20, 20),
    "tensors": Session((), _tensors, 5, 3),
    "base-f32": Session(
        (("base", "F32"),), _conversions("base", "F32", "f16", "q8_0", "q4_0", with_reference=True), 5, 3
    ),
    "base-bf16": Session((("base", "BF16"),), _conversions("base", "BF16", "f16"), 5, 3),
    "large-f16": Session((("large", "F16"),), _conversions("large", "F16", "f16", shards_read=False), 5, 3),
    "sizes": Session((("base", "F32"), ("large", "F32")), _sizes, 3, 3),
    "large-f32": Session((("large", "F32"),), _conversions("large", "F32", "f16", with_reference=True), 3, 3),
}
