"""Files are held against tables: what is optional is there whole or not at all, and so is what a file does not tell."""

from dataclasses import replace
from pathlib import Path

import pytest

from clipgguf import ConfigError, plan
from clipgguf.families.bases import MTMD
from clipgguf.family import Family
from clipgguf.holding import hold, values_of
from clipgguf.layers import linear, norm
from clipgguf.table import PerModel, Prefix, Section, Value
from tests.family_fixtures import FIXTURES, Fixture

FAMILY = Family(
    title="A family",
    base=MTMD,
    values=(
        Value("vision.width", "hidden_size", PerModel(8, {"small": 4})),
        Value("vision.is_wide", default=PerModel(True, {"small": False})),
    ),
    sections=(
        Section("wide.", "v.", norm("norm", "norm"), times="is_wide"),
        Section("blocks.{}.", "v.blk.{}.", linear("fc", "fc", "width", "width'", bias="optional"), times="blocks"),
    ),
)
BLOCKS = {f"v.blk.{n}.fc.weight": (4, 4) for n in range(2)}
BIASES = {f"v.blk.{n}.fc.bias": (4,) for n in range(2)}
NORM = {"v.norm.weight": (4,), "v.norm.bias": (4,)}


@pytest.mark.parametrize("more", [{}, BIASES, NORM, {**BIASES, **NORM}])
def test_what_is_there_whole_or_not_at_all_lacks_nothing(more: dict[str, tuple[int, ...]]) -> None:
    values = {**values_of(FAMILY, {}), "vision.blocks": 2}
    assert hold(FAMILY, {**BLOCKS, **more}, values).missing == []


@pytest.mark.parametrize("name", [*BIASES, *NORM])
def test_one_of_what_is_there_whole_is_missing(name: str) -> None:
    shapes = {n: shape for n, shape in {**BLOCKS, **BIASES, **NORM}.items() if n != name}
    assert hold(FAMILY, shapes, {"vision.blocks": 2}).missing == [name]


def test_blocks_that_are_begun_are_whole_where_a_file_does_not_tell_how_many() -> None:
    shapes = {name: shape for name, shape in {**BLOCKS, **BIASES}.items() if name != "v.blk.1.fc.weight"}
    assert hold(FAMILY, shapes, {}).missing == ["v.blk.1.fc.weight"]
    assert hold(FAMILY, {}, {}).missing == []


def test_what_the_values_leave_out_is_not_looked_for() -> None:
    assert hold(FAMILY, {**BLOCKS, "v.norm.bias": (4,)}, {"vision.blocks": 2, "vision.is_wide": False}).missing == []


def test_a_value_that_is_not_written_is_what_readers_take() -> None:
    family = replace(FAMILY, values=(Value("vision.merge", "merge", 2, unless=1), Value("other", default=3)))
    assert values_of(family, {}) == {"vision.merge": 1}


def test_defaults_by_model_type() -> None:
    width, is_wide = FAMILY.values
    assert (width.default_for("small"), width.default_for("large"), width.default_for(None)) == (4, 8, 8)
    assert (is_wide.default_for("small"), is_wide.default_for("large")) == (False, True)


def test_spellings_of_what_comes_after_a_prefix() -> None:
    assert (Prefix("weight") + "encoder.layers.{}.|layers.{}.").spelled("vision.") == [
        "vision.encoder.layers.{}.",
        "vision.layers.{}.",
    ]


def test_a_value_too_large_for_its_key_is_named(tmp_path: Path) -> None:
    family = Fixture.read(FIXTURES / "qwen3_vl.json")  # To be changed: the others are shared.
    family.files["config.json"]["vision_config"] |= {"patch_size": 2**31, "num_position_embeddings": 2**30}
    with pytest.raises(ConfigError, match=r"the sizes make vision\.image 70,368,744,177,664"):
        plan(family.write(tmp_path / "m"))
