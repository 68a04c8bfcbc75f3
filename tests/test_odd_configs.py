"""Configurations that nobody writes on purpose, and what becomes of them: what is there counts, whatever its value."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from clipgguf import CheckpointError, ConfigError, Options, UsageError, convert, inspect, plan, verify
from tests.checkpoints import write_model
from tests.clip_checkpoints import write_clip, write_tower
from tests.family_fixtures import fixtures
from tests.json_files import edit_json
from tests.llava_checkpoints import Llava, write_hf, write_projector
from tests.open_clip_checkpoints import write_open_clip
from tests.siglip_checkpoints import write_siglip, write_siglip_llava
from tests.weights import safetensors_header, write_file

FAMILIES = {family.name: family for family in fixtures() if family.name in ("gemma3", "qwen2_5_vl")}


def changed(model: Path, edit: Callable[[Any], object], name: str = "config.json") -> Path:
    edit_json(model / name, edit)
    return model


def test_an_empty_activation_is_one_that_readers_do_not_know(tmp_path: Path) -> None:
    model = changed(write_model(tmp_path / "m"), lambda c: c["vision_config"].update(hidden_act=""))
    changed(model, lambda c: c["text_config"].update(hidden_act="gelu"))
    made = convert(model, tmp_path / "out.gguf")
    assert [item.value for item in inspect(made.path).metadata if item.key == "clip.use_gelu"] == [False]
    assert any("do not know hidden_act ''" in warning for warning in made.warnings)
    tower = changed(write_tower(tmp_path / "v", "vision"), lambda c: c.update(hidden_act=""))
    assert any("do not know hidden_act ''" in warning for warning in plan(tower).warnings)


@pytest.mark.parametrize("inside", [{"layer_norm_eps": 1e-3, "hidden_size": 64}, {}, None, "x"], ids=str)
@pytest.mark.parametrize("tower", ["text", "vision"])
def test_what_a_towers_own_config_has_inside_counts_for_nothing(tower: str, inside: Any, tmp_path: Path) -> None:
    model = write_tower(tmp_path / "m", tower)
    expected = convert(model, tmp_path / "a.gguf").path.read_bytes()
    changed(model, lambda c: c.update({f"{tower}_config": inside}))
    assert convert(model, tmp_path / "b.gguf").path.read_bytes() == expected


def test_a_null_model_type_is_none(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m")
    expected = convert(model, tmp_path / "a.gguf").path.read_bytes()
    changed(model, lambda c: c.update(model_type=None))
    assert convert(model, tmp_path / "b.gguf").path.read_bytes() == expected


def test_a_number_that_follows_from_others_and_has_no_32_bits(tmp_path: Path) -> None:
    model = FAMILIES["qwen2_5_vl"].write(tmp_path / "m")
    changed(model, lambda c: c["vision_config"].update(fullatt_block_indexes=[2**32 - 1]))
    words = r"config\.json: the sizes make vision\.window_pattern 4,294,967,296, should be at most 4,294,967,295"
    with pytest.raises(ConfigError, match=words):
        plan(model)


@pytest.mark.parametrize("embed_dim", ["missing", None])
def test_open_clip_without_embed_dim_has_the_tensors(embed_dim: Any, tmp_path: Path) -> None:
    model = write_open_clip(tmp_path / "m")
    expected = convert(model, tmp_path / "a.gguf").path.read_bytes()

    def edit(config: Any) -> None:
        if embed_dim is None:
            config["model_cfg"]["embed_dim"] = None
        else:
            del config["model_cfg"]["embed_dim"]

    made = convert(changed(model, edit, "open_clip_config.json"), tmp_path / "b.gguf")
    assert made.path.read_bytes() == expected
    named = [name for name in ("'visual.proj'", "'text_projection'") if any(name in line for line in made.warnings)]
    assert len(named) == 2


@pytest.mark.parametrize(
    "given", [[0.5, 0.25, 1], np.array([0.5, 0.25, 1]), ("0.5", "0.25", "1"), iter((0.5, 0.25, 1))]
)
def test_image_statistics_are_any_three_numbers(given: Any, tmp_path: Path) -> None:
    options = Options(image_mean=given)
    assert options == Options(image_mean=(0.5, 0.25, 1.0))
    assert hash(options) == hash(Options(image_mean=(0.5, 0.25, 1.0)))
    assert ("clip.vision.image_mean", [0.5, 0.25, 1.0]) in [
        (item.key, item.value) for item in plan(write_model(tmp_path / "m"), options).metadata
    ]


@pytest.mark.parametrize(
    "options",
    [{"image_mean": 3}, {"image_std": ("a", "b", "c")}, {"projector_type": "foo"}, {"outtype": None}, {"outtype": 16}],
    ids=str,
)
def test_options_of_another_kind_are_refused(options: Any) -> None:
    with pytest.raises(UsageError, match=f"{next(iter(options))} is .*, should be"):
        Options(**options)


def test_layer_0_is_an_option_that_is_given(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is for LLaVA"):
        plan(write_model(tmp_path / "m"), Options(feature_layer=0))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_tower_of_a_family_that_has_one(name: str, tmp_path: Path) -> None:
    model = FAMILIES[name].write(tmp_path / "m")
    for options in (Options(text_only=True), Options(audio_only=True)):
        what = f"gives an mmproj file for images; --{options.only}-only does not apply"
        with pytest.raises(ConfigError, match=what):
            plan(model, options)
    assert plan(model, Options(vision_only=True)).metadata == plan(model).metadata


@pytest.mark.parametrize("name", FAMILIES)
def test_verify_says_that_families_differ(name: str, tmp_path: Path) -> None:
    path = convert(FAMILIES[name].write(tmp_path / "m"), tmp_path / "a.gguf").path
    with pytest.raises(CheckpointError, match=r"a\.gguf: is a file of .*, .* is a checkpoint of CLIPModel"):
        verify(path, write_model(tmp_path / "clip"))
    (other,) = FAMILIES.keys() - {name}
    with pytest.raises(CheckpointError, match=r"a\.gguf: is a file of .*, .* is a checkpoint of "):
        verify(path, FAMILIES[other].write(tmp_path / "other"))


def test_two_tensors_that_disagree_about_a_size_are_both_named(tmp_path: Path) -> None:
    # No configuration says how wide LLaVA's projector is inside: the first tensor that has it does.
    model = write_hf(tmp_path / "m", Llava())
    path = model / "model.safetensors"
    first, second = (f"multi_modal_projector.linear_{n}.weight" for n in (1, 2))
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    rows, columns = header[second]["shape"]
    header[second]["shape"] = [rows * 2, columns // 2]
    path.write_bytes(safetensors_header(header) + data[8 + length :])
    with pytest.raises(CheckpointError) as error:
        plan(model)
    assert any(
        f"{second!r} has shape ({rows * 2}, {columns // 2}), tensor {first!r} of shape" in problem
        and problem.endswith(f"asks for (any, {columns})")
        for problem in error.value.problems
    ), error.value


def with_architectures(model: Path, model_type: Any, *names: Any) -> Path:
    return changed(model, lambda c: c.update(model_type=model_type, architectures=list(names)))


@pytest.mark.parametrize("name", ["clip", "siglip", "clip_vision_model", "gemma3"])
def test_a_model_type_is_no_class(name: str, tmp_path: Path) -> None:
    model = write_hf(tmp_path / "m", Llava())
    expected = convert(model, tmp_path / "a.gguf").path.read_bytes()
    assert convert(with_architectures(model, "llava", name), tmp_path / "b.gguf").path.read_bytes() == expected


@pytest.mark.parametrize("model_type", ["foo", 1, {}, ["x"]], ids=str)
@pytest.mark.parametrize("name", ["clip", "siglip", "llava"])
def test_a_model_type_among_the_classes_of_nothing(name: str, model_type: Any, tmp_path: Path) -> None:
    for write in (write_model, lambda directory: write_hf(directory, Llava())):
        model = with_architectures(write(tmp_path / write.__name__), model_type, name)
        with pytest.raises(ConfigError, match=r"config\.json: is of model_type .*, which is not supported"):
            plan(model)


def test_a_towers_class_that_is_a_model_type(tmp_path: Path) -> None:
    model = changed(write_siglip(tmp_path / "m"), lambda c: c["vision_config"].update(architectures=["llava"]))
    assert plan(model, Options(vision_only=True)).found.startswith("SigLIP (SiglipModel)")


@pytest.mark.parametrize("tower", ["vision_cfg", "text_cfg"])
@pytest.mark.parametrize("given", [False, 0, [], "", {"eps": None}, {}], ids=str)
def test_open_clips_norm_kwargs_that_tell_nothing(given: Any, tower: str, tmp_path: Path) -> None:
    model = write_open_clip(tmp_path / "m")
    expected = convert(model, tmp_path / "a.gguf").path.read_bytes()
    changed(model, lambda c: c["model_cfg"][tower].update(norm_kwargs=given), "open_clip_config.json")
    assert convert(model, tmp_path / "b.gguf").path.read_bytes() == expected


@pytest.mark.parametrize("option", [{}, {"text_only": True}, {"vision_only": True}], ids=str)
@pytest.mark.parametrize(
    ("part", "values", "words"),
    [
        ("preprocess_cfg", {"mean": [0.5]}, "preprocess_cfg: mean is"),
        ("preprocess_cfg", {"std": [0, 0, 0]}, "preprocess_cfg: std is"),
        ("vision_cfg", {"patch_size": 640}, "patch_size 640 is larger than image_size"),
        ("vision_cfg", {"mlp_ratio": None}, "vision_cfg: mlp_ratio is None, should be a positive number"),
        ("vision_cfg", {"mlp_ratio": 1e7}, "vision_cfg: width is 48 and mlp_ratio 10000000.0"),
        ("vision_cfg", {"width": None}, "vision_cfg: width is None, should be a positive integer"),
        ("text_cfg", {"width": None}, "text_cfg: width is None, should be a positive integer"),
        ("vision_cfg", {"head_width": None}, "vision_cfg: head_width is None, should be a positive integer"),
    ],
    ids=lambda x: str(x)[:24],
)
def test_open_clips_whole_config_is_held(part: str, values: Any, words: str, option: Any, tmp_path: Path) -> None:
    model = write_open_clip(tmp_path / "m")
    name = "open_clip_config.json"
    changed(model, lambda c: (c if part in c else c["model_cfg"])[part].update(values), name)
    with pytest.raises(ConfigError) as error:
        plan(model, Options(**option))
    assert any(f"{name}: " in problem and words in problem for problem in error.value.problems), error.value


@pytest.mark.parametrize("layer", ["x", [-2, -1], 99], ids=str)
def test_a_feature_layer_is_told_by_its_place(layer: Any, tmp_path: Path) -> None:
    model = changed(write_hf(tmp_path / "m", Llava()), lambda c: c.update(vision_feature_layer=layer))
    with pytest.raises(ConfigError) as error:
        plan(model)
    assert str(error.value).startswith(f"{model / 'config.json'}: vision_feature_layer is {layer!r}")


@pytest.mark.parametrize(("asked", "text"), [(None, ""), ("ldp", " as 'ldp'")])
def test_an_unknown_projector_is_told_what_is_known(asked: Any, text: str, tmp_path: Path) -> None:
    llava = Llava()
    file = write_projector(tmp_path / "p.safetensors", llava)
    write_file(file, {**load_file(file), "model.mm_projector.7.weight": np.ones(4, np.float32)})
    with pytest.raises(CheckpointError) as error:
        plan(write_clip(tmp_path / "m", llava.clip), Options(llava_projector=file, projector_type=asked))
    assert f"readers do not know the projector{text}: compared with " in str(error.value)
    assert str(error.value).endswith("; supported are mlp, mlp with LayerNorm, ldp, ldpv2")


def test_a_vision_config_that_is_no_object(tmp_path: Path) -> None:
    model = changed(write_siglip_llava(tmp_path / "m"), lambda c: c.update(vision_config=[8]))
    with pytest.raises(ConfigError, match=r"config\.json: vision_config is \[8\], should be an object"):
        plan(model)
