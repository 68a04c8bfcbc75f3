"""Verification of files of all families: in every outtype, and as llama.cpp's own converter writes them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFValueType

from clipgguf import Options, convert, inspect, verify
from clipgguf.checkpoint.gguf_file import MetadataItem
from clipgguf.options import Outtype
from tests.family_fixtures import FIXTURES, OUTTYPES, Fixture, fixtures, mostly_slow, named
from tests.gguf_bytes import rewritten
from tests.gguf_reading import read

FAMILIES = list(fixtures())


@pytest.mark.slow
@pytest.mark.parametrize("outtype", OUTTYPES)
@pytest.mark.parametrize("family", FAMILIES, ids=named)
def test_a_conversion_agrees(family: Fixture, outtype: Outtype, tmp_path: Path) -> None:
    model = family.write(tmp_path / "m", "BF16", shards=2)
    result = verify(convert(model, tmp_path / "x.gguf", Options(outtype=outtype)).path, model)
    assert (result.problems, result.outtype) == ((), outtype)
    assert {tensor.name for tensor in result.tensors} == family.tensors.keys()


@pytest.mark.parametrize("name", ["gemma3n", "granite4_vision", "minicpmv", "qwen3_vl"])
def test_a_conversion_agrees_and_another_models_does_not(name: str, tmp_path: Path) -> None:
    family = Fixture.read(FIXTURES / f"{name}.json")
    model = family.write(tmp_path / "m")
    path = convert(model, tmp_path / "x.gguf").path
    result = verify(path, model)
    assert result.agrees
    assert result.notes == ()
    other = replace(family, shapes={**family.shapes}).write(tmp_path / "other" / "m", "F16")
    assert not verify(path, other).agrees


@pytest.mark.parametrize(
    ("name", "tensor"), [("gemma4", "a.blk.0.per_dim_scale.weight"), ("qwen2_5_omni", "a.position_embd.weight")]
)
def test_what_others_compute_may_differ_in_its_last_bits(name: str, tensor: str, tmp_path: Path) -> None:
    family = Fixture.read(FIXTURES / f"{name}.json")
    model = family.write(tmp_path / "m")
    path = convert(model, tmp_path / "x.gguf").path
    values = np.array(read(path).tensors[tensor].data)
    for error, agrees in ((family.tensors[tensor].within, True), (1e-4, False), (np.nan, False)):
        changed = values.copy()
        changed.flat[1] += np.float32(error)
        assert (changed != values).sum() == 1
        other = rewritten(path, tmp_path / "y.gguf", without=[tensor], tensors={tensor: changed})
        assert verify(other, model).agrees is agrees


def as_theirs(path: Path, to: Path) -> Path:
    """Write a file with its tensors in another order and with other labels, as llama.cpp's own converter does."""
    items = [
        MetadataItem("general.name", GGUFValueType.STRING, "Another"),
        MetadataItem("general.size_label", GGUFValueType.STRING, "7B"),
        MetadataItem("general.quantized_by", GGUFValueType.STRING, "somebody"),
    ]
    found = read(path).tensors
    arrays = {name: np.array(tensor.data) for name, tensor in reversed(found.items())}
    return rewritten(path, to, without=found, tensors=arrays, metadata=items)


@pytest.mark.parametrize("family", mostly_slow(), ids=named)
def test_another_order_and_other_labels_are_notes(family: Fixture, tmp_path: Path) -> None:
    model = family.write(tmp_path / "m")
    path = convert(model, tmp_path / "x.gguf", Options(outtype="f16")).path
    theirs = as_theirs(path, tmp_path / "y.gguf")
    assert [tensor.name for tensor in inspect(theirs).tensors] == [t.name for t in inspect(path).tensors][::-1]
    result = verify(theirs, model)
    assert result.problems == ()
    # MiniCPM-V's script takes the name of the directory as it is.
    name = "m" if family.module == "minicpmv" else "M"
    assert f"metadata key 'general.name' is 'Another', should be {name!r}" in result.notes
    assert "metadata key 'general.quantized_by' is one that no conversion writes" in result.notes


@pytest.mark.parametrize(
    ("name", "change", "note"),
    [
        ("cogvlm", {"without": ["clip.use_gelu"]}, "clipgguf upgrade mends it: clip.use_gelu is added"),
        (
            "llama4",
            {"renamed": {".ln2.": ".attn_post_norm."}},
            "clipgguf upgrade mends it: 6 tensors *.attn_post_norm.",
        ),
    ],
)
def test_faults_of_theirs_are_told_with_what_mends_them(
    name: str, change: dict[str, Any], note: str, tmp_path: Path
) -> None:
    model = Fixture.read(FIXTURES / f"{name}.json").write(tmp_path / "m")
    result = verify(rewritten(convert(model, tmp_path / "x.gguf").path, tmp_path / "y.gguf", **change), model)
    assert not result.agrees
    assert any(line.startswith(note) for line in result.notes)


def test_a_file_of_two_projectors_is_not_said_to_be_upgraded(tmp_path: Path) -> None:
    model = Fixture.read(FIXTURES / "qwen3_omni_moe.json").write(tmp_path / "m")
    path = convert(model, tmp_path / "x.gguf").path
    result = verify(rewritten(path, tmp_path / "y.gguf", without=["clip.use_gelu"]), model)
    assert not result.agrees
    assert not any("upgrade" in note for note in result.notes)
