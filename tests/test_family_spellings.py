"""Names that checkpoints have from other versions of transformers: what is written is the same."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from clipgguf import ConfigError, plan
from tests.family_fixtures import Fixture, fixtures

# A fixture, and what is replaced in its names: what stands in memory, or stood in older versions.
SPELLINGS = (
    ("audio_flamingo3", (r"^(audio_tower|multi_modal_projector|language_model)", r"model.\1")),
    ("gemma3", (r"^(vision_tower|multi_modal_projector|language_model)", r"model.\1")),
    ("gemma3--resaved", (r"^(vision_tower|multi_modal_projector|language_model)", r"model.\1")),
    ("granite_speech", (r"^(encoder|projector|language_model)", r"model.\1")),
    ("gemma3n", (r"^model\.", "")),
    ("gemma4", (r"^model\.", "")),
    ("gemma4", (r"\.linear\.weight$", ".weight")),
    ("gemma4_unified", (r"vision_embedder", "embed_vision")),
    ("gemma4_unified", (r"embed_vision\.embed", "embed_vision.multimodal_embedder.embed")),
    ("idefics3", (r"^model\.", "")),
    ("idefics3--smolvlm", (r"^model\.", "")),
    ("internvl--hf", (r"^(vision_tower|multi_modal_projector|language_model)", r"model.\1")),
    ("janus_pro", (r"^model\.", "")),
    ("lfm2_vl", (r"^model\.(vision_tower|multi_modal_projector)", r"\1")),
    ("lfm2_vl--resaved", (r"^model\.(vision_tower|multi_modal_projector)", r"\1")),
    ("glm_asr", (r"audio_encoder\.layer_norm", "audio_encoder.adapting.layer_norm")),
    ("llama4", (r"^(vision_model|multi_modal_projector|language_model)", r"model.\1")),
    ("paddleocr_vl", (r"^visual\.vision_model\.", "model.visual.")),
    ("paddleocr_vl", (r"^mlp_AR\.", "model.projector.")),
    ("paddleocr_vl", (r"^model\.", "model.language_model.")),
    ("qwen2_audio", (r"^(audio_tower|multi_modal_projector|language_model)", r"model.\1")),
    ("qwen3_asr", (r"^thinker\.", "")),
    ("qwen3_omni_moe", (r"^thinker\.(visual|audio_tower)", r"\1")),
    ("qwen3_omni_moe", (r"^thinker\.visual", "model.visual")),
    ("voxtral", (r"^(audio_tower|multi_modal_projector|language_model)", r"model.\1")),
)


def fixture_of(name: str) -> Fixture:
    return next(fixture for fixture in fixtures() if fixture.name == name)


def planned(fixture: Fixture, directory: Path) -> list[tuple[Any, ...]]:
    return [(t.name, t.shape, t.ggml_type) for t in plan(fixture.write(directory)).tensors]


@pytest.mark.parametrize(("name", "change"), SPELLINGS, ids=lambda value: value if isinstance(value, str) else value[1])
def test_other_spellings(name: str, change: tuple[str, str], tmp_path: Path) -> None:
    fixture = fixture_of(name)
    shapes = {re.sub(*change, tensor): shape for tensor, shape in fixture.shapes.items()}
    assert shapes.keys() != fixture.shapes.keys()
    other = replace(fixture, shapes=shapes)
    assert planned(other, tmp_path / "a") == planned(fixture, tmp_path / "b")


def test_tensors_that_are_known_and_not_written(tmp_path: Path) -> None:
    for name, more in (
        ("paddleocr_vl", "visual.vision_model.packing_position_embedding.weight"),
        ("paddleocr_vl", "visual.vision_model.embeddings.packing_position_embedding.weight"),
        ("paddleocr_vl", "visual.vision_model.head.probe"),
        ("lfm2_vl", "model.vision_tower.vision_model.head.probe"),
        ("internvl--hf", "vision_tower.embeddings.mask_token"),
        ("glm_asr", "audio_encoder.proj.weight"),
        ("qwen3_omni_moe", "talker.model.norm.weight"),
    ):
        fixture = fixture_of(name)
        other = replace(fixture, shapes={**fixture.shapes, more: (3,)})
        assert planned(other, tmp_path / f"{more}-a") == planned(fixture, tmp_path / f"{more}-b")


def with_config(name: str, **values: Any) -> Fixture:
    fixture = fixture_of(name)
    return replace(fixture, files={**fixture.files, "config.json": {**fixture.files["config.json"], **values}})


def test_blocks_after_the_features_that_lfm2_uses_are_left_out(tmp_path: Path) -> None:
    names = [tensor[0] for tensor in planned(with_config("lfm2_vl", vision_feature_layer=-2), tmp_path / "m")]
    blocks = {name.split(".")[2] for name in names if name.startswith("v.blk.")}
    assert blocks == {"0", "1"}
    metadata = {item.key: item.value for item in plan(tmp_path / "m").metadata}
    assert metadata["clip.vision.block_count"] == 2


@pytest.mark.parametrize("layer", [0, -4, 2, "last", -1.0])
def test_features_that_are_of_no_layer(layer: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"vision_feature_layer is .*, should be between -3 and -1"):
        plan(with_config("lfm2_vl", vision_feature_layer=layer).write(tmp_path / "m"))


@pytest.mark.parametrize(
    ("name", "config", "said"),
    [
        ("janus_pro", {"depth": 3}, "vision_config: depth is 3"),
        ("paddleocr_vl", {"spatial_merge_size": 4}, "vision_config: spatial_merge_size is 4"),
        ("llama4", {"pixel_shuffle_ratio": 0.1}, "pixel_shuffle_ratio is 0.1, should be between 1/4 and 1"),
    ],
)
def test_what_llama_cpp_would_compute_wrongly(name: str, config: dict[str, Any], said: str, tmp_path: Path) -> None:
    fixture = fixture_of(name)
    tower = {**fixture.files["config.json"]["vision_config"], **config}
    with pytest.raises(ConfigError, match=said):
        plan(with_config(name, vision_config=tower).write(tmp_path / "m"))
