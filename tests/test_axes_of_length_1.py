"""Axes of length 1, which vanish from CLIP's and LLaVA's files, may be in a checkpoint or not."""

import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from clipgguf import CheckpointError, Options, convert, plan, verify
from clipgguf.shape import parse, with_ones_of
from clipgguf.sources.local import LocalFile
from clipgguf.tensor import View
from tests.llava_checkpoints import VISION_24, Llava, write_hf, write_original
from tests.weights import write_file


def reshaped(model: Path, pattern: str, shape: str) -> int:
    """Give tensors whose names end so axes of length 1 or take them away, and return of how many."""
    (file,) = model.glob("*.safetensors")
    tensors, count = load_file(file), 0
    for name, array in tensors.items():
        if re.search(f"{pattern}$", name):
            count += 1
            tensors[name] = {
                "after": array[..., None],
                "before": array[None],
                "twice": array[..., None, None],
                "none": array.squeeze(),
            }[shape]
    write_file(file, tensors)
    return count


@pytest.mark.parametrize("outtype", ["f16", "q8_0", "f32"])
@pytest.mark.parametrize(
    ("pattern", "shape"),
    [
        (r"linear_1\.weight", "after"),
        (r"linear_2\.weight", "before"),
        (r"linear_2\.bias", "before"),
        (r"linear_.\.(weight|bias)", "twice"),
        (r"class_embedding", "before"),
    ],
)
def test_mlp(pattern: str, shape: str, outtype: str, tmp_path: Path) -> None:
    options = Options(outtype=outtype)  # type: ignore[arg-type]  # Parametrized, it is a str.
    model = write_hf(tmp_path / "m", Llava())
    expected = convert(model, tmp_path / "a.gguf", options=options).path.read_bytes()
    assert reshaped(model, pattern, shape)
    made = convert(model, tmp_path / "b.gguf", options=options).path
    assert made.read_bytes() == expected
    assert verify(made, model).agrees


@pytest.mark.parametrize(
    ("projector", "pattern", "shape"),
    [
        ("ldp", r"block\.1\.fc[12]\.weight", "after"),
        ("ldp", r"block\.[02]\.0\.weight", "none"),
        ("ldp", r"block\.0\.0\.weight", "before"),
        ("ldpv2", r"peg\.0\.weight", "none"),
    ],
)
def test_ldp(projector: str, pattern: str, shape: str, tmp_path: Path) -> None:
    model = write_original(tmp_path / "m", Llava(VISION_24, projector), tower="folder")
    expected = convert(model, tmp_path / "a.gguf").path.read_bytes()
    assert reshaped(model, pattern, shape)
    assert convert(model, tmp_path / "b.gguf").path.read_bytes() == expected


def test_other_axes_count(tmp_path: Path) -> None:
    model = write_hf(tmp_path / "m", Llava())
    file = model / "model.safetensors"
    tensors = load_file(file)
    name = "multi_modal_projector.linear_1.weight"
    tensors[name] = tensors[name].reshape(2, -1, tensors[name].shape[-1])
    write_file(file, tensors)
    with pytest.raises(CheckpointError, match=r"linear_1\.weight' has shape \(2, "):
        plan(model)


def test_axes_by_their_sizes() -> None:
    axes = parse("hidden 1 3 3' width").stored
    assert with_ones_of(axes, (16, 3, 3, 8), {"width": 8}) == (16, 1, 3, 3, 8)
    assert with_ones_of(axes, (1, 16, 3, 3), {"width": 1}) == (16, 1, 3, 3, 1)
    assert with_ones_of(axes, (16, 3, 3), {"width": 8}) is None


def test_steps_stay_with_their_axes(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(np.arange(12, dtype="<f4").tobytes())
    view = View("x", "F32", (3, 1, 4), LocalFile(path), 0, 48, strides=(1, 7, 3))
    turned = view.with_ones((1, 3, 4, 1))
    assert (turned.shape, turned.extent) == ((1, 3, 4, 1), view.extent)
    assert [step for length, step in zip(turned.shape, turned.steps, strict=True) if length > 1] == [1, 3]
