"""Gemma 3n's convolutional tower: which blocks a stage has is told by its tensors, and so is what is missing."""

from dataclasses import replace
from pathlib import Path

import pytest

from clipgguf import CheckpointError, convert, inspect, plan
from tests.family_fixtures import FIXTURES, Fixture
from tests.gguf_bytes import rewritten
from tests.weights import Shapes

FIXTURE = Fixture.read(FIXTURES / "gemma3n.json")
BLOCKS = "model.vision_tower.timm_model.blocks."
# A scale alone is a part of a block, so that nothing tells that it is missing.
PARTS = [name for name in FIXTURE.shapes if name.startswith(BLOCKS) and not name.endswith("gamma")]


def problems(shapes: Shapes, directory: Path) -> list[str]:
    with pytest.raises(CheckpointError) as error:
        plan(replace(FIXTURE, shapes=shapes).write(directory))
    return list(error.value.problems)


@pytest.mark.parametrize("name", PARTS)
def test_a_part_of_a_block_is_whole(name: str, tmp_path: Path) -> None:
    (problem,) = problems({n: shape for n, shape in FIXTURE.shapes.items() if n != name}, tmp_path / "m")
    assert f"no file has tensor {name!r}" in problem


@pytest.mark.parametrize("name", PARTS)
def test_sizes_of_a_block_agree(name: str, tmp_path: Path) -> None:
    first, *rest = FIXTURE.shapes[name]
    found = problems({**FIXTURE.shapes, name: (first + 1, *rest)}, tmp_path / "m")
    assert name.endswith("conv_exp.weight") or any("asks for" in problem for problem in found)


def test_a_block_between_others_is_missed(tmp_path: Path) -> None:
    shapes = {name.replace(f"{BLOCKS}2.1.", f"{BLOCKS}2.2."): shape for name, shape in FIXTURE.shapes.items()}
    (problem,) = problems(shapes, tmp_path / "m")
    assert f"no file has a tensor '{BLOCKS}2.1.*', up to '{BLOCKS}2.2.*' all should be there" in problem


def test_a_file_lacks_what_is_begun(tmp_path: Path) -> None:
    path = convert(FIXTURE.write(tmp_path / "m"), tmp_path / "x.gguf").path
    for name in ("v.blk.1.0.dw_mid.bn.weight", "v.blk.3.1.attn.key.norm.weight"):
        verdict = inspect(rewritten(path, tmp_path / "y.gguf", without=[name])).verdicts[-1]
        assert verdict.reads is False
        assert name in verdict.reasons[0]
