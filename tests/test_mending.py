"""What llama.cpp's own converter has wrong in some families' files, and clipgguf upgrade makes right."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType

from clipgguf import CheckpointError, convert, inspect, upgrade, verify
from clipgguf.checkpoint.gguf_file import MetadataItem
from tests.conftest import Run
from tests.family_fixtures import FIXTURES, Fixture
from tests.gguf_bytes import rewritten
from tests.gguf_reading import read
from tests.llama_client import ask, is_available

Fault = Callable[[Path, Path], Path]


def flat_scales(path: Path, to: Path) -> Path:
    """Write Gemma 3n's scales of layers with one axis, as the reference does."""
    names = [tensor.name for tensor in GGUFReader(path).tensors if tensor.name.endswith(".layer_scale.gamma")]
    found = {tensor.name: np.array(tensor.data).reshape(-1) for tensor in GGUFReader(path).tensors}
    return rewritten(path, to, without=names, tensors={name: found[name] for name in names})


# What makes the reference's file of ours, as tests/make_families.py makes ours of the reference's, and what is done.
FAULTS: dict[str, tuple[Fault, tuple[str, ...], tuple[str, ...]]] = {
    "llama4": (
        lambda path, to: rewritten(path, to, renamed={".ln2.": ".attn_post_norm."}),
        (),
        ("6 tensors *.attn_post_norm.* called *.ln2.*",),
    ),
    "gemma3n": (flat_scales, (), ("3 tensors *.layer_scale.gamma of shape (n) given the shape (n 1 1)",)),
    "gemma4--image": (
        lambda path, to: rewritten(path, to, without=["clip.use_gelu"]),
        ("clip.use_gelu = True",),
        (),
    ),
    "granite_speech": (
        lambda path, to: rewritten(path, to, renamed={".conv_norm.": ".conv_norm_var."}),
        (),
        ("8 tensors *.conv_norm_var.* called *.conv_norm.*",),
    ),
    "cogvlm": (
        lambda path, to: rewritten(path, to, without=["clip.use_gelu"]),
        ("clip.use_gelu = True",),
        (),
    ),
}


def ours(name: str, directory: Path) -> Path:
    return convert(Fixture.read(FIXTURES / f"{name}.json").write(directory / "m"), directory / "ours.gguf").path


def data(path: Path) -> dict[str, tuple[GGMLQuantizationType, list[int], bytes]]:
    return {name: (t.tensor_type, list(t.shape), t.data.tobytes()) for name, t in read(path).tensors.items()}


@pytest.mark.parametrize("name", FAULTS)
def test_what_is_wrong_is_made_right(name: str, tmp_path: Path) -> None:
    path, (fault, added, changed) = ours(name, tmp_path), FAULTS[name]
    theirs = fault(path, tmp_path / "theirs.gguf")
    verdict = inspect(theirs).verdicts[-1]
    assert verdict.reads is False
    assert any("clipgguf upgrade" in reason for reason in verdict.reasons)
    before = sorted(values for _, _, values in data(theirs).values())
    result = upgrade(theirs)
    assert (result.path, result.added, result.changed) == (theirs, added, changed)
    assert sorted(values for _, _, values in data(theirs).values()) == before
    assert data(theirs) == data(path)
    assert read(theirs).metadata == read(path).metadata
    assert inspect(theirs).verdicts[-1].reads is True
    assert verify(theirs, tmp_path / "m").agrees
    for file in (path, theirs):
        with pytest.raises(CheckpointError, match="which lacks nothing"):
            upgrade(file)


@pytest.mark.slow
@pytest.mark.skipif(not is_available(), reason="xllamacpp is not installed (extra: client)")
@pytest.mark.parametrize("name", FAULTS)
def test_llama_cpp_runs_it_afterwards(name: str, tmp_path: Path) -> None:
    path = ours(name, tmp_path)
    theirs = FAULTS[name][0](path, tmp_path / "theirs.gguf")
    right, wrong = ask(path, tmp_path), ask(theirs, tmp_path)
    assert right.ok, right.errors
    assert not wrong.ok or not np.allclose(wrong.logits, right.logits, atol=1e-4)
    after = ask(upgrade(theirs).path, tmp_path)
    np.testing.assert_array_equal(after.logits, right.logits)


def test_a_name_that_is_there_is_not_taken(tmp_path: Path) -> None:
    path = ours("llama4", tmp_path)
    both = rewritten(path, tmp_path / "x.gguf", tensors={"v.blk.0.attn_post_norm.weight": np.ones(64, np.float32)})
    with pytest.raises(CheckpointError, match="which lacks nothing"):
        upgrade(both)


def test_an_activation_that_is_told_is_not_changed(tmp_path: Path) -> None:
    quick = MetadataItem("clip.use_gelu", GGUFValueType.BOOL, False)
    path = rewritten(ours("cogvlm", tmp_path), tmp_path / "x.gguf", metadata=[quick])
    with pytest.raises(CheckpointError, match="which lacks nothing"):
        upgrade(path)


def test_command_line(tmp_path: Path, run: Run) -> None:
    theirs = FAULTS["llama4"][0](ours("llama4", tmp_path), tmp_path / "theirs.gguf")
    before = theirs.read_bytes()
    result = run("upgrade", theirs, "--feature-layer", "3")
    assert (result.returncode, result.stdout) == (1, "")
    assert "is an mmproj for Llama 4, --feature-layer is for LLaVA's" in result.stderr
    assert theirs.read_bytes() == before
    result = run("upgrade", theirs, "-o", tmp_path / "new.gguf")
    assert (result.returncode, result.stdout) == (0, f"{tmp_path / 'new.gguf'}\n")
    assert result.stderr == "clipgguf: 6 tensors *.attn_post_norm.* called *.ln2.*\n"
    assert theirs.read_bytes() == before
