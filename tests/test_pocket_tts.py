"""Pocket TTS, which has no config.json: what it is met by, and what its weights tell."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from clipgguf import Options, convert, inspect, plan, verify
from clipgguf.errors import CheckpointError, ClipGGUFError, ConfigError
from clipgguf.keys import KEYS
from tests.family_fixtures import FIXTURES, Fixture
from tests.gguf_bytes import rewritten
from tests.gguf_reading import read
from tests.json_files import write_json

FIXTURE = Fixture.read(FIXTURES / "pocket_tts.json")
NORM = "mimi.encoder_transformer.transformer.layers.0.norm1.weight"
SPEAKER = "flow_lm.speaker_proj_weight"


def with_shapes(directory: Path, **shapes: tuple[int, ...] | None) -> Path:
    """Write the checkpoint with other shapes of some tensors, without those of None."""
    changed = {**FIXTURE.shapes, **shapes}
    return replace(FIXTURE, shapes={n: s for n, s in changed.items() if s is not None}).write(directory)


def test_the_folder_is_the_variant(tmp_path: Path) -> None:
    model = FIXTURE.write(tmp_path / "french_24l")
    found = read(convert(model, tmp_path / "x.gguf").path)
    assert found.metadata["clip.gen.audio.model_variant"] == "french_24l"
    assert verify(tmp_path / "x.gguf", model).agrees


def test_a_file_that_is_given(tmp_path: Path) -> None:
    model = FIXTURE.write(tmp_path / "m")
    whole = convert(model, tmp_path / "x.gguf").path.read_bytes()
    assert convert(model / "model.safetensors", tmp_path / "y.gguf").path.read_bytes() == whole
    (model / "model.safetensors").rename(model / "tts_b6369a24.safetensors")
    assert convert(model / "tts_b6369a24.safetensors", tmp_path / "z.gguf").path.read_bytes() == whole


def test_what_may_be_missing_of_the_language_model(tmp_path: Path) -> None:
    whole = convert(FIXTURE.write(tmp_path / "a" / "m"), tmp_path / "x.gguf").path.read_bytes()
    model = with_shapes(tmp_path / "b" / "m", **{"flow_lm.bos_before_voice": None, "flow_lm.bos_emb": None})
    assert convert(model, tmp_path / "y.gguf").path.read_bytes() == whole


def test_a_config_counts(tmp_path: Path) -> None:
    model = FIXTURE.write(tmp_path / "m")
    write_json(model / "config.json", {"model_type": "x"})
    with pytest.raises(ConfigError, match="is of model_type 'x', which is not supported"):
        plan(model)


def test_other_weights_without_a_config(tmp_path: Path) -> None:
    model = Fixture.read(FIXTURES / "gemma3.json").write(tmp_path / "m")
    (model / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"config\.json: is missing"):
        plan(model)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (
            {NORM: (96,)},
            r"model\.safetensors: .*norm1.weight' has shape \(96\), .* asks for one axis, a multiple of 64$",
        ),
        ({SPEAKER: (64,)}, r"model\.safetensors: tensor 'flow_lm.* has shape \(64\), Pocket TTS asks for 2 axes$"),
        ({SPEAKER: None}, r"no file has tensor 'flow_lm.speaker_proj_weight', whose shape should tell"),
        ({"mimi.encoder.model.3.conv.weight": (8, 4, 10)}, r"has shape \(8, 4, 10\), .* asks for \(any, 4, 8\)$"),
        (
            {"mimi.upsample.convtr.convtr.weight": (128, 1, 16)},
            r"has shape \(128, 1, 16\), .* asks for \(128, 1, 32\)$",
        ),
    ],
)
def test_what_is_wrong_with_weights(shapes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        plan(with_shapes(tmp_path / "m", **shapes))


def test_it_sees_nothing(tmp_path: Path) -> None:
    with pytest.raises(ClipGGUFError, match="which gives an mmproj file for sound; --vision-only does not apply"):
        plan(FIXTURE.write(tmp_path / "m"), Options(vision_only=True))


@pytest.mark.parametrize(
    ("key", "reads"),
    [
        ("clip.gen.audio.model_variant", None),
        ("clip.has_gen_audio_encoder", False),
        ("clip.gen.audio.block_count", False),
        ("clip.gen.audio.projector_type", False),
    ],
)
def test_without_a_key(key: str, reads: bool | None, tmp_path: Path) -> None:
    path = convert(FIXTURE.write(tmp_path / "m"), tmp_path / "x.gguf").path
    (verdict,) = inspect(rewritten(path, tmp_path / "y.gguf", without=[key])).verdicts[-1:]
    assert verdict.reads is reads
    assert key in verdict.reasons[0]


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("has_gen_audio", False, r"clip\.has_gen_audio_encoder is false, should be true"),
        ("audio.gen_heads", 0, r"clip\.gen\.audio\.attention\.head_count is 0"),
        ("audio.gen_heads", 3, r"clip\.gen\.audio\.embedding_length is 128, no multiple of .*head_count, 3"),
        ("audio.gen_width", 64, r"'a\.gen\.wav\..*' has shape"),
        ("audio.gen_projector", "x", r"clip\.gen\.audio\.projector_type is 'x', of which no family is known"),
    ],
)
def test_with_another_value(key: str, value: Any, reason: str, tmp_path: Path) -> None:
    path = convert(FIXTURE.write(tmp_path / "m"), tmp_path / "x.gguf").path
    changed = rewritten(path, tmp_path / "y.gguf", metadata=[KEYS[key].item(value)])
    (verdict,) = inspect(changed).verdicts[-1:]
    assert verdict.reads is (None if value == "x" else False)
    assert any(re.search(reason, found) for found in verdict.reasons), verdict.reasons
