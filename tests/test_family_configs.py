"""Other configurations of a checkpoint, as transformers 5 or publishers write them, give the same file."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from clipgguf import CheckpointError, ConfigError, Options, convert, inspect, plan, verify
from tests.family_fixtures import FIXTURES, Fixture
from tests.gguf_reading import read

_SAM = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2}
_STEP = {"width": 64, "layers": 3, "heads": 2, "image_size": 56}

# By fixture: a config.json.
CONFIGS: dict[str, dict[str, Any]] = {
    "deepseek_ocr--unlimited_ocr": {
        "model_type": "unlimited_ocr",
        "architectures": "UnlimitedOcrForConditionalGeneration",  # Should be a list.
        "text_config": {"hidden_size": 96},
        "vision_config": {
            "sam_config": _SAM,
            "encoder_config": {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2},
        },
    },
    "deepseek_ocr2": {
        "model_type": "deepseek_ocr2",
        "text_config": {"hidden_size": 96},
        "vision_config": {
            "sam_config": _SAM,
            "encoder_config": {
                **{"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 4},
                **{"num_attention_heads": 4, "num_key_value_heads": 2},
            },
        },
    },
    # Without what the classes' defaults say.
    "granite_speech": {
        "architectures": ["GraniteSpeechForConditionalGeneration"],
        "model_type": "granite_speech",
        "text_config": {"hidden_size": 96},
        "encoder_config": {"hidden_dim": 64, "num_heads": 2, "num_layers": 4},
        "projector_config": {"num_attention_heads": 2},
    },
    "lfm2_audio": {
        "architectures": ["Lfm2AudioForConditionalGeneration"],
        "encoder": {"n_layers": 2},
        "lfm": {"hidden_size": 96},
    },
    "step3p7": {
        "architectures": ["StepVLForConditionalGeneration"],
        "model_type": "step_robotics",
        "hidden_size": 96,
        "vision_config": _STEP,
        "understand_projector_stride": 2,
    },
}


def written(fixture: Fixture, directory: Path, config: dict[str, Any] | None = None) -> bytes:
    files = fixture.files if config is None else {**fixture.files, "config.json": config}
    model = replace(fixture, files=files).write(directory / "m")
    return convert(model, directory / "out.gguf").path.read_bytes()


@pytest.mark.parametrize("name", CONFIGS)
def test_other_configurations_give_the_same_file(name: str, tmp_path: Path) -> None:
    fixture = Fixture.read(FIXTURES / f"{name}.json")
    assert written(fixture, tmp_path / "a", CONFIGS[name]) == written(fixture, tmp_path / "b")


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "stride": ({"understand_projector_stride": 1}, "understand_projector_stride is 1, readers know 2 only"),
    "activation": ({"vision_config": {**_STEP, "hidden_act": "gelu"}}, "hidden_act is 'gelu', should be 'quick_gelu'"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_readers_cannot_run_is_refused(what: str, tmp_path: Path) -> None:
    changes, message = REFUSED[what]
    fixture = Fixture.read(FIXTURES / "step3p7.json")
    with pytest.raises(ConfigError, match=message):
        written(fixture, tmp_path, {**CONFIGS["step3p7"], **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"deepstack_layer_map": [[0, 1], [-1, 0]]}, "deepstack_layer_map: layer 0 is none of the tower's 4 blocks"),
        ({"deepstack_layer_map": [[-5, 1], [-1, 0]]}, "deepstack_layer_map: layer -5 is none of the tower's 4 blocks"),
        ({"deepstack_layer_map": [3]}, "deepstack_layer_map has 3, should have pairs of layers"),
        ({"spatial_vision_layer": 5}, "spatial_vision_layer: layer 5 is none of the tower's 4 blocks"),
        ({"image_grid_pinpoints": [[64, 65]]}, "image_grid_pinpoints has .*, should have multiples of image_size, 64"),
        ({"image_grid_pinpoints": [64]}, "image_grid_pinpoints has 64, should have pairs of pixels"),
        ({"downsample_rate": "1:2"}, "downsample_rate is '1:2', should be like '4/8'"),
    ],
)
def test_what_is_wrong_with_granites_projectors(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    fixture = Fixture.read(FIXTURES / "granite4_vision.json")
    with pytest.raises(ConfigError, match=message):
        written(fixture, tmp_path, {**fixture.files["config.json"], **changes})


@pytest.mark.parametrize(
    ("name", "place", "changes", "message"),
    [
        ("granite_speech", "", {"window_size": 4}, "window_size is 4, should be at least downsample_rate"),
        ("granite_speech", "projector_config", {"num_hidden_layers": 3}, "num_hidden_layers is 3, .* they know 2"),
        ("granite_speech", "encoder_config", {"cat_hidden_layers": [4]}, "should have different numbers from 0 to 3"),
        ("granite_speech", "encoder_config", {"cat_hidden_layers": [1, 1]}, "should have different numbers"),
        ("lfm2_audio", "encoder", {"conv_kernel_size": 31}, "conv_kernel_size is 31, .* they know 9"),
    ],
)
def test_what_is_wrong_with_conformers(
    name: str, place: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    fixture = Fixture.read(FIXTURES / f"{name}.json")
    config = fixture.files["config.json"]
    with pytest.raises(ConfigError, match=message):
        written(fixture, tmp_path, {**config, **({place: {**config[place], **changes}} if place else changes)})


def test_granite_speech_may_take_what_goes_into_the_first_block(tmp_path: Path) -> None:
    fixture = Fixture.read(FIXTURES / "granite_speech--plus.json")
    config = fixture.files["config.json"]
    config = {**config, "encoder_config": {**config["encoder_config"], "cat_hidden_layers": [0]}}
    model = replace(fixture, files={**fixture.files, "config.json": config}).write(tmp_path / "m")
    found = read(convert(model, tmp_path / "out.gguf").path)
    assert found.metadata["clip.audio.feature_layer"] == [0]
    assert inspect(tmp_path / "out.gguf").verdicts[-1].reads


@pytest.mark.parametrize("model_type", ["clip", "siglip", "llava", "gemma3"])
def test_a_model_type_among_the_classes_is_none_of_them(model_type: str, tmp_path: Path) -> None:
    fixture = Fixture.read(FIXTURES / "gemma3.json")
    with pytest.raises(ConfigError, match=r"is of model_type 'x', which is not supported"):
        written(fixture, tmp_path, {**fixture.files["config.json"], "model_type": "x", "architectures": [model_type]})


@pytest.mark.parametrize("name", ["internvl", "internvl--hf", "llama4", "gemma3"])
def test_a_patch_that_is_larger_than_the_image(name: str, tmp_path: Path) -> None:
    fixture = Fixture.read(FIXTURES / f"{name}.json")
    config = fixture.files["config.json"]
    config = {**config, "vision_config": {**config["vision_config"], "image_size": 9}}
    with pytest.raises(ConfigError, match=r"patch_size 14 is larger than image_size 9$"):
        written(fixture, tmp_path, config)


def test_a_list_of_no_blocks_is_refused(tmp_path: Path) -> None:
    fixture = Fixture.read(FIXTURES / "youtu_vl.json")
    config = fixture.files["config.json"]
    config = {**config, "vision_config": {**config["vision_config"], "fullatt_block_indexes": []}}
    with pytest.raises(CheckpointError, match=r"clip\.vision\.\w+ would be an empty list, which GGUF cannot have"):
        written(fixture, tmp_path, config)


def test_nemotron_omni_is_nemotron_nano_where_it_only_sees(tmp_path: Path) -> None:
    nano = Fixture.read(FIXTURES / "nemotron_nano_v2_vl.json")
    omni = Fixture.read(FIXTURES / "nemotron_nano_v2_vl--omni.json")
    # What matters to the other part alone is not asked.
    config = {**omni.files["config.json"], "sound_config": {"attention_bias": True}}
    model = replace(omni, files={**omni.files, "config.json": config}).write(tmp_path / "a" / "m")
    seen = convert(model, tmp_path / "a.gguf", Options(vision_only=True))
    assert seen.path.read_bytes() == written(nano, tmp_path / "b")
    with pytest.raises(ConfigError, match=r"attention_bias is True, which readers would compute wrongly"):
        convert(model, tmp_path / "c.gguf")


def test_nemotron_omni_hears_with_the_projector_of_images(tmp_path: Path) -> None:
    omni = Fixture.read(FIXTURES / "nemotron_nano_v2_vl--omni.json")
    heard = convert(omni.write(tmp_path / "m"), tmp_path / "a.gguf", Options(audio_only=True))
    found = read(heard.path)
    assert found.tensors.keys() == {name for name in omni.tensors if not name.startswith("v.")}
    assert found.metadata["clip.projector_type"] == "parakeet"
    assert not any(key.startswith(("clip.vision.", "clip.has_vision")) for key in found.metadata)
    assert inspect(heard.path).verdicts[-1].reads
    assert verify(heard.path, tmp_path / "m").agrees


def test_attention_that_readers_take_for_another(tmp_path: Path) -> None:
    fixture = Fixture.read(FIXTURES / "muse_glimmer.json")
    config = fixture.files["config.json"]
    tower = {
        **config["vision_config"],
        "layer_types": ["full_attention"] * config["vision_config"]["num_hidden_layers"],
    }
    model = replace(fixture, files={**fixture.files, "config.json": {**config, "vision_config": tower}})
    (warning,) = plan(model.write(tmp_path / "m")).warnings
    assert "readers take 'full_attention' for every fourth and for the last alone" in warning
