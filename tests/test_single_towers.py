"""Towers alone, as transformers and diffusers save them, are half of the whole model's file."""

import json
from pathlib import Path
from typing import Any

import pytest

from clipgguf import Options, convert
from clipgguf.options import Outtype
from tests.checkpoints import GELU, TINY, Clip, Text, Vision
from tests.clip_checkpoints import (
    only,
    tokens,
    write_clip,
    write_pipeline,
    write_tower,
)
from tests.conftest import Run
from tests.gguf_reading import tensors, value
from tests.json_files import edit_json, write_json
from tests.refusals import refused
from tests.siglip_checkpoints import write_siglip_tower

# ---- single towers ---------------------------------------------------------------------------------------------------

TOWER_STYLES: dict[str, dict[str, Any]] = {
    "5, fresh": {"prefix": ""},
    "5, loaded": {},
    "4": {"style": "4", "has_position_ids": True},
    "4, bin": {"style": "4", "has_position_ids": True, "suffix": ".bin"},
    "fresh, position ids": {"prefix": "", "has_position_ids": True},
    "shards": {"shards": 2},
}


@pytest.mark.parametrize("tower", ["text", "vision"])
@pytest.mark.parametrize("style", TOWER_STYLES)
def test_single_tower(tower: str, style: str, tmp_path: Path) -> None:
    whole = convert(write_clip(tmp_path / "hf" / "tiny"), options=Options(**only(tower))).path
    projection = "text_projection.weight" if tower == "text" else "visual_projection.weight"
    expected = tensors(whole)
    del expected[projection]
    model = write_tower(tmp_path / "other" / "tiny", tower, **TOWER_STYLES[style])
    result = convert(model)
    assert result.path == model / f"{tower}-model-f16.gguf"
    assert tensors(result.path) == expected
    assert list(tensors(result.path)) == list(expected)
    assert result.warnings == ()
    for key in ("general.description", "clip.has_text_encoder", "clip.has_vision_encoder", "general.name"):
        assert value(result.path, key) == value(whole, key)
    assert value(result.path, "general.description") == f"{tower}-only CLIP model"


@pytest.mark.parametrize("tower", ["text", "vision"])
@pytest.mark.parametrize("outtype", ["f16", "f32"])
@pytest.mark.parametrize("style", [style for style, options in TOWER_STYLES.items() if options.get("prefix", True)])
def test_single_tower_with_projection_is_half_of_the_whole(
    tower: str, outtype: Outtype, style: str, tmp_path: Path
) -> None:
    expected = convert(write_clip(tmp_path / "hf" / "tiny"), options=Options(outtype=outtype, **only(tower))).path
    options = TOWER_STYLES[style]
    result = convert(
        write_tower(tmp_path / "other" / "tiny", tower, projection=True, **options), options=Options(outtype=outtype)
    )
    assert result.path.read_bytes() == expected.read_bytes()
    assert result.path.name == expected.name
    # Asking for what there is anyway changes nothing.
    again = convert(tmp_path / "other" / "tiny", tmp_path / "x", options=Options(outtype=outtype, **only(tower))).path
    assert again.read_bytes() == expected.read_bytes()


@pytest.mark.parametrize("tower", ["text", "vision"])
def test_single_tower_by_its_flat_config(tower: str, tmp_path: Path) -> None:
    # The flags are the tower's own, and what is omitted has CLIPTextConfig's and CLIPVisionConfig's defaults.
    path = convert(write_tower(tmp_path / "gelu", tower, GELU)).path
    assert value(path, "clip.use_gelu") is True
    default = Clip(Text(512, 2048, 1, 8, vocab_size=50), Vision(768, 3072, 1, 12), 512)
    full = write_tower(tmp_path / "a" / "m", tower, default, projection=True)
    short = write_tower(tmp_path / "b" / "m", tower, default, projection=True, style="4")
    assert len((short / "config.json").read_text()) < len((full / "config.json").read_text())
    assert convert(short).path.read_bytes() == convert(full).path.read_bytes()


