"""Every family of data in shards: they do not show, and only those with the tower's tensors are needed."""

import json
import re
from pathlib import Path

import pytest

from clipgguf import CheckpointError, convert, plan
from tests.family_fixtures import Fixture, Write, mostly_slow, named


@pytest.mark.parametrize("family", mostly_slow(), ids=named)
def test_shards_and_their_order_do_not_show(family: Fixture, written: Write, tmp_path: Path) -> None:
    models = [family.write(tmp_path / "b" / "m", shards=5), family.write(tmp_path / "c" / "m", shards=3, reverse=True)]
    contents = {convert(model, tmp_path / f"{n}.gguf").path.read_bytes() for n, model in enumerate(models)}
    assert contents == {written(family).file.read_bytes()}


# Of the tower itself, and not written: blocks after the one whose features are used, and what no reader computes.
NOT_WRITTEN = {"minicpmv4_6--4x": r"\.vit_merger\.", "phi4_siglip": r"\.layers\.3\."}


def used(model: Path) -> set[Path]:
    """Return the weight files that anything of a file is read from, without those of folders inside."""
    files = {Path(view.file.name) for tensor in plan(model).tensors for view in tensor.source.stored}
    return {file for file in files if file.parent == model}


@pytest.mark.parametrize("family", mostly_slow(), ids=named)
def test_only_shards_with_tensors_of_the_tower_are_needed(family: Fixture, written: Write, tmp_path: Path) -> None:
    # A shard for each tensor.
    model = family.write(tmp_path / "m", shards=len(family.shapes))
    needed = {path.name for path in used(model)}
    (index,) = model.glob("*.index.json")
    files = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    if family.name in NOT_WRITTEN:
        known = {file for name, file in files.items() if re.search(NOT_WRITTEN[family.name], name)}
        assert known - needed
        needed |= known
    for path in model.glob("*.safetensors"):
        if path.name not in needed:
            path.unlink()
    assert len(list(model.glob("*.safetensors"))) == len(needed)
    path = convert(model, tmp_path / "x.gguf").path
    assert path.read_bytes() == written(family).file.read_bytes()
    for name in sorted(needed)[:: max(1, len(needed) // 5)]:
        (model / name).rename(tmp_path / name)
        with pytest.raises(CheckpointError, match=f"{re.escape(name)}: is missing"):
            plan(model)
        (tmp_path / name).rename(model / name)
