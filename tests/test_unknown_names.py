"""Tensors that nobody knows are told, wherever they stand; what is known beside a tower is left out."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from clipgguf import CheckpointError, Options, convert, plan
from tests.checkpoints import TINY
from tests.clip_checkpoints import write_clip, write_tower
from tests.gguf_reading import value
from tests.llava_checkpoints import (
    ORIGINAL_TOWER,
    Llava,
    write_hf,
    write_original,
    write_projector,
    write_vision_config,
)
from tests.open_clip_checkpoints import write_open_clip
from tests.siglip_checkpoints import write_siglip, write_siglip_tower
from tests.weights import Array, write_file

ODD = np.ones(4, np.float32)
TEXT, VISION = {"text_only": True}, {"vision_only": True}
LLAVA = Llava()
WIDTH = LLAVA.vision.hidden_size


def with_tensors(model: Path, **tensors: Array) -> Path:
    """Add tensors to a model's only file."""
    (file,) = model.glob("*.safetensors")
    write_file(file, {**load_file(file), **tensors})
    return model


def assert_unknown(model: Path, name: str, file: Path | None = None, **options: Any) -> None:
    """Make sure that a tensor is refused by its name, and left out with a warning where that is asked for."""
    (file,) = (file or model).glob("*.safetensors")
    words = f"{file}: tensor {name!r} is unknown, "
    with pytest.raises(CheckpointError, match=re.escape(words)) as caught:
        plan(model, Options(**options))
    assert len(caught.value.problems) == 1
    warnings = plan(model, Options(ignore_unknown=True, **options)).warnings
    assert [line.startswith(words) for line in warnings] == [True]


CLIPS: dict[str, tuple[Callable[..., Path], list[tuple[dict[str, Any], list[str]]]]] = {
    "clip": (
        write_clip,
        [
            ({}, ["foo.embeddings.position_ids", "embeddings.position_ids", "text_projection.bias"]),
            (TEXT, ["visual_projection.bias", "foo.vision_model.x", "foo.embeddings.position_ids"]),
            (VISION, ["text_projectionX", "text.text_projection", "text_projection.bias", "foo.text_model.x"]),
        ],
    ),
    "open_clip": (
        write_open_clip,
        [
            (TEXT, ["visual.foo", "visual.projector", "visual.ln_post.x", "foo"]),
            (VISION, ["foo", "text.foo", "transformer.foo", "logit_bias", "logit_scale_x", "token_embedding.weights"]),
        ],
    ),
    "siglip": (
        lambda d, extra: with_tensors(write_siglip(d), **extra),
        [(VISION, ["x.vision_model.head.y", "head.y", "foo.text_model.x"])],
    ),
    "a tower": (
        lambda d, **o: write_tower(d, "vision", prefix="", **o),
        [({}, ["text_model.x", "text_projection.weight"])],
    ),
    "a siglip tower": (
        lambda d, **o: write_siglip_tower(d, prefix=False, **o),
        [({}, ["vision_model.head.y", "text_model.x"])],
    ),
}


@pytest.mark.parametrize("kind", CLIPS)
def test_tensors_that_no_tower_has(kind: str, tmp_path: Path) -> None:
    write, cases = CLIPS[kind]
    number = 0
    for options, names in cases:
        for name in names:
            number += 1
            assert_unknown(write(tmp_path / f"{number}", extra={name: ODD}), name, **options)


def test_what_is_left_out_of_siglip_is_counted_right(tmp_path: Path) -> None:
    expected = plan(write_siglip_tower(tmp_path / "a")).notes
    assert any("vision_model.head.* is left out (11 tensors)" in note for note in expected)
    model = write_siglip_tower(tmp_path / "b", extra={"x.vision_model.head.y": ODD})
    assert plan(model, Options(ignore_unknown=True)).notes == expected


def test_a_towers_own_prefix_is_left_out_with_it(tmp_path: Path) -> None:
    # The text tower's names begin with something else; they are its own all the same.
    model = write_clip(tmp_path / "m" / "m")
    expected = convert(model, tmp_path / "a.gguf", options=Options(vision_only=True)).path.read_bytes()
    tensors = load_file(model / "model.safetensors")
    renamed = {re.sub("^text_model", "x.text", name): array for name, array in tensors.items()}
    write_file(model / "model.safetensors", {**renamed, "x.text.embeddings.position_ids": ODD})
    made = convert(model, tmp_path / "b.gguf", options=Options(vision_only=True))
    assert made.path.read_bytes() == expected


def test_a_timm_tower_beside_the_text_tower(tmp_path: Path) -> None:
    model = write_open_clip(tmp_path / "m", extra={"visual.trunk.x": ODD})
    with pytest.raises(CheckpointError, match=r"'visual\.trunk\.x' is of a timm tower"):
        plan(model, Options(text_only=True))


INSIDE: dict[str, tuple[Callable[[Path], Path], str, str]] = {
    "4": (lambda d: write_hf(d, LLAVA), "vision_tower.", "vision_model."),
    "4.52": (lambda d: write_hf(d, LLAVA, spelling="4.52"), "model.vision_tower.", "vision_model."),
    "5": (lambda d: write_hf(d, LLAVA, spelling="5"), "vision_tower.", ""),
    "original": (
        lambda d: write_original(d, LLAVA, tower="inside"),
        ORIGINAL_TOWER.removesuffix("vision_model."),
        "vision_model.",
    ),
}


