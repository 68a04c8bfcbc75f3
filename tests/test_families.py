"""Every family of data: its files are those of llama.cpp's own converter, and llama.cpp runs them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from clipgguf import CheckpointError, Options, convert, inspect, plan, upgrade
from clipgguf.families import MODULES
from clipgguf.options import Outtype
from tests.family_fixtures import (
    DTYPES,
    OUTTYPES,
    REPRESENTATIVES,
    Fixture,
    Write,
    fixtures,
    mostly_slow,
    named,
)
from tests.gguf_reading import read
from tests.llama_client import ask, is_available

FAMILIES = fixtures()


def test_every_family_of_data_has_a_fixture() -> None:
    data = MODULES.keys() - {"clip", "llava"}
    assert data == {fixture.module for fixture in FAMILIES}


# Each dtype and each outtype once; of one family in each way of making a file. The other pairs are slow.
PAIRS = (("F32", "q8_0"), ("BF16", "f16"), ("F16", "f32"), ("F32", "bf16"))
CASES = [
    pytest.param(
        family,
        dtype,
        outtype,
        id=f"{family.name}-{dtype}-{outtype}",
        marks=() if (dtype, outtype) in (PAIRS if family.name in REPRESENTATIVES else PAIRS[1:2]) else pytest.mark.slow,
    )
    for family in FAMILIES
    for dtype in DTYPES
    for outtype in OUTTYPES
]


@pytest.mark.parametrize(("family", "dtype", "outtype"), CASES)
def test_files_are_the_references(family: Fixture, dtype: str, outtype: Outtype, tmp_path: Path) -> None:
    model = family.write(tmp_path / family.name, dtype, shards=2)
    found = read(convert(model, tmp_path / "out.gguf", Options(outtype=outtype)).path)
    tensors = {name: (t.tensor_type.name, t.shape[::-1]) for name, t in found.tensors.items()}
    assert tensors == {name: (right.types[outtype], list(right.shape)) for name, right in family.tensors.items()}
    assert [
        name
        for name, right in family.tensors.items()
        if not right.agrees(found.tensors[name].data, dtype, right.types[outtype])
    ] == []
    metadata = {
        name: [" ".join(kind.name for kind in found.types[name]), value] for name, value in found.metadata.items()
    }
    assert family.metadata.items() <= metadata.items()
    assert {name for name in metadata if name.startswith("clip.")} <= family.metadata.keys()


@pytest.mark.parametrize("family", mostly_slow(), ids=named)
def test_double_precision_is_rounded_by_way_of_single(family: Fixture, written: Write, tmp_path: Path) -> None:
    # The values are float32's, so that nothing but the way can make a difference.
    double = convert(family.write(tmp_path / "m", "F64"), tmp_path / "double.gguf").path
    assert written(family).file.read_bytes() == double.read_bytes()


@pytest.mark.parametrize("name", ["dots_ocr", "exaone4_5", "hunyuan_vl"])
def test_pixels_as_transformers_5_saves_them(name: str, written: Write, tmp_path: Path) -> None:
    (family,) = (family for family in FAMILIES if family.name == name)
    processor = dict(family.files["preprocessor_config.json"])
    size = {"shortest_edge": processor.pop("min_pixels"), "longest_edge": processor.pop("max_pixels")}
    files = {**family.files, "processor_config.json": {"image_processor": {**processor, "size": size}}}
    del files["preprocessor_config.json"]
    model = replace(family, files=files).write(tmp_path / "m")
    assert convert(model, tmp_path / "b.gguf").path.read_bytes() == written(family).file.read_bytes()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("qwen2_vl--sarashina2_vision", "norm after the projector is left out"),
        ("qwen3_omni_moe", "--vision-only and --audio-only write a file for each"),
    ],
)
def test_what_readers_lack_is_noted(name: str, said: str, tmp_path: Path) -> None:
    (family,) = (family for family in FAMILIES if family.name == name)
    (line,) = plan(family.write(tmp_path / "m")).notes
    assert said in line


@pytest.mark.parametrize("family", mostly_slow(), ids=named)
def test_inspect_knows_the_family(family: Fixture, written: Write) -> None:
    path = written(family).file
    inspection = inspect(path)
    assert inspection.towers
    for tower in inspection.towers:
        assert inspection.found == f"mmproj for {tower.family}"
        # Gemma 3n's block_count is a number that no reader uses.
        assert (tower.blocks, tower.blocks_run) in ((tower.blocks_stored,) * 2, (128, None))
    assert [verdict.reads for verdict in inspection.verdicts] == [False, False, not family.refused]
    with pytest.raises(CheckpointError, match="lacks nothing"):
        upgrade(path)


@pytest.mark.parametrize("family", mostly_slow(), ids=named)
def test_what_does_not_apply_is_refused(family: Fixture, written: Write, tmp_path: Path) -> None:
    model = written(family).model
    for options in (Options(feature_layer=-2), Options(vocab=tmp_path), Options(keep_last_layer=True)):
        with pytest.raises(ValueError, match=r"(is|are) for .*; .* gives an (image|audio) encoder .*(of|for)"):
            plan(model, options)


@pytest.mark.skipif(not is_available(), reason="xllamacpp is not installed (extra: client)")
@pytest.mark.parametrize("family", mostly_slow(), ids=named)
def test_llama_cpp_answers(family: Fixture, written: Write, tmp_path: Path) -> None:
    if family.unrunnable:
        pytest.skip(family.unrunnable)
    result = ask(written(family).file, tmp_path)
    if family.refused:
        assert not result.ok
        assert any(family.refused in line for line in result.errors)
        return
    assert result.ok, result.errors
    assert np.isfinite(result.logits).all()
