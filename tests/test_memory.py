"""The promise of constant memory: real runs of the command line, measured by the operating system."""

import sys
from pathlib import Path

import pytest

from tests.checkpoints import REAL, write_model
from tests.processes import MIB, peak_rss

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss is in KiB on Linux only")


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
