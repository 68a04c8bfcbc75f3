"""The promise of constant memory: real runs of the command line, measured by the operating system."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.checkpoints import REAL, write_model

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss is in KiB on Linux only"),
    pytest.mark.usefixtures("uncovered"),
]

MIB = 1 << 20

# Linux counts the memory of the process that forks towards a child's peak, and pytest is large. So a small process
# starts the command, and asks the system for its peak.
LAUNCHER = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def peak_rss(*command: object) -> int:
    """Return a command's peak resident memory in bytes."""
    launcher = [sys.executable, "-S", "-c", LAUNCHER, sys.executable, *map(str, command)]
    result = subprocess.run(launcher, capture_output=True, text=True, check=True)
    return int(result.stdout) * 1024


def test_the_measure_sees_a_tensor_held_whole() -> None:
    small = peak_rss("-c", "pass")
    held = peak_rss("-c", f"held = b'x' * {64 * MIB}")
    assert small < 24 * MIB
    assert abs(held - small - 64 * MIB) < 8 * MIB


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ViT-B/32 at its real size: 605 MB, of which the token embedding alone is 101 MB."""
    model = write_model(tmp_path_factory.mktemp("large") / "vit-b-32", REAL["vit-b-32"])
    assert (model / "model.safetensors").stat().st_size > 600e6
    return model


@pytest.mark.parametrize(("outtype", "most"), [("f16", 64), ("f32", 64), ("bf16", 64), ("q8_0", 96), ("q4_1", 96)])
def test_peak_memory_of_a_large_model(outtype: str, most: int, large: Path, tmp_path: Path) -> None:
    tiny = write_model(tmp_path / "tiny")
    peaks = {
        model.name: peak_rss("-m", "clipgguf", model, "-o", tmp_path / "out", "--outtype", outtype)
        for model in (tiny, large)
    }
    assert peaks["vit-b-32"] <= most * MIB
    assert peaks["vit-b-32"] - peaks["tiny"] <= 4 * MIB
