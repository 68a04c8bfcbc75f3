"""Families that hear: what a config.json may leave out, what readers take for granted, one part of two."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from clipgguf import ConfigError, Options, convert, inspect, plan, verify
from tests.family_fixtures import FIXTURES, Fixture
from tests.family_models import FamilyModel
from tests.gguf_bytes import rewritten
from tests.llama_client import ask, is_available

# What the classes of transformers have where config.json says nothing: width, feed-forward, blocks, heads, bands, and
# width of the language model.
DEFAULTS = {
    "audio_flamingo3": (1280, 5120, 32, 20, 128, 4096),
    "glm_asr": (384, 1536, 4, 6, 80, 4096),
    "meralion2": (384, 1536, 4, 6, 80, 2304),
    "qwen2_audio": (1280, 5120, 32, 20, 128, 4096),
    "qwen3_asr": (1024, 4096, 24, 16, 128, 2048),
    "qwen3_omni_moe": (1280, 5120, 32, 20, 128, 2048),
    "voxtral": (1280, 5120, 32, 20, 128, 3072),
}


def fixture(name: str) -> Fixture:
    return Fixture.read(FIXTURES / f"{name}.json")


def changed(family: Fixture, path: str, value: Any) -> Fixture:
    """Return a fixture whose config.json has another value at a dotted path."""

    def at(values: dict[str, Any], first: str, *rest: str) -> dict[str, Any]:
        return {**values, first: at(values[first], *rest) if rest else value}

    return replace(family, files={**family.files, "config.json": at(family.files["config.json"], *path.split("."))})


@pytest.mark.parametrize("name", DEFAULTS)
def test_sizes_that_a_configuration_leaves_out(name: str) -> None:
    values = FamilyModel(name, {"model_type": name}).values()
    names = ("width", "ffn", "blocks", "heads", "mel_bins", "projection")
    assert tuple(values[f"audio.{size}"] for size in names) == DEFAULTS[name]


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [
        ("audio_flamingo3", "projector_bias", False),
        ("glm_asr", "adapter_type", "moe"),
        ("meralion2", "speech_config.activation_function", "relu"),
        ("qwen2_audio", "audio_config.activation_function", "relu"),
        ("qwen3_asr", "thinker_config.audio_config.n_window", 100),
        ("qwen3_asr--hf", "audio_config.n_window", 100),
        ("qwen3_omni_moe", "thinker_config.audio_config.n_window", 100),
        ("voxtral", "projector_hidden_act", "silu"),
    ],
)
def test_settings_that_readers_take_for_granted(name: str, path: str, value: Any, tmp_path: Path) -> None:
    model = changed(fixture(name), path, value).write(tmp_path / "m")
    with pytest.raises(
        ConfigError, match=rf"config\.json: {path.replace('.', ': ')} is .*, which readers would compute"
    ):
        plan(model)


def test_voxtrals_frames_fill_its_feed_forward(tmp_path: Path) -> None:
    model = changed(fixture("voxtral"), "audio_config.intermediate_size", 250).write(tmp_path / "m")
    with pytest.raises(ConfigError, match="intermediate_size 250 is no multiple of hidden_size 80"):
        plan(model)


@pytest.mark.parametrize("part", ["vision", "audio"])
def test_one_part_of_qwen3_omni(part: str, tmp_path: Path) -> None:
    family = fixture("qwen3_omni_moe")
    model = family.write(tmp_path / "m")
    options = Options(vision_only=part == "vision", audio_only=part == "audio")
    result = convert(model, tmp_path / "x.gguf", options)
    assert not result.notes
    found = inspect(result.path)
    starts = {"vision": ("v.", "mm."), "audio": ("a.", "mm.a.")}
    wanted = {name for name in family.tensors if name.startswith(starts[part])}
    wanted -= {name for name in wanted if part == "vision" and name.startswith("mm.a.")}
    assert {tensor.name for tensor in found.tensors} == wanted
    assert found.verdicts[-1].reads
    verified = verify(result.path, model)
    assert verified.agrees
    if is_available():
        assert ask(result.path, tmp_path).ok


@pytest.mark.parametrize("part", ["vision", "audio"])
def test_a_part_whose_projector_is_not_named(part: str, tmp_path: Path) -> None:
    path = convert(fixture("qwen3_omni_moe--flat").write(tmp_path / "m"), tmp_path / "x.gguf").path
    key = f"clip.{part}.projector_type"
    verdict = inspect(rewritten(path, tmp_path / "y.gguf", without=[key])).verdicts[-1]
    assert (verdict.reads, verdict.reasons[0]) == (False, f"it lacks the metadata {key}")


def test_images_and_sounds_of_different_widths(tmp_path: Path) -> None:
    path = convert(fixture("qwen3_omni_moe").write(tmp_path / "m"), tmp_path / "x.gguf").path
    found = inspect(path)
    assert found.projector is not None
    assert found.projector.kind == found.projector.projector_type == "qwen3vl_merger and qwen3a"
    verdict = found.verdicts[-1]
    assert verdict.reads is False
    assert "images give 288 values for a token and sounds 96" in verdict.reasons[0]
