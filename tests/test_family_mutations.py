"""Every family of data: what is wrong with a checkpoint, a configuration or a file is said, and nothing else."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from clipgguf import CheckpointError, ClipGGUFError, Options, convert, inspect, plan, verify
from clipgguf.planning import Plan
from tests.family_fixtures import Fixture, Write, by_folder, mostly_slow, named
from tests.gguf_bytes import rewritten
from tests.json_files import write_json
from tests.weights import Shapes, write_sparse_safetensors


def one_of_each_kind(model: Path) -> list[str]:
    """Return the checkpoint's tensors that are written, without those that differ from others in their block only."""
    tensors = plan(model).tensors
    names = {view.name for tensor in tensors for view in tensor.source.stored}
    return sorted(name for name in names if not re.search(r"\.[1-9]\d*\.(?!(?:weight|bias)$)", name))


def planned(model: Path, shapes: Shapes) -> Plan:
    """Plan a model as if its weights had these names and shapes."""
    for folder, own in by_folder(shapes).items():
        (weights,) = (model / folder).glob("*.safetensors")
        weights.unlink()
        write_sparse_safetensors(weights, own)
    return plan(model)


@pytest.mark.parametrize("family", mostly_slow(), ids=named)
def test_a_missing_tensor_is_named(family: Fixture, written: Write, tmp_path: Path) -> None:
    model = written(family).copy(tmp_path / "m")
    for name in one_of_each_kind(model):
        if family.module == "gemma3n" and "subsample_conv_projection" in name and "norm" in name:
            continue  # Some have none.
        with pytest.raises(CheckpointError) as error:
            planned(model, {n: s for n, s in family.shapes.items() if n != name})
        (problem,) = error.value.problems
        assert "no file has" in problem
        assert ".".join(name.split(".")[-2:]) in problem


@pytest.mark.parametrize("family", mostly_slow(), ids=named)
def test_a_bent_tensor_is_named(family: Fixture, written: Write, tmp_path: Path) -> None:
    model = written(family).copy(tmp_path / "m")
    for name in one_of_each_kind(model):
        shape = family.shapes[name]
        with pytest.raises(CheckpointError) as error:
            planned(model, {**family.shapes, name: (*shape[:-1], (shape or (1,))[-1] + 1)})
        assert any(repr(name) in problem and "asks for" in problem for problem in error.value.problems)


@pytest.mark.parametrize("family", mostly_slow(), ids=named)
def test_an_unknown_tensor_is_named_beside_every_one_that_is_known(
    family: Fixture, written: Write, tmp_path: Path
) -> None:
    whole = written(family)
    beside = {f"{name.rpartition('.')[0]}.extra": (3,) for name in one_of_each_kind(whole.model)}
    model = replace(family, shapes={**family.shapes, **beside}).write(tmp_path / "m")
    with pytest.raises(CheckpointError) as error:
        plan(model)
    assert {problem.split("'")[1] for problem in error.value.problems} == beside.keys()
    assert all("unknown" in problem and "--ignore-unknown" in problem for problem in error.value.problems)
    ignoring = convert(model, tmp_path / "a.gguf", Options(ignore_unknown=True))
    assert len(ignoring.warnings) == len(beside)
    assert ignoring.path.read_bytes() == whole.file.read_bytes()


def places(config: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the keys of all numbers that the tables read, by their paths."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield from places(value, (*path, key))
        elif type(value) in (int, float):
            yield (*path, key)


MORE_NUMBERS: tuple[Any, ...] = (1e400, [7], -1, 2**200, True, "7", {})


@pytest.mark.parametrize("value", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in MORE_NUMBERS)], ids=str)
@pytest.mark.parametrize("family", mostly_slow(), ids=named)
def test_hostile_numbers_in_the_configuration(family: Fixture, value: Any, written: Write, tmp_path: Path) -> None:
    if not family.config_name:
        pytest.skip("its weights tell all")
    whole = written(family)
    expected, model = whole.file.read_bytes(), whole.copy(tmp_path / "m")
    refused = 0
    for path in places(family.files[family.config_name]):
        files = json.loads(json.dumps(family.files))
        where = files[family.config_name]
        for key in path[:-1]:
            where = where[key]
        where[path[-1]] = value
        write_json(model / family.config_name, files[family.config_name])
        try:
            result = convert(model, tmp_path / "b.gguf").path.read_bytes()
        except ClipGGUFError as error:
            refused += 1
            assert any(path[-1] in problem or "asks for" in problem for problem in error.problems), error
        else:  # It is none that matters here, or the number of a block, counted from 0.
            assert result == expected or (path[-1], value) == ("insert_layer_id", 0), path
    assert refused >= 3


# What llama.cpp has a default for, which some files mean, and what it does not ask for.
DISPENSABLE = {
    "clip.rope.freq_base",
    "clip.vision.projector.scale_factor",
    "clip.vision.preproc_min_tiles",
    "clip.vision.preproc_max_tiles",
    "clip.has_text_encoder",
    "clip.has_minicpmv_projector",
}
# What llama.cpp passes over, so that it runs files without it.
PASSED_OVER = {"gemma3n": r"(mm\.)?a\.|clip\.audio\."}
# Keys without which a reader takes something else, so that a tensor is what does not fit.
CONTRADICTED = {
    "clip.vision.spatial_merge_size": "mm.patch_merger.weight",
    "clip.audio.feature_layer": "a.proj_blk.0.cross_attn_k.weight",
}


@pytest.mark.parametrize("family", mostly_slow(), ids=named)
def test_llama_cpp_is_said_to_refuse_what_lacks_anything(family: Fixture, written: Write, tmp_path: Path) -> None:
    if family.refused:
        pytest.skip(family.refused)
    path = written(family).file
    ours = [item.key for item in inspect(path).metadata if item.key.startswith("clip.")]
    # A file for images and sound that does not tell of one of them is a file for the other.
    both = {"clip.has_vision_encoder", "clip.has_audio_encoder"}
    passed_over = PASSED_OVER.get(family.module, r"(?!)")
    for name in (*family.tensors, *ours):
        if name in DISPENSABLE or (name in both <= set(ours)) or re.search(r"\.[1-9]\.", name.replace("weight.1", "")):
            continue
        changed = rewritten(path, tmp_path / "y.gguf", without=[name])
        verdict = inspect(changed).verdicts[-1]
        if re.match(passed_over, name):
            assert verdict.reads, name
            continue
        assert verdict.reads is not True, name
        # Without a name for the projector, it is taken for LLaVA's.
        either = (name, CONTRADICTED.get(name, name))
        assert name.endswith("projector_type") or any(n in reason for n in either for reason in verdict.reasons), name


@pytest.mark.slow
@pytest.mark.parametrize("family", mostly_slow(), ids=named)
def test_verify_finds_any_flipped_bit(family: Fixture, written: Write, tmp_path: Path) -> None:
    whole = written(family)
    assert verify(whole.file, whole.model).agrees
    data, path = bytearray(whole.file.read_bytes()), tmp_path / "x.gguf"
    for tensor in inspect(whole.file).tensors:
        position = tensor.offset + tensor.nbytes // 2
        # The last bits of what is computed may be any.
        if family.tensors[tensor.name].sample is not None or ".conv_norm." in tensor.name:
            position += 2
        data[position] ^= 1
        path.write_bytes(data)
        problems = verify(path, whole.model).problems
        assert len(problems) == 1
        assert repr(tensor.name) in problems[0]
        data[position] ^= 1
