"""Who takes part: our conversion, the I/O floor with and without a flush, and the torch reference."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.floor import floor_command
from benchmarks.measure import Contender, Run
from benchmarks.model_dirs import ModelDir, say

OURS = "clipgguf"
REFERENCE = "reference"
# What the reference writes where our outtype is none of its own.
REFERENCE_OUTTYPE = "f16"
REFERENCE_OUTTYPES = ("f16", "f32")


def ours(model: ModelDir, outputs: Path, outtype: str, *, key: str = OURS) -> Contender:
    """Return our conversion; ``outputs`` gets a directory named by ``key``."""
    output = outputs / key / f"model-{outtype}.gguf"
    command = (
        *(sys.executable, "-m", "clipgguf", str(model.path), "-o", str(output.parent)),
        *("--outtype", outtype, "--quiet"),
    )
    return Contender(key, key, command, model.shards, output, _content(model, outtype))


def floor(of: Contender, outputs: Path, *, shards: Sequence[Path] = (), flush: bool = False) -> Contender:
    """Return the floor: read ``shards``, if any, and copy what contender ``of`` has written.

    Its key is "floor", or "copy" where there is nothing to read; "-flushed" follows where it ends with a flush.
    """
    assert of.output is not None
    key = ("floor" if shards else "copy") + ("-flushed" if flush else "")
    label = ("cat + cp" if shards else "cp") + (" + sync" if flush else "")
    copy = outputs / key / of.output.name
    command = floor_command(shards, of.output, copy, flush=flush)
    return Contender(key, label, command, (*shards, of.output), copy, of.content)


def reference(model: ModelDir, outputs: Path, python: str, outtype: str = REFERENCE_OUTTYPE) -> Contender:
    """Return the torch reference, run by an interpreter that can; f16 stands in for an outtype that it has not."""
    has_it = outtype in REFERENCE_OUTTYPES
    written = outtype if has_it else REFERENCE_OUTTYPE
    output = outputs / REFERENCE / f"model-{written}.gguf"
    command = (
        *(python, "-m", "benchmarks.reference", str(model.path), str(output.parent)),
        *("--outtype", written),
    )
    label = "torch reference" if has_it else f"torch reference, {written}"
    return Contender(REFERENCE, label, command, model.shards, output, _content(model, written))


def _content(model: ModelDir, outtype: str) -> str:
    return f"{model.path.name} as {outtype}"


def reference_versions(python: str) -> tuple[dict[str, str] | None, str | None]:
    """Return the versions of what the reference runs on, or why this interpreter cannot run it."""
    script = (
        "import json, platform, torch, transformers, numpy, gguf, PIL\n"
        "modules = {m.__name__: m.__version__ for m in (numpy, torch, transformers)}\n"
        "print(json.dumps({'python': platform.python_version(), **modules}))"
    )
    try:
        done = subprocess.run([python, "-c", script], capture_output=True, encoding="utf-8", errors="replace")
    except OSError as e:
        return None, f"{python} cannot be run: {e.strerror}"
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        return None, f"{python} cannot import what it needs: {reason}"
    versions: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {name: str(version) for name, version in versions.items()}, None


def say_run(contender: Contender, number: int, run: Run) -> None:
    """Tell the user of a run that has ended; number 0 is the warm-up."""
    say(f"{f'run {number}' if number else 'warm-up'}: {contender.label}, {run.seconds:.2f} s")