def inside(kind: str, directory: Path) -> tuple[Path, dict[str, Any]]:
    """Write a checkpoint with a tower inside, and return it with the options that it needs."""
    config = write_vision_config(directory.with_suffix(".json"), LLAVA)
    return INSIDE[kind][0](directory), {"vision_config": config} if kind == "original" else {}


@pytest.mark.parametrize("kind", [kind for kind in INSIDE if kind != "5"])
def test_what_clip_left_beside_a_tower_inside(kind: str, tmp_path: Path) -> None:
    root = INSIDE[kind][1]
    model, options = inside(kind, tmp_path / "m")
    expected = convert(model, tmp_path / "a.gguf", options=Options(**options)).path.read_bytes()
    beside: dict[str, Array] = {
        f"{root}visual_projection.weight": np.ones((24, WIDTH), np.float32),
        f"{root}text_projection.weight": np.ones((24, 32), np.float32),
        f"{root}logit_scale": np.ones((), np.float32),
        f"{root}text_model.final_layer_norm.weight": ODD,
        f"{root}encoder.layers.0.layer_norm1.weight": ODD,
        f"{root}vision_model.embeddings.position_ids": np.arange(4)[None],
    }
    made = convert(with_tensors(model, **beside), tmp_path / "b.gguf", options=Options(**options))
    assert made.warnings == ()
    assert made.path.read_bytes() == expected


@pytest.mark.parametrize("kind", INSIDE)
def test_what_nobody_knows_beside_a_tower_inside(kind: str, tmp_path: Path) -> None:
    _, root, tower = INSIDE[kind]
    names = [
        *("text_model.x", "x.text_model.y", "logit_scale", "logit_bias", "text_projection.weight", "foo"),
        *("visual_projection.weight", "embeddings.position_ids", "post_layernorm.weight"),
        *(f"{root}{tower}{name}" for name in ("encoder.layers.0.post_layernorm.weight", "post_layernorm.x", "foo")),
    ]
    for number, name in enumerate(names):
        model, options = inside(kind, tmp_path / f"{number}")
        assert_unknown(with_tensors(model, **{name: ODD}), name, **options)


def test_what_nobody_knows_in_the_directory_of_a_tower(tmp_path: Path) -> None:
    model = write_original(tmp_path / "m", LLAVA)
    write_tower(tmp_path / "good", "vision", LLAVA.clip)
    assert plan(model, Options(vision_tower=tmp_path / "good")).warnings == ()
    names = ("image_newline", "multi_modal_projector.linear_1.weight", "x.text_model.y", "foo", "text_projection.bias")
    for number, name in enumerate(names):
        tower = write_tower(tmp_path / f"{number}", "vision", LLAVA.clip, extra={name: ODD})
        assert_unknown(model, name, tower, vision_tower=tower)


def test_a_clip_model_as_a_tower(tmp_path: Path) -> None:
    model = write_original(tmp_path / "m", LLAVA)
    tower = write_clip(tmp_path / "clip", LLAVA.clip, extra={"logit_bias": ODD})
    assert plan(model, Options(vision_tower=tower)).warnings == ()
    projector = write_projector(tmp_path / "p.bin", LLAVA)
    assert plan(tower, Options(llava_projector=projector)).warnings == ()


def test_a_projection_of_another_checkpoint(tmp_path: Path) -> None:
    # It is LLaVA's, the tower is from elsewhere and has none: whose rows those are, nobody knows.
    projection = np.ones((TINY.projection_dim + 8, WIDTH), np.float32)
    model = with_tensors(write_original(tmp_path / "m", LLAVA), **{"visual_projection.weight": projection})
    tower = write_tower(tmp_path / "vt", "vision", LLAVA.clip)
    assert_unknown(model, "visual_projection.weight", vision_tower=tower)
    options = Options(vision_tower=tower, ignore_unknown=True)
    expected = convert(
        write_original(tmp_path / "good", LLAVA), tmp_path / "a.gguf", options=Options(vision_tower=tower)
    )
    made = convert(model, tmp_path / "b.gguf", options=options).path
    key = "clip.vision.projection_dim"
    assert value(made, key) == value(expected.path, key)


def test_two_towers_in_one_llava(tmp_path: Path) -> None:
    model = write_hf(tmp_path / "m", LLAVA)
    patches = load_file(model / "model.safetensors")["vision_tower.vision_model.embeddings.patch_embedding.weight"]
    with_tensors(model, **{"vision_tower.x.embeddings.patch_embedding.weight": patches})
    with pytest.raises(CheckpointError, match=r"after 2 prefixes, .*; supported is one"):
        plan(model)


@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
def test_two_tensors_of_a_projector_under_one_name(suffix: str, tmp_path: Path) -> None:
    tensors = {name: np.ones(shape, np.float32) for name, shape in LLAVA.projector_shapes().items()}
    first = next(iter(tensors))
    projector = write_file(tmp_path / f"dup{suffix}", {**tensors, f"x.{first}": tensors[first]})
    words = f"dup{suffix}: tensors {first!r} and 'x.{first}' are both '0.weight' of a projector"
    with pytest.raises(CheckpointError, match=re.escape(words)) as caught:
        plan(write_clip(tmp_path / "m", LLAVA.clip), Options(llava_projector=projector))
    assert len(caught.value.problems) == 1
