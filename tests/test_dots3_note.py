"""dots3-note's experts, of which each block has its own number, and the two configurations that tell it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from clipgguf import CheckpointError, ClipGGUFError, ConfigError, Options, convert, inspect, plan
from tests.family_fixtures import FIXTURES, Fixture, weights
from tests.gguf_bytes import rewritten
from tests.weights import write_weights

FIXTURE = Fixture.read(FIXTURES / "dots3_note.json")
EXPERTS = [name for name in FIXTURE.shapes if ".experts." in name]
# What transformers saves in place of the published configuration.
TRANSFORMERS = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "moe_intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "mlp_layer_types": ["sparse", "dense", "sparse", "dense"],
    "num_local_experts": 4,
    "per_layer_config": {"2": {"num_local_experts": 3}},
    "num_experts_per_tok": 2,
}
TRANSFORMERS_AUDIO = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "feature_size": 128,
    "hidden_act": "silu",
    "rope_parameters": {"rope_theta": 10000.0, "partial_rotary_factor": 0.5, "rope_type": "default"},
    "sampling_rate": 16000,
    "hop_length": 160,
}


def with_audio(audio: Any) -> Fixture:
    config = {**FIXTURE.files["config.json"], "audio_config": audio}
    return replace(FIXTURE, files={**FIXTURE.files, "config.json": config})


def with_vision(vision: dict[str, Any]) -> Fixture:
    config = {**FIXTURE.files["config.json"], "vision_config": vision}
    return replace(FIXTURE, files={**FIXTURE.files, "config.json": config})


def changed(**changes: Any) -> Fixture:
    return with_vision({**FIXTURE.files["config.json"]["vision_config"], **changes})


def test_the_configuration_of_transformers_says_the_same(tmp_path: Path) -> None:
    written = [FIXTURE, with_vision(TRANSFORMERS), with_audio(TRANSFORMERS_AUDIO)]
    models = [fixture.write(tmp_path / str(n) / "m") for n, fixture in enumerate(written)]
    assert len({convert(model, tmp_path / f"{n}.gguf").path.read_bytes() for n, model in enumerate(models)}) == 1


@pytest.mark.parametrize("name", EXPERTS)
def test_a_missing_expert_is_named(name: str, tmp_path: Path) -> None:
    shapes = {n: shape for n, shape in FIXTURE.shapes.items() if n != name}
    with pytest.raises(CheckpointError) as error:
        plan(replace(FIXTURE, shapes=shapes).write(tmp_path / "m"))
    (problem,) = error.value.problems
    assert f"no file has tensor {name!r}" in problem


@pytest.mark.parametrize(
    ("pyramid", "problem"),
    [
        ([4, -1, 2, -1], "'vision_encoder.blocks.2.mlp.experts.2.fc1.weight' is unknown"),
        (
            [4, -1, 2, -1],
            r"'vision_encoder.blocks.2.mlp.gate_weight' has shape \(3, 64\), config.json asks for \(2, 64\)",
        ),
        ([4, -1, 2**31 - 1, -1], "asks for 2,147,483,647 tensors 'vision_encoder.blocks.2.mlp.experts.{}.fc1.weight'"),
        ([4, -1, 3], "has 3 blocks, num_hidden_layers is 4"),
        ([4, -1, "3", -1], "pyramid_num_routed is .*, should be a list of integers"),
    ],
)
def test_a_pyramid_that_is_another(pyramid: Any, problem: str, tmp_path: Path) -> None:
    with pytest.raises(ClipGGUFError, match=problem):
        plan(changed(pyramid_num_routed=pyramid).write(tmp_path / "m"))


@pytest.mark.parametrize("change", [{"router_scale": 2.5}, {"adapter_type": "mlp"}, {"router_scoring_func": "softmax"}])
def test_what_llama_cpp_has_no_graph_for(change: dict[str, Any], tmp_path: Path) -> None:
    (key,) = change
    with pytest.raises(ConfigError, match=f"{key} is .*, supported is"):
        plan(changed(**change).write(tmp_path / "m"))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"use_causal": True}, "use_causal is True, which readers would compute wrongly"),
        ({"chunk_seconds": 30}, "chunk_seconds is 30, which"),
        ({"rope_parameters": {"partial_rotary_factor": 1.0}}, r"partial_rotary_factor is 1\.0, which"),
        ({"whisper_config": {"activation_function": "gelu"}}, "activation_function is 'gelu', which"),
    ],
)
def test_an_audio_encoder_that_llama_cpp_has_no_graph_for(change: Any, problem: str, tmp_path: Path) -> None:
    model = with_audio({**TRANSFORMERS_AUDIO, **change}).write(tmp_path / "m")
    with pytest.raises(ConfigError, match=problem):
        plan(model)
    plan(model, Options(vision_only=True))


def test_without_an_audio_configuration_it_sees_only(tmp_path: Path) -> None:
    deaf = {name: shape for name, shape in FIXTURE.shapes.items() if not name.startswith("audio_encoder.")}
    result = convert(replace(with_audio(None), shapes=deaf).write(tmp_path / "m"), tmp_path / "x.gguf").path
    assert [tower.name for tower in inspect(result).towers] == ["vision"]


def test_experts_of_several_types_are_refused(tmp_path: Path) -> None:
    model = FIXTURE.write(tmp_path / "m")
    arrays = {name: weights(name, shape) for name, shape in FIXTURE.shapes.items()}
    write_weights(model, arrays, dtype=lambda name: "F16" if name == EXPERTS[0] else "F32")
    with pytest.raises(CheckpointError, match="are of several types, F16, F32"):
        plan(model)


def test_a_file_with_another_number_of_experts_does_not_fit(tmp_path: Path) -> None:
    path = convert(FIXTURE.write(tmp_path / "m"), tmp_path / "x.gguf", Options(outtype="f32")).path
    path = rewritten(path, tmp_path / "y.gguf", without=["v.blk.2.ffn_up_exps.weight"])
    (reason,) = inspect(path).verdicts[-1].reasons
    assert reason == "it lacks tensors: 'v.blk.2.ffn_up_exps.weight'"
