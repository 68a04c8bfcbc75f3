"""LLaVA: whatever the layout and the projector, the same tensors come out."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType

from clipgguf import Options, convert
from clipgguf.options import Outtype, ProjectorType
from tests.clip_checkpoints import write_clip, write_tower
from tests.conftest import Run
from tests.gguf_reading import read, tensors, value
from tests.json_files import edit_json
from tests.llava_checkpoints import (
    SPELLINGS,
    VISION_24,
    Llava,
    write_hf,
    write_original,
    write_projector,
    write_vision_config,
)
from tests.mmproj_files import the_scripts_way
from tests.weights import tensor_values, write_file

LLAVA = Llava()
NEXT = Llava(has_newline=True)


def test_mmproj_of_a_clip_directory_and_a_projector(tmp_path: Path) -> None:
    path = the_scripts_way(tmp_path, LLAVA)
    assert path.name == "mmproj-model-f16.gguf"
    names = list(tensors(path))
    assert names[:5] == ["mm.0.weight", "mm.0.bias", "mm.2.weight", "mm.2.bias", "v.class_embd"]
    assert names[-1] == "v.blk.2.ln2.bias"
    assert len(names) == 4 + 5 + 3 * 16
    metadata = read(path).metadata
    assert list(metadata)[-3:] == ["clip.use_gelu", "clip.projector_type", "clip.vision.feature_layer"]
    assert metadata["clip.has_llava_projector"] is True
    assert metadata["general.description"] == "image encoder for LLaVA"
    assert metadata["clip.vision.block_count"] == 3
    assert metadata["clip.vision.feature_layer"] == [3]
    mm0 = read(path).tensors["mm.0.weight"]
    expected = tensor_values("model.mm_projector.0.weight", (32, 48)).astype(np.float16)
    np.testing.assert_array_equal(mm0.data, expected)


LAYOUTS: dict[str, Callable[[Path], tuple[Path, dict[str, Any]]]] = {
    **{
        f"transformers {spelling}": lambda d, s=spelling: (write_hf(d / "hf", LLAVA, spelling=s), {})  # type: ignore[misc]
        for spelling in SPELLINGS
    },
    "transformers, 3 shards": lambda d: (write_hf(d / "hf", LLAVA, shards=3), {}),
    "original, tower inside": lambda d: (
        write_original(d / "o", LLAVA, tower="inside", shards=2),
        {"vision_config": write_vision_config(d / "vit.json", LLAVA)},
    ),
    "original, tower in a folder": lambda d: (write_original(d / "o", LLAVA, tower="folder"), {}),
    "original, tower elsewhere": lambda d: (
        write_original(d / "o", LLAVA),
        {"vision_tower": write_clip(d / "clip", LLAVA.clip)},
    ),
    "original in .bin shards, tower alone in .bin": lambda d: (
        write_original(d / "o", LLAVA, suffix=".bin", shards=2),
        {"vision_tower": write_tower(d / "vit", "vision", LLAVA.clip, suffix=".bin")},
    ),
    "tower alone without prefix, projector in safetensors": lambda d: (
        write_tower(d / "vit", "vision", LLAVA.clip, prefix=""),
        {"llava_projector": write_projector(d / "p.safetensors", LLAVA)},
    ),
    "clip, projector of a whole checkpoint": lambda d: (
        write_clip(d / "clip", LLAVA.clip, shards=2),
        {"llava_projector": write_original(d / "o", LLAVA, suffix=".bin")},
    ),
    "clip, projector of transformers'": lambda d: (
        write_clip(d / "clip", LLAVA.clip),
        {"llava_projector": write_hf(d / "hf", LLAVA)},
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("outtype", ["f16", "f32"])
def test_every_layout_gives_the_same_tensors(layout: str, outtype: Outtype, tmp_path: Path) -> None:
    model, options = LAYOUTS[layout](tmp_path)
    path = convert(model, tmp_path / "result", options=Options(outtype=outtype, **options)).path
    assert path.name == f"mmproj-model-{outtype}.gguf"
    expected = the_scripts_way(tmp_path / "script", LLAVA, outtype=outtype)
    assert list(tensors(path).items()) == list(tensors(expected).items())
    assert (value(path, "clip.projector_type"), value(path, "clip.vision.feature_layer")) == ("mlp", [3])


def test_the_language_model_is_never_opened(tmp_path: Path) -> None:
    # Of 40 shards only those with the tower and the projector have to be there at all.
    model = write_hf(tmp_path / "hf", LLAVA, shards=40)
    weight_map = json.loads((model / "model.safetensors.index.json").read_text())["weight_map"]
    needed = {file for name, file in weight_map.items() if not name.startswith("language_model.")}
    removed = set(weight_map.values()) - needed

    def only_language_model(index: dict[str, Any]) -> None:
        for number, name in enumerate(n for n in weight_map if n.startswith("language_model.")):
            index["weight_map"][name] = f"language-{number}.safetensors"

    edit_json(model / "model.safetensors.index.json", only_language_model)
    for file in removed:
        (model / file).unlink()
    found, expected = convert(model, tmp_path / "out").path, the_scripts_way(tmp_path, LLAVA)
    assert list(tensors(found).items()) == list(tensors(expected).items())


def test_projector_in_a_torch_file_keeps_its_order(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip", LLAVA.clip)
    shapes = dict(reversed(LLAVA.projector_shapes().items()))
    backwards = {name: tensor_values(name, shape) for name, shape in shapes.items()}
    for file, expected in (
        ("x.bin", ["mm.2.bias", "mm.2.weight", "mm.0.bias", "mm.0.weight"]),
        ("x.safetensors", ["mm.0.weight", "mm.0.bias", "mm.2.weight", "mm.2.bias"]),
    ):
        write_file(tmp_path / file, backwards)
        path = convert(clip, tmp_path / "out", options=Options(llava_projector=tmp_path / file)).path
        assert list(tensors(path))[:4] == expected


def test_llava_next_metadata_and_newline(tmp_path: Path) -> None:
    pinpoints = [28, 56, 56, 28, 56, 56, 84, 28, 28, 84]
    original = write_original(tmp_path / "o", NEXT, tower="folder")
    for model in (original, write_hf(tmp_path / "hf", NEXT)):
        found = read(convert(model, tmp_path / "out").path)
        assert list(found.metadata)[-2:] == ["clip.vision.image_grid_pinpoints", "clip.vision.mm_patch_merge_type"]
        assert found.metadata["clip.vision.image_grid_pinpoints"] == pinpoints
        assert found.metadata["clip.vision.mm_patch_merge_type"] == "spatial_unpad"
        name, newline = list(found.tensors.items())[4]
        assert (name, newline.tensor_type) == ("model.image_newline", GGMLQuantizationType.F32)
        np.testing.assert_array_equal(newline.data, tensor_values("model.image_newline", (32,)))


def test_pinpoints_that_a_config_omits(tmp_path: Path) -> None:
    vision = replace(NEXT.vision, image_size=336, patch_size=112)
    model = write_hf(tmp_path / "hf", replace(NEXT, vision=vision, config={"image_grid_pinpoints": None}))
    path = convert(model, tmp_path / "out").path
    assert value(path, "clip.vision.image_grid_pinpoints") == [672, 336, 336, 672, 672, 672, 336, 1008, 1008, 336]


@pytest.mark.parametrize(
    ("pinpoints", "words"),
    [([[30, 28]], "no multiples of 28"), ("(1x1),(6x6)", "pairs of pixels"), ([[28, 28, 28]], "pairs of pixels")],
)
def test_pinpoints_that_no_reader_takes_are_left_out(pinpoints: Any, words: str, tmp_path: Path) -> None:
    model = write_hf(tmp_path / "hf", replace(NEXT, config={"image_grid_pinpoints": pinpoints}))
    result = convert(model, tmp_path / "out")
    assert value(result.path, "clip.vision.image_grid_pinpoints") is None
    assert [words in warning for warning in result.warnings] == [True]


@pytest.mark.parametrize(
    ("kind", "projector_type", "expected"),
    [
        ("mlp_norm", "mlp", ["mm.0.weight", "mm.0.bias", "mm.1.weight", "mm.1.bias", "mm.3.weight", "mm.3.bias",
                             "mm.4.weight", "mm.4.bias"]),
        ("ldpv2", "ldpv2", ["mm.model.mlp.0.weight", "mm.model.mlp.0.bias", "mm.model.mlp.2.weight",
                            "mm.model.mlp.2.bias", "mm.model.peg.0.weight", "mm.model.peg.0.bias"]),
        ("ldp", "ldp", None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("outtype", ["f16", "f32"])
def test_projector_kinds(
    kind: str, projector_type: ProjectorType, expected: list[str] | None, outtype: Outtype, tmp_path: Path
) -> None:
    llava = Llava(vision=VISION_24, projector=kind)
    model = write_original(tmp_path / "o", llava)
    tower = write_clip(tmp_path / "clip", llava.clip)
    path = convert(model, tmp_path / "out", options=Options(vision_tower=tower, outtype=outtype)).path
    assert value(path, "clip.projector_type") == projector_type
    projector = {name: t for name, t in read(path).tensors.items() if name.startswith("mm.")}
    if expected is not None:
        assert list(projector) == expected
    else:
        assert len(projector) == 24
        # 1x1 convolutions are matrices; the depthwise kernel is f16 although it has three axes.
        fc1 = projector["mm.model.mb_block.2.block.1.fc1.weight"]
        assert fc1.shape == [32, 8]
        depthwise = projector["mm.model.mb_block.1.block.0.0.weight"]
        assert depthwise.shape == [3, 3, 32]
        assert depthwise.tensor_type == fc1.tensor_type == GGMLQuantizationType.F16
    assert convert(
        model, tmp_path / "x", options=Options(vision_tower=tower, projector_type=projector_type, outtype=outtype)
    )


def test_options_that_contradict_each_other(tmp_path: Path, run: Run) -> None:
    clip = write_clip(tmp_path / "clip", LLAVA.clip)
    projector = write_projector(tmp_path / "p.bin", LLAVA)
    with pytest.raises(ValueError, match="exclude"):
        convert(clip, options=Options(text_only=True, llava_projector=projector))
    result = run(clip, "--vision-only", "--llava-projector", projector)
    assert (result.returncode, result.stdout) == (2, "")


def test_command_line(tmp_path: Path, run: Run) -> None:
    model = write_original(tmp_path / "o", LLAVA)
    tower = write_tower(tmp_path / "vit", "vision", LLAVA.clip)
    result = run(model, "--vision-tower", tower, "--feature-layer", "-3", "--keep-last-layer", "-o", "out", "--use-f32")
    assert (result.returncode, result.stdout) == (0, f"{Path('out', 'mmproj-model-f32.gguf')}\n")
    assert "the projector's matrices stay f16" in result.stderr
    path = tmp_path / "work" / "out" / "mmproj-model-f32.gguf"
    assert (value(path, "clip.vision.block_count"), value(path, "clip.vision.feature_layer")) == (3, [2])
    assert run(model, "--dry-run").returncode == 1