def test_projection_dim_is_the_tensors(tmp_path: Path) -> None:
    model = write_tower(tmp_path / "m", "vision", projection=True)
    edit_json(model / "config.json", lambda config: config.update(projection_dim=512))
    result = convert(model)
    assert value(result.path, "clip.vision.projection_dim") == 24
    (warning,) = result.warnings
    assert "projection_dim is 512" in warning
    assert "24 is written" in warning


@pytest.mark.parametrize("tower", ["text", "vision"])
def test_heads_divide_the_width(tower: str, tmp_path: Path) -> None:
    model = write_tower(tmp_path / "m", tower)
    edit_json(model / "config.json", lambda config: config.update(num_attention_heads=5))
    problem = refused(model)
    assert "config.json" in problem
    assert "num_attention_heads 5" in problem


@pytest.mark.parametrize(("tower", "other"), [("text", "vision"), ("vision", "text")])
@pytest.mark.parametrize("projection", [False, True])
def test_the_tower_that_is_not_there(tower: str, other: str, projection: bool, tmp_path: Path, run: Run) -> None:
    model = write_tower(tmp_path / "m", tower, projection=projection)
    problem = refused(model, **only(other))
    assert f"--{other}-only" in problem
    assert tower in problem.replace(f"--{other}-only", "").replace(str(model), "")
    result = run(model, f"--{other}-only")
    assert (result.returncode, result.stdout) == (1, "")
    assert f"{tower}" in result.stderr


def test_a_siglip_tower_has_no_text(tmp_path: Path) -> None:
    assert "--text-only" in refused(write_siglip_tower(tmp_path / "m"), text_only=True)


def test_pipeline(tmp_path: Path) -> None:
    whole = tensors(convert(write_clip(tmp_path / "hf"), options=Options(text_only=True)).path)
    for vocabulary in ("vocab.json", "tokenizer.json"):
        sdxl = write_pipeline(tmp_path / vocabulary, vocabulary=vocabulary, dtype="F32")
        one, two = convert(sdxl / "text_encoder").path, convert(sdxl / "text_encoder_2").path
        assert tensors(two) == whole
        assert tensors(one) == {name: t for name, t in whole.items() if name != "text_projection.weight"}
        assert value(one, "tokenizer.ggml.tokens") == tokens(99, "one")
        assert value(two, "tokenizer.ggml.tokens") == tokens(99, "two")
        result = convert(sdxl / "image_encoder")
        assert result.path.name == "vision-model-f16.gguf"
        assert result.warnings == ()
        assert any("image_mean" in note for note in result.notes)
        assert value(result.path, "clip.vision.image_mean") == pytest.approx([0.48145466, 0.4578275, 0.40821073])


def test_pipeline_from_inside(tmp_path: Path, run: Run) -> None:
    sdxl = write_pipeline(tmp_path / "sdxl")
    result = run(".", "-o", "x.gguf", cwd=sdxl / "text_encoder_2")
    assert result.returncode == 0, result.stderr
    path = sdxl / "text_encoder_2" / "x.gguf"
    assert value(path, "tokenizer.ggml.tokens") == tokens(99, "two")


@pytest.mark.parametrize("tower", ["text", "vision"])
def test_single_tower_with_the_config_of_the_whole(tower: str, tmp_path: Path) -> None:
    # As sd-image-variations has its image encoder: the class tells which tower it is.
    whole = convert(write_clip(tmp_path / "a" / "tiny"), options=Options(**only(tower))).path
    model = write_tower(tmp_path / "b" / "tiny", tower, projection=True)
    write_json(
        model / "config.json",
        {**TINY.config_json(), "architectures": [f"CLIP{tower.title()}ModelWithProjection"]},
    )
    assert convert(model).path.read_bytes() == whole.read_bytes()


def test_stable_diffusion_2(tmp_path: Path) -> None:
    # Its projection_dim of 512 is nothing but a default, which is there without any projection.
    model = write_tower(tmp_path / "text_encoder", "text", GELU, dtype="F16")
    assert json.loads((model / "config.json").read_text())["projection_dim"] == 512
    result = convert(model)
    assert result.warnings == ()
    assert value(result.path, "clip.text.projection_dim") == 512
