"""What the figures depend on: processor, system, and the releases of what runs."""

import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path

from clipgguf.kernels import encoders

TORCH_RELEASES = """import torch, transformers, gguf, PIL
print(f"torch {torch.__version__}, transformers {transformers.__version__}")"""


def machine() -> dict[str, str]:
    """Return processor, cores, system, and the releases of Python and of what converts."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    packages = {name: importlib.metadata.version(name) for name in ("numpy", "clipgguf", "gguf", "safetensors")}
    fixed = {"cpu": _cpu(), "cores": str(cores), "system": platform.platform(), "Python": platform.python_version()}
    return {**fixed, **packages, "encoders": encoders()}


def _cpu() -> str:
    cpuinfo = Path("/proc/cpuinfo")  # Linux only, where platform.processor() is mostly empty.
    told = re.search(r"^model name\s*: (.+)", cpuinfo.read_text(encoding="utf-8"), re.M) if cpuinfo.exists() else None
    return told[1] if told else platform.processor() or platform.machine()


def torch_releases(python: str) -> tuple[str, str | None]:
    """Return on which releases an interpreter runs the torch reference, or nothing and the reason why it cannot."""
    try:
        done = subprocess.run([python, "-c", TORCH_RELEASES], capture_output=True, encoding="utf-8", errors="replace")
    except OSError as e:
        return "", f"{python} cannot be run: {e.strerror}"
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        return "", f"{python} cannot import what it needs: {reason}"
    return done.stdout.strip(), None
