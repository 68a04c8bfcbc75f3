"""JSON of somebody who means harm: too deep, too large, twice the same key, numbers that are none."""

import json
import os
import sys
from pathlib import Path

import pytest

from clipgguf import Options, convert, plan
from clipgguf.json_file import LARGEST_JSON, MOST_IN_JSON, read_json_object
from clipgguf.sources.given import given_file
from tests.checkpoints import write_model
from tests.clip_checkpoints import write_tower
from tests.gguf_reading import read
from tests.hostile_models import INDEX, JSON_FILES, sharded
from tests.json_files import edit_json
from tests.llava_checkpoints import Llava, write_hf, write_original
from tests.open_clip_checkpoints import write_open_clip
from tests.refusals import assert_refused_without_reading, refusal, refused_plan

# JSON.


def refused_with(name: str, text: str, directory: Path) -> str:
    """Return the lines that refuse a model one of whose JSON files has another text."""
    model = JSON_FILES[name](directory / "model")
    (model / name).write_text(text, encoding="utf-8")
    return refused_plan(model)


@pytest.mark.parametrize("name", JSON_FILES)
def test_json_that_is_nested_too_deeply(name: str, tmp_path: Path) -> None:
    for deep in ("[" * 200_000, '{"a":' * 200_000):
        assert f"{name}: is JSON nested too deeply to be read" in refused_with(name, deep, tmp_path)


@pytest.mark.parametrize("depth", [20, 900, 920, 940, 950, 960, 970, 980, 990, 5000])
def test_json_that_is_nested_just_not_too_deeply(depth: int, tmp_path: Path) -> None:
    # What Python reads, it can neither print nor compare from a deeper place.
    def check(path: Path, *keys: str) -> None:
        config = json.loads(path.read_text())
        target = config
        for key in keys[:-1]:
            target = target[key]
        target[keys[-1]] = "DEEP"
        path.write_text(json.dumps(config).replace('"DEEP"', "[" * depth + "]" * depth))
        refused_plan(path.parent)

    for key in ("model_type", "text_config", "quantization_config"):
        # Of integers, so that the config is asked what quantized them.
        model = write_model(tmp_path / key, dtype=lambda name: "U8" if name == "logit_scale" else "F32")
        check(model / "config.json", key)
    for key in ("model_type", "vision_feature_layer", "vision_feature_select_strategy"):
        check(write_hf(tmp_path / f"llava-{key}", Llava()) / "config.json", key)
    for key in ("image_size", "timm_model_name", "pool_type", "head_width", "width"):
        model = write_open_clip(tmp_path / f"open-clip-{key}")
        check(model / "open_clip_config.json", "model_cfg", "vision_cfg", key)


@pytest.mark.parametrize("name", JSON_FILES)
def test_json_with_a_key_twice(name: str, tmp_path: Path) -> None:
    model = JSON_FILES[name](tmp_path / "sound")
    text = (model / name).read_text().removeprefix("{")
    assert f"{name}: has the key 'again' twice in one object, with different values" in refused_with(
        name, f'{{"again": 1, "again": "1", {text}', tmp_path
    )
    assert "has the key 'again' twice" in refused_with(name, f'{{"x": [{{"again": 1, "again": 2}}], {text}', tmp_path)


def test_json_with_a_key_twice_and_one_value(model: Path) -> None:
    # It does not depend on the reader what this says.
    path = model / "config.json"
    path.write_text('{"model_type": "clip", ' + path.read_text().removeprefix("{"))
    plan(model)


def test_tensor_that_the_index_puts_into_two_files(tmp_path: Path) -> None:
    model = sharded(tmp_path / "m")
    shards = [f"model-0000{n}-of-00003.safetensors" for n in (1, 2)]
    pairs = ", ".join(f'"logit_scale": "{shard}"' for shard in shards)
    (model / INDEX).write_text(f'{{"weight_map": {{{pairs}}}}}')
    message = refused_plan(model)
    assert f"{INDEX}: has the key 'logit_scale' twice" in message


