"""Which blocks of LLaVA's tower a file has, and which layer's features the projector takes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from clipgguf import Options, convert
from tests.clip_checkpoints import write_clip
from tests.gguf_reading import tensors, value
from tests.llava_checkpoints import Llava, write_hf, write_original, write_vision_config
from tests.mmproj_files import the_scripts_way, with_config

LLAVA = Llava()


@pytest.mark.parametrize(("layer", "run"), [(-1, 4), (-2, 3), (-3, 2), (-4, 1), (4, 4), (1, 1), ([-2], 3)])
@pytest.mark.parametrize("where", ["config", "option"])
def test_feature_layer(layer: Any, run: int, where: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {}
    if where == "option" and isinstance(layer, int):
        options = {"feature_layer": layer}
        model = write_hf(tmp_path / "hf", LLAVA)
    else:
        model = write_hf(tmp_path / "hf", replace(LLAVA, feature_layer=layer))
    path = convert(model, tmp_path / "out", options=Options(**options)).path
    assert value(path, "clip.vision.feature_layer") == [run]
    assert value(path, "clip.vision.block_count") == run
    assert sum(name.endswith(".ln1.bias") for name in tensors(path)) == run


def test_original_config_says_the_layer(tmp_path: Path) -> None:
    model = write_original(tmp_path / "o", replace(LLAVA, feature_layer=-3), tower="folder")
    assert value(convert(model, tmp_path / "out").path, "clip.vision.feature_layer") == [2]
    # The projector's checkpoint says it for a tower that knows nothing of LLaVA.
    clip = write_clip(tmp_path / "clip", LLAVA.clip)
    path = convert(clip, tmp_path / "out", options=Options(llava_projector=model)).path
    assert value(path, "clip.vision.feature_layer") == [2]


@pytest.mark.parametrize("tower", ["openai/clip-vit-large-patch14-336", "me/vit"])
def test_original_config_that_has_the_towers_own_inside(tower: str, tmp_path: Path) -> None:
    expected = convert(
        write_original(tmp_path / "a" / "m", LLAVA, tower="inside"),
        options=Options(vision_config=write_vision_config(tmp_path / "vision.json", LLAVA)),
    ).path
    inside = with_config(LLAVA, vision_config=LLAVA.vision_config())
    path = convert(write_original(tmp_path / "b" / "m", inside, tower="inside", vision_tower=tower)).path
    assert path.read_bytes() == expected.read_bytes()


def test_keep_last_layer(tmp_path: Path) -> None:
    path = the_scripts_way(tmp_path, LLAVA, keep_last_layer=True)
    assert value(path, "clip.vision.block_count") == 4
    assert value(path, "clip.vision.feature_layer") == [3]
    assert "v.blk.3.ln2.bias" in list(tensors(path))
    path = the_scripts_way(tmp_path, LLAVA, keep_last_layer=True, feature_layer=-3)
    assert (value(path, "clip.vision.block_count"), value(path, "clip.vision.feature_layer")) == (3, [2])
    assert "v.blk.3.ln2.bias" not in list(tensors(path))


def test_no_layer_to_keep_after_the_last(tmp_path: Path) -> None:
    model = write_hf(tmp_path / "m", LLAVA)
    kept = convert(model, tmp_path / "kept.gguf", options=Options(keep_last_layer=True, feature_layer=-1))
    assert kept.warnings == (
        "--keep-last-layer changes nothing: the projector takes the features of layer 4, the tower's last; readers "
        "that leave out the last block of a file cannot run it",
    )
    plain = convert(model, tmp_path / "plain.gguf", options=Options(feature_layer=-1))
    assert plain.warnings == ()
    assert kept.path.read_bytes() == plain.path.read_bytes()
