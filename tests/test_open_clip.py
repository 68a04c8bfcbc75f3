"""OpenCLIP's config: its defaults, what it says of the model, and what readers would compute wrongly."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clipgguf import convert
from tests.checkpoints import Clip, Text, Vision
from tests.clip_checkpoints import (
    write_clip,
)
from tests.gguf_reading import value
from tests.json_files import change, edit_json
from tests.open_clip_checkpoints import write_open_clip, write_open_clip_timm
from tests.refusals import refused

# ---- OpenCLIP's config -----------------------------------------------------------------------------------------------


def test_open_clip_defaults(tmp_path: Path) -> None:
    # CLIPVisionCfg's and CLIPTextCfg's, which are other than transformers'.
    clip = Clip(Text(512, 2048, 1, 8, vocab_size=50), Vision(768, 3072, 1, 12, patch_size=16), 512, "gelu")
    expected = convert(write_clip(tmp_path / "hf" / "m", clip)).path
    model = write_open_clip(tmp_path / "oc" / "m", clip)
    small = {"vision_cfg": {"layers": 1}, "text_cfg": {"layers": 1, "vocab_size": 50}}
    edit_json(model / "open_clip_config.json", lambda config: config["model_cfg"].update(small))
    assert convert(model).path.read_bytes() == expected.read_bytes()


def test_open_clip_head_width_and_ratio(tmp_path: Path) -> None:
    # bigG's mlp_ratio is no exact quotient, its heads are 104 wide.
    clip = Clip(Text(32, 64, 1, 2, 50, 5), Vision(208, 1024, 1, 2, 28, 14), 24, "gelu")
    expected = convert(write_clip(tmp_path / "hf" / "m", clip)).path
    model = write_open_clip(tmp_path / "oc" / "m", clip)
    edit_json(
        model / "open_clip_config.json", lambda config: config["model_cfg"]["vision_cfg"].update(mlp_ratio=4.9231)
    )
    path = convert(model).path
    assert path.read_bytes() == expected.read_bytes()
    assert value(path, "clip.vision.attention.head_count") == 2


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (change("model_cfg", "vision_cfg", head_width=7), ["vision_cfg", "head_width", "7", "48"]),
        (change("model_cfg", "text_cfg", heads=5), ["text_cfg", "5", "32"]),
        (change("model_cfg", "vision_cfg", width="wide"), ["vision_cfg", "'wide'"]),
        (change("model_cfg", "vision_cfg", timm_model_name="vit_base_patch16_siglip_224"), ["timm", "siglip_224"]),
        (change("model_cfg", "text_cfg", hf_model_name="xlm-roberta-base"), ["text_cfg", "xlm-roberta-base"]),
        (change("model_cfg", vision_cfg=None), ["vision_cfg"]),
        (lambda config: config.pop("model_cfg"), ["model_cfg"]),
    ],
    ids=["head_width", "heads", "width", "timm", "Hugging Face tower", "no vision_cfg", "no model_cfg"],
)
def test_open_clip_config_that_is_wrong(edit: Callable[[Any], object], words: list[str], tmp_path: Path) -> None:
    model = write_open_clip(tmp_path / "m")
    edit_json(model / "open_clip_config.json", edit)
    problem = refused(model)
    assert "open_clip_config.json" in problem
    assert all(word in problem for word in words), problem


@pytest.mark.parametrize(
    ("part", "values"),
    [
        # What OpenCLIP computes otherwise than transformers' CLIP, and no tensor tells. CLIPA has all three.
        ("vision_cfg", {"pool_type": "avg"}),
        ("text_cfg", {"pool_type": "last"}),
        ("text_cfg", {"no_causal_mask": True}),
    ],
    ids=lambda x: "+".join(x) if isinstance(x, dict) else x,
)
def test_open_clip_that_readers_would_compute_wrongly(part: str, values: dict[str, Any], tmp_path: Path) -> None:
    model = write_open_clip(tmp_path / "m")
    edit_json(model / "open_clip_config.json", change("model_cfg", part, **values))
    problem = refused(model)
    assert next(iter(values)) in problem


def test_open_clip_norm_epsilon(tmp_path: Path) -> None:
    model = write_open_clip(tmp_path / "m")
    edit_json(model / "open_clip_config.json", change("model_cfg", "vision_cfg", norm_kwargs={"eps": 1e-6}))
    path = convert(model).path
    assert value(path, "clip.vision.attention.layer_norm_epsilon") == pytest.approx(1e-6)
    assert value(path, "clip.text.attention.layer_norm_epsilon") == pytest.approx(1e-5)


def test_open_clip_without_its_config(tmp_path: Path) -> None:
    for suffix in (".safetensors", ".bin"):
        model = write_open_clip(tmp_path / suffix, suffix=suffix)
        (model / "open_clip_config.json").unlink()
        problem = refused(model)
        assert "open_clip_config.json" in problem
        assert "activation" in problem


def test_open_clips_names_in_a_file_of_another_name(tmp_path: Path) -> None:
    # As open_clip_config.json stands alone, the weights are OpenCLIP's whatever their file is called.
    model = write_open_clip(tmp_path / "a" / "m", suffix=".bin")
    expected = convert(model).path.read_bytes()
    write_open_clip(tmp_path / "b" / "m", suffix=".bin")
    weights = tmp_path / "b" / "m" / "open_clip_pytorch_model.bin"
    assert convert(weights.rename(weights.with_name("pytorch_model.bin")).parent).path.read_bytes() == expected
    assert convert(weights.with_name("pytorch_model.bin")).path.read_bytes() == expected


def test_timm_tower(tmp_path: Path) -> None:
    model = write_open_clip_timm(tmp_path / "m")
    problem = refused(model)
    assert "timm" in problem
    # By the tensors, too, where the config does not tell.
    write_open_clip(tmp_path / "n")
    (tmp_path / "n" / "open_clip_config.json").replace(model / "open_clip_config.json")
    problem = refused(model)
    assert "timm" in problem
    assert "'visual.trunk." in problem