@pytest.mark.skipif(sys.platform == "win32", reason="files have no holes on Windows unless they are asked to")
@pytest.mark.parametrize("name", JSON_FILES)
def test_json_of_gigabytes_is_not_read(name: str, tmp_path: Path) -> None:
    model = JSON_FILES[name](tmp_path / "m")
    os.truncate(model / name, 2**32)
    words = f"{name}: has 4,294,967,296 bytes, should have {LARGEST_JSON:,} at most"
    assert_refused_without_reading(lambda: plan(model), words)


def test_json_of_the_largest_size_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(b'{"a": 1}' + b" " * (LARGEST_JSON - 8))
    assert read_json_object(given_file(path)) == {"a": 1}
    path.write_bytes(b'{"a": 1}' + b" " * (LARGEST_JSON - 7))
    assert f"has {LARGEST_JSON + 1:,} bytes" in refusal(lambda: read_json_object(given_file(path)))


def test_json_of_too_many_values_is_not_parsed(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    for value in ("[]", "{}", '""'):
        path.write_text(f'{{"a": [{",".join([value] * (2 * MOST_IN_JSON))}]}}')
        assert f"values, should have {MOST_IN_JSON:,} at most" in refusal(lambda: read_json_object(given_file(path)))


# Numbers that are none, or too large: the file, where in it, its new value, and what the error says.
HUGE = str(10**400)
NUMBERS: list[tuple[str, str, str, str]] = [
    ("config.json", "vision_config.hidden_size", HUGE, "a positive integer of 32 bits"),
    ("config.json", "vision_config.num_hidden_layers", "1e999", "num_hidden_layers is inf"),
    ("config.json", "vision_config.image_size", "NaN", "image_size is nan"),
    ("config.json", "text_config.layer_norm_eps", HUGE, "a positive number"),
    ("config.json", "text_config.layer_norm_eps", "1e39", "layer_norm_eps is 1e+39"),
    ("config.json", "text_config.layer_norm_eps", "-Infinity", "layer_norm_eps is -inf"),
    # As float32 they are zero.
    ("config.json", "text_config.layer_norm_eps", "1e-50", "layer_norm_eps is 1e-50, should be a positive number"),
    ("preprocessor_config.json", "image_std", "[1, 1, 1e-46]", "image_std is [1, 1, 1e-46], should be 3 positive"),
    ("open_clip_config.json", "preprocess_cfg.std", "[1e-46, 1, 1]", "std is [1e-46, 1, 1], should be 3 positive"),
    ("config.json", "text_config.projection_dim", HUGE, "projection_dim is 1000"),
    ("preprocessor_config.json", "image_mean", f"[0, 0, {HUGE}]", "should be 3 numbers"),
    ("preprocessor_config.json", "image_mean", "[0, 0, -Infinity]", "image_mean is [0, 0, -inf]"),
    ("preprocessor_config.json", "image_std", "[1, 1, NaN]", "image_std is [1, 1, nan]"),
    ("vocab.json", "tok7</w>", HUGE, "no token has id 7, but the ids go up to 1000"),
    ("vocab.json", "tok7</w>", "1e999", "has id inf, should be an integer"),
    ("vocab.json", "tok7</w>", "7.0", "has id 7.0"),
    ("open_clip_config.json", "model_cfg.vision_cfg.width", HUGE, "width is 1000"),
    ("open_clip_config.json", "model_cfg.vision_cfg.width", "-48", "width is -48"),
    ("open_clip_config.json", "model_cfg.vision_cfg.mlp_ratio", "1e999", "mlp_ratio is inf"),
    ("open_clip_config.json", "model_cfg.vision_cfg.mlp_ratio", "NaN", "mlp_ratio is nan"),
    ("open_clip_config.json", "model_cfg.vision_cfg.mlp_ratio", HUGE, "mlp_ratio is 1000"),
    ("open_clip_config.json", "model_cfg.vision_cfg.head_width", HUGE, "head_width is 1000"),
    ("open_clip_config.json", "model_cfg.vision_cfg.image_size", f"[{HUGE}, {HUGE}]", "image_size is 1000"),
    ("open_clip_config.json", "preprocess_cfg.std", "[1, 1, 1e999]", "std is [1, 1, inf]"),
]


@pytest.mark.parametrize(("name", "where", "value", "words"), NUMBERS, ids=[f"{n[1]}-{n[2][:9]}" for n in NUMBERS])
def test_numbers_that_are_none_or_too_large(name: str, where: str, value: str, words: str, tmp_path: Path) -> None:
    config = json.loads((JSON_FILES[name](tmp_path / "sound") / name).read_text())
    *path, key = where.split(".")
    target = config
    for part in path:
        target = target[part]
    target[key] = "NUMBER"
    assert words in refused_with(name, json.dumps(config).replace('"NUMBER"', value), tmp_path)


@pytest.mark.parametrize(
    "value", [10**400, -(10**400), 2**63, "NaN", [10**400], float("inf")], ids=lambda v: f"{v}"[:9]
)
def test_feature_layers_that_are_none(value: object, tmp_path: Path) -> None:
    model = write_hf(tmp_path / "m", Llava())
    edit_json(model / "config.json", lambda config: config.update(vision_feature_layer=value))
    assert "vision_feature_layer is" in refused_plan(model)


@pytest.mark.parametrize(
    "value",
    [[[10**400, 28]], [[float("nan"), 28]], [[2**31, 28]], 10**400, [28] * 10**5],
    ids=["digits", "no-number", "33-bits", "no-list", "long"],
)
def test_grid_pinpoints_that_are_none(value: object, tmp_path: Path) -> None:
    model = write_hf(tmp_path / "m", Llava(has_newline=True))
    edit_json(model / "config.json", lambda config: config.update(image_grid_pinpoints=value))
    planned = plan(model)
    assert any("image_grid_pinpoints" in warning and len(warning) < 2000 for warning in planned.warnings)
    assert not [item for item in planned.metadata if item.key == "clip.vision.image_grid_pinpoints"]


# What the fuzzers found.


@pytest.mark.parametrize("value", [[], {}, [["llava"]], {"llava": 1}, 1.5, True])
def test_model_type_that_is_no_string(value: object, tmp_path: Path) -> None:
    for model in (write_model(tmp_path / "clip"), write_hf(tmp_path / "llava", Llava())):
        edit_json(model / "config.json", lambda config: config.update(model_type=value))
        assert "is of model_type" in refused_plan(model)


@pytest.mark.parametrize("value", [[], {}, [["siglip"]], 7])
def test_model_type_of_a_tower_that_is_no_string(value: object, tmp_path: Path) -> None:
    model = write_original(tmp_path / "m", Llava())
    tower = write_tower(tmp_path / "tower", "vision", Llava().clip)
    edit_json(tower / "config.json", lambda config: config.update(model_type=value))
    message = refused_plan(model, vision_tower=tower)
    assert f"is of model_type {value!r}, a vision tower's is" in message


def test_text_that_is_no_unicode_where_it_is_written(tmp_path: Path) -> None:
    model = write_original(tmp_path / "m", Llava(has_newline=True))
    tower = write_tower(tmp_path / "tower", "vision", Llava().clip)
    texts = {"mm_patch_merge_type": "\ud800x", "_name_or_path": "\udfff"}
    edit_json(model / "config.json", lambda config: config.update(texts))
    path = convert(model, tmp_path / "out", options=Options(vision_tower=tower)).path
    metadata = read(path).metadata
    assert (metadata["clip.vision.mm_patch_merge_type"], metadata["general.name"]) == ("?x", "?")
