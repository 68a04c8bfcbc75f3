"""The promise of constant memory: real runs of the command line, measured by the operating system."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from clipgguf import Options, convert
from clipgguf.options import Outtype
from tests.checkpoints import REAL, write_model
from tests.processes import MIB, peak_rss

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss is in KiB on Linux only")

VIT_B_32 = REAL["vit-b-32"]


def test_the_measure_sees_a_tensor_held_whole() -> None:
    small = peak_rss("-c", "pass")
    held = peak_rss("-c", f"held = b'x' * {64 * MIB}")
    assert small < 24 * MIB
    assert abs(held - small - 64 * MIB) < 8 * MIB


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ViT-B/32 at its real size: 605 MB, of which the token embedding alone is 101 MB."""
    model = write_model(tmp_path_factory.mktemp("large") / "vit-b-32", VIT_B_32)
    assert (model / "model.safetensors").stat().st_size > 600e6
    return model


@pytest.mark.parametrize(
    ("outtype", "most"),
    [
        ("f16", 64),
        *(
            pytest.param(outtype, most, marks=pytest.mark.slow)
            for outtype, most in (("f32", 64), ("bf16", 64), ("q8_0", 96), ("q4_1", 96))
        ),
    ],
)
def test_peak_memory_of_a_large_model(outtype: Outtype, most: int, large: Path, tmp_path: Path) -> None:
    # Just large enough that every buffer and window is filled.
    text = replace(VIT_B_32.text, num_hidden_layers=1, vocab_size=4096)
    vision = replace(VIT_B_32.vision, num_hidden_layers=1)
    small = write_model(tmp_path / "small", replace(VIT_B_32, text=text, vision=vision))
    peaks = {
        model.name: peak_rss("-m", "clipgguf", model, "-o", tmp_path / "out", "--outtype", outtype)
        for model in (small, large)
    }
    assert peaks["vit-b-32"] <= most * MIB
    assert peaks["vit-b-32"] - peaks["small"] <= 4 * MIB


def peak_of_verify(model: Path, directory: Path, outtype: Outtype = "f16") -> int:
    path = convert(model, directory / "out.gguf", options=Options(outtype=outtype)).path
    return peak_rss("-m", "clipgguf", "verify", path, model, "--all")


@pytest.mark.slow
def test_peak_memory_of_verify(large: Path, tmp_path: Path) -> None:
    text, vision = replace(VIT_B_32.text, num_hidden_layers=1), replace(VIT_B_32.vision, num_hidden_layers=1)
    small = write_model(tmp_path / "small", replace(VIT_B_32, text=text, vision=vision))
    assert peak_of_verify(large, tmp_path, "q8_0") <= 96 * MIB
    of_large = peak_of_verify(large, tmp_path)
    assert of_large <= 64 * MIB
    assert of_large - peak_of_verify(small, tmp_path) <= 4 * MIB


def write_tokenizer(path: Path) -> None:
    """Write the tokenizer.json of CLIP as transformers 5 does: its counts of tokens and merges, and about its size."""
    # Letters beyond Latin-1, of which CLIP has some as well: one is enough to make the whole text twice as large.
    letters = [chr(0x100 + n) for n in range(256)]
    merged = [f"{n:05x}" for n in range(48_894)]
    special = ["<|startoftext|>", "<|endoftext|>"]
    tokens = [*letters, *(f"{word}</w>" for word in (*letters, *merged)), *special]
    ids = {token: number for number, token in enumerate(tokens)}
    model = {"type": "BPE", "vocab": ids, "merges": [[word[:2], f"{word[2:]}</w>"] for word in merged]}
    added = [{"id": ids[token], "content": token, "special": True} for token in special]
    text = json.dumps({"version": "1.0", "added_tokens": added, "model": model}, indent=2, ensure_ascii=False)
    path.write_text(text, encoding="utf-8")
    assert len(tokens) == VIT_B_32.text.vocab_size
    assert 3.5e6 < path.stat().st_size < 3.7e6


@pytest.mark.slow
def test_peak_memory_with_the_tokenizer_of_transformers_5(large: Path, tmp_path: Path) -> None:
    model = tmp_path / "saved-by-a-processor"
    model.mkdir()
    for name in ("config.json", "preprocessor_config.json", "model.safetensors"):
        (model / name).symlink_to(large / name)
    write_tokenizer(model / "tokenizer.json")
    assert peak_rss("-m", "clipgguf", model, "-o", tmp_path / "out") <= 56 * MIB
    assert peak_of_verify(model, tmp_path) <= 62 * MIB
