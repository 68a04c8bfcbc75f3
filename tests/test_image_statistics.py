"""image_mean and image_std: from the image processor's file, OpenCLIP's config, an option, or by default."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clipgguf import Options, convert, plan
from tests.clip_checkpoints import (
    write_clip,
    write_processor,
    write_tower,
)
from tests.gguf_reading import value
from tests.json_files import edit_json
from tests.open_clip_checkpoints import write_open_clip
from tests.refusals import refused

# ---- image statistics ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["preprocessor_config.json", "processor_config.json"])
@pytest.mark.parametrize("write", [write_clip, lambda d, **o: write_tower(d, "vision", **o)], ids=["both", "tower"])
def test_image_statistics_from_files(kind: str, write: Callable[..., Path], tmp_path: Path) -> None:
    model = write(tmp_path / "m", processor=None)
    assert any("image_mean" in note for note in convert(model).notes)
    write_processor(model, kind, image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6])
    result = convert(model)
    assert value(result.path, "clip.vision.image_mean") == pytest.approx([0.1, 0.2, 0.3])
    assert value(result.path, "clip.vision.image_std") == pytest.approx([0.4, 0.5, 0.6])
    assert result.notes == ()
    path = convert(model, options=Options(image_mean=(0.7, 0.8, 0.9))).path
    assert value(path, "clip.vision.image_mean") == pytest.approx([0.7, 0.8, 0.9])
    assert value(path, "clip.vision.image_std") == pytest.approx([0.4, 0.5, 0.6])


@pytest.mark.parametrize(
    ("options", "missing"),
    [
        ({}, "image_mean and image_std; the family's own are"),
        ({"image_mean": (1, 2, 3)}, "image_std; the family's own is"),
        ({"image_std": (1, 2, 3)}, "image_mean; the family's own is"),
    ],
    ids=str,
)
def test_the_note_names_what_no_file_gives(options: dict[str, Any], missing: str, tmp_path: Path) -> None:
    model = write_tower(tmp_path / "m", "vision", processor=None)
    assert plan(model, Options(**options)).notes == (f"no image processor's file gives {missing} written",)


def test_image_statistics_of_open_clip(tmp_path: Path) -> None:
    model = write_open_clip(tmp_path / "m")
    inception = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.5, 0.75]}
    edit_json(model / "open_clip_config.json", lambda config: config["preprocess_cfg"].update(inception))
    result = convert(model)
    assert value(result.path, "clip.vision.image_mean") == pytest.approx([0.5, 0.5, 0.5])
    assert value(result.path, "clip.vision.image_std") == pytest.approx([0.25, 0.5, 0.75])
    assert result.notes == ()
    path = convert(model, options=Options(image_std=(0.1, 0.2, 0.3))).path
    assert value(path, "clip.vision.image_std") == pytest.approx([0.1, 0.2, 0.3])
    edit_json(model / "open_clip_config.json", lambda config: config.pop("preprocess_cfg"))
    result = convert(model)
    assert value(result.path, "clip.vision.image_mean") == pytest.approx([0.48145466, 0.4578275, 0.40821073])
    assert any("image_mean" in note for note in result.notes)


def test_image_statistics_that_are_none(tmp_path: Path) -> None:
    model = write_open_clip(tmp_path / "m")
    edit_json(model / "open_clip_config.json", lambda config: config["preprocess_cfg"].update(mean=[0.5, "x"]))
    problem = refused(model)
    assert "open_clip_config.json" in problem
    assert "mean" in problem
