"""Gemma 4 and Gemma 3n hear as well: files of both encoders or one, and what llama.cpp passes over."""

import json
from pathlib import Path
from typing import Any

import pytest

from clipgguf import CheckpointError, ConfigError, Options, convert, inspect, plan, verify
from clipgguf.options import DEFAULTS
from tests.family_fixtures import FIXTURES, Fixture
from tests.json_files import write_json
from tests.weights import write_sparse_safetensors

UNREAD = "llama.cpp runs no audio of Gemma 3n"


def fixture(name: str) -> Fixture:
    return Fixture.read(FIXTURES / f"{name}.json")


ONLY = {"vision": Options(vision_only=True), "audio": Options(audio_only=True)}


def names(model: Path, options: Options = DEFAULTS) -> set[str]:
    return {tensor.name for tensor in plan(model, options).tensors}


def with_config(model: Path, part: str, changes: dict[str, Any] | None) -> Path:
    path = model / "config.json"
    config = json.loads(path.read_text())
    write_json(path, {**config, part: None if changes is None else {**config[part], **changes}})
    return model


@pytest.mark.parametrize("name", ["gemma4", "gemma4_unified"])
def test_both_encoders_or_one(name: str, tmp_path: Path) -> None:
    model = fixture(name).write(tmp_path / "m", shards=3)
    vision, audio = names(model, ONLY["vision"]), names(model, ONLY["audio"])
    assert vision | audio == names(model)
    assert {tensor for tensor in vision | audio if tensor.startswith(("a.", "mm.a."))} == audio
    for part, options in ONLY.items():
        path = convert(model, tmp_path / f"{part}.gguf", options).path
        found = inspect(path)
        assert [tower.name for tower in found.towers] == [part]
        assert found.verdicts[-1].reads
        assert {i.key.split(".")[1] for i in found.metadata if i.key.startswith("clip.")} & {"vision", "audio"} == {
            part
        }
        assert verify(path, model).agrees


@pytest.mark.parametrize("name", ["gemma4", "gemma4_unified", "gemma3n"])
def test_a_model_that_hears_nothing(name: str, tmp_path: Path) -> None:
    model = fixture(name).write(tmp_path / "m")
    vision = names(model, ONLY["vision"])
    made = plan(with_config(model, "audio_config", None))
    assert {tensor.name for tensor in made.tensors} == vision
    assert made.notes == ()
    with pytest.raises(ConfigError, match=r"--audio-only does not apply"):
        plan(model, ONLY["audio"])


@pytest.mark.parametrize("name", ["gemma4", "gemma4_unified", "gemma3n"])
def test_an_audio_tower_that_is_missing(name: str, tmp_path: Path) -> None:
    family = fixture(name)
    model = family.write(tmp_path / "m")
    vision = {tensor: shape for tensor, shape in family.shapes.items() if "audio" not in tensor}
    write_sparse_safetensors(model / "model.safetensors", vision)
    with pytest.raises(CheckpointError) as error:
        plan(model)
    (problem,) = error.value.problems
    assert "no file has a tensor of the audio tower of Gemma" in problem
    assert "such as 'model.embed_audio.embedding" in problem
    assert problem.endswith("; --vision-only leaves it out")
    assert plan(model, ONLY["vision"]).tensors


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("gemma4", {"attention_chunk_size": 10}),
        ("gemma4", {"attention_logit_cap": 30.0}),
        ("gemma4", {"hidden_act": "gelu"}),
        ("gemma4", {"rms_norm_eps": 1e-5}),
        ("gemma4_unified", {"audio_embed_dim": 320}),
    ],
)
def test_what_llama_cpp_takes_for_granted(name: str, changes: dict[str, Any], tmp_path: Path) -> None:
    model = with_config(fixture(name).write(tmp_path / "m"), "audio_config", changes)
    for options in (DEFAULTS, ONLY["audio"]):
        with pytest.raises(ConfigError, match=f"{next(iter(changes))} is .*, which readers would compute wrongly"):
            plan(model, options)
    assert plan(model, ONLY["vision"]).tensors


def test_llama_cpp_passes_over_the_audio_of_gemma_3n(tmp_path: Path) -> None:
    model = fixture("gemma3n").write(tmp_path / "m")
    made = convert(model, tmp_path / "both.gguf")
    (note,) = made.notes
    assert note.startswith(UNREAD)
    image = convert(model, tmp_path / "image.gguf", ONLY["vision"])
    assert image.notes == ()
    assert [tower.name for tower in inspect(made.path).towers] == ["vision", "audio"]
    for path in (made.path, image.path):
        assert inspect(path).verdicts[-1].reads
        assert verify(path, model).agrees
    with pytest.raises(ConfigError, match=rf"m: {UNREAD} .*; --audio-only does not apply"):
        plan(model, ONLY["audio"])
