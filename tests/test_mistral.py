"""Mistral's own layout: which files are taken, beside transformers' or alone, and where its token's id is from."""

import shutil
from pathlib import Path

import pytest

from clipgguf import ConfigError, convert, plan
from clipgguf.errors import CheckpointError
from tests.family_fixtures import fixtures
from tests.json_files import edit_json

FAMILIES = {family.name: family for family in fixtures()}
OWN, OTHER = FAMILIES["mistral"], FAMILIES["pixtral--mistral3"]


def converted(model: Path, directory: Path) -> bytes:
    return convert(model, directory / "x.gguf").path.read_bytes()


@pytest.fixture
def both(tmp_path: Path) -> Path:
    """A repository with both layouts."""
    model = OWN.write(tmp_path / "own" / "m")
    shutil.copytree(OTHER.write(tmp_path / "other" / "m"), tmp_path / "m")
    shutil.copytree(model, tmp_path / "m", dirs_exist_ok=True)
    return tmp_path / "m"


def test_of_both_layouts_transformers_is_taken(both: Path, tmp_path: Path) -> None:
    assert converted(both, tmp_path) == converted(tmp_path / "other" / "m", tmp_path)
    found = plan(both).found
    assert "consolidated.safetensors beside it not read" in found


def test_a_file_that_is_given_decides(both: Path, tmp_path: Path) -> None:
    assert converted(both / "consolidated.safetensors", tmp_path) == converted(tmp_path / "own" / "m", tmp_path)
    assert converted(both / "model.safetensors", tmp_path) == converted(tmp_path / "other" / "m", tmp_path)


def test_weights_without_those_of_transformers(both: Path, tmp_path: Path) -> None:
    (both / "model.safetensors").unlink()
    assert converted(both, tmp_path) == converted(tmp_path / "own" / "m", tmp_path)


@pytest.mark.parametrize("shards", [1, 3])
def test_shards(shards: int, tmp_path: Path) -> None:
    expected = converted(OWN.write(tmp_path / "whole" / "m"), tmp_path)
    assert converted(OWN.write(tmp_path / "shards" / "m", shards=shards), tmp_path) == expected


def test_the_id_of_the_token(tmp_path: Path) -> None:
    model = OWN.write(tmp_path / "m")
    from_tokenizer = converted(model, tmp_path)
    edit_json(model / "params.json", lambda params: params["vision_encoder"].update(image_break_token_id=12))
    (model / "tekken.json").unlink()
    assert converted(model, tmp_path) == from_tokenizer
    edit_json(model / "params.json", lambda params: params["vision_encoder"].pop("image_break_token_id"))
    with pytest.raises(ConfigError, match=r"image_break_token_id is missing, and .*no file has the token"):
        plan(model)
    edit_json(model / "params.json", lambda params: params["vision_encoder"].update(image_break_token_id=512))
    with pytest.raises(CheckpointError, match=r"'tok_embeddings.weight' has 512 rows, row 512 is asked for"):
        plan(model)


def test_a_language_model_alone(tmp_path: Path) -> None:
    model = OWN.write(tmp_path / "m")
    edit_json(model / "params.json", lambda params: params.pop("vision_encoder"))
    with pytest.raises(ConfigError, match=r"params\.json: vision_encoder: image_size is missing"):
        plan(model)
