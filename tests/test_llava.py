"""LLaVA: whatever the layout, the same tensors come out; what no reader can run is refused and said why."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader

from clipgguf import ClipGGUFError, Options, convert
from clipgguf.options import Outtype, ProjectorType
from tests.checkpoints import edit_json, write_json
from tests.conftest import Run
from tests.llava_checkpoints import (
    SPELLINGS,
    VISION_24,
    Llava,
    tensor_values,
    write_clip,
    write_hf,
    write_original,
    write_projector,
    write_tensors,
    write_tower,
    write_vision_config,
)

LLAVA = Llava()
NEXT = Llava(has_newline=True)


def tensors(path: Path) -> list[tuple[str, GGMLQuantizationType, list[int], bytes]]:
    return [(t.name, t.tensor_type, t.shape.tolist(), t.data.tobytes()) for t in GGUFReader(path).tensors]


def value(path: Path, key: str) -> Any:
    field = GGUFReader(path).fields.get(key)
    return field.contents() if field else None


def the_scripts_way(directory: Path, llava: Llava = LLAVA, **options: Any) -> Path:
    """Convert by the first of the four ways: a CLIP directory, and a projector in a file of torch's."""
    clip = write_clip(directory / "clip", llava)
    projector = write_projector(directory / "llava.projector", llava)
    return convert(clip, directory / "out", options=Options(llava_projector=projector, **options)).path


def test_mmproj_of_a_clip_directory_and_a_projector(tmp_path: Path) -> None:
    path = the_scripts_way(tmp_path)
    assert path.name == "mmproj-model-f16.gguf"
    names = [t.name for t in GGUFReader(path).tensors]
    assert names[:5] == ["mm.0.weight", "mm.0.bias", "mm.2.weight", "mm.2.bias", "v.class_embd"]
    assert names[-1] == "v.blk.2.ln2.bias"
    assert len(names) == 4 + 5 + 3 * 16
    reader = GGUFReader(path)
    assert list(reader.fields)[-3:] == ["clip.use_gelu", "clip.projector_type", "clip.vision.feature_layer"]
    assert reader.fields["clip.has_llava_projector"].contents() is True
    assert reader.fields["general.description"].contents() == "image encoder for LLaVA"
    assert reader.fields["clip.vision.block_count"].contents() == 3
    assert reader.fields["clip.vision.feature_layer"].contents() == [3]
    mm0 = next(t for t in reader.tensors if t.name == "mm.0.weight")
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
        {"vision_tower": write_clip(d / "clip", LLAVA)},
    ),
    "original in .bin shards, tower alone in .bin": lambda d: (
        write_original(d / "o", LLAVA, suffix=".bin", shards=2),
        {"vision_tower": write_tower(d / "vit", LLAVA, suffix=".bin")},
    ),
    "tower alone without prefix, projector in safetensors": lambda d: (
        write_tower(d / "vit", LLAVA, prefix=""),
        {"llava_projector": write_projector(d / "p.safetensors", LLAVA)},
    ),
    "clip, projector of a whole checkpoint": lambda d: (
        write_clip(d / "clip", LLAVA, shards=2),
        {"llava_projector": write_original(d / "o", LLAVA, suffix=".bin")},
    ),
    "clip, projector of transformers'": lambda d: (
        write_clip(d / "clip", LLAVA),
        {"llava_projector": write_hf(d / "hf", LLAVA)},
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("outtype", ["f16", "f32"])
def test_every_layout_gives_the_same_tensors(layout: str, outtype: Outtype, tmp_path: Path) -> None:
    model, options = LAYOUTS[layout](tmp_path)
    path = convert(model, tmp_path / "result", options=Options(outtype=outtype, **options)).path
    assert path.name == f"mmproj-model-{outtype}.gguf"
    assert tensors(path) == tensors(the_scripts_way(tmp_path / "script", outtype=outtype))
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
    assert tensors(convert(model, tmp_path / "out").path) == tensors(the_scripts_way(tmp_path))


def test_projector_in_a_torch_file_keeps_its_order(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip", LLAVA)
    shapes = dict(reversed(LLAVA.projector_shapes().items()))
    backwards = {name: tensor_values(name, shape) for name, shape in shapes.items()}
    for file, expected in (
        ("x.bin", ["mm.2.bias", "mm.2.weight", "mm.0.bias", "mm.0.weight"]),
        ("x.safetensors", ["mm.0.weight", "mm.0.bias", "mm.2.weight", "mm.2.bias"]),
    ):
        write_tensors(tmp_path / file, backwards)
        path = convert(clip, tmp_path / "out", options=Options(llava_projector=tmp_path / file)).path
        assert [t.name for t in GGUFReader(path).tensors][:4] == expected


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
    assert sum(t.name.endswith(".ln1.bias") for t in GGUFReader(path).tensors) == run


def test_original_config_says_the_layer(tmp_path: Path) -> None:
    model = write_original(tmp_path / "o", replace(LLAVA, feature_layer=-3), tower="folder")
    assert value(convert(model, tmp_path / "out").path, "clip.vision.feature_layer") == [2]
    # The projector's checkpoint says it for a tower that knows nothing of LLaVA.
    clip = write_clip(tmp_path / "clip", LLAVA)
    path = convert(clip, tmp_path / "out", options=Options(llava_projector=model)).path
    assert value(path, "clip.vision.feature_layer") == [2]


@pytest.mark.parametrize("tower", ["openai/clip-vit-large-patch14-336", "me/vit"])
def test_original_config_that_has_the_towers_own_inside(tower: str, tmp_path: Path) -> None:
    expected = convert(
        write_original(tmp_path / "a" / "m", LLAVA, tower="inside"),
        options=Options(vision_config=write_vision_config(tmp_path / "vision.json", LLAVA)),
    ).path
    inside = changed(LLAVA, vision_config=LLAVA.vision_config())
    path = convert(write_original(tmp_path / "b" / "m", inside, tower="inside", vision_tower=tower)).path
    assert path.read_bytes() == expected.read_bytes()


def test_keep_last_layer(tmp_path: Path) -> None:
    path = the_scripts_way(tmp_path, keep_last_layer=True)
    assert value(path, "clip.vision.block_count") == 4
    assert value(path, "clip.vision.feature_layer") == [3]
    assert "v.blk.3.ln2.bias" in [t.name for t in GGUFReader(path).tensors]
    path = the_scripts_way(tmp_path, keep_last_layer=True, feature_layer=-3)
    assert (value(path, "clip.vision.block_count"), value(path, "clip.vision.feature_layer")) == (3, [2])
    assert "v.blk.3.ln2.bias" not in [t.name for t in GGUFReader(path).tensors]


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


def test_llava_next_metadata_and_newline(tmp_path: Path) -> None:
    pinpoints = [28, 56, 56, 28, 56, 56, 84, 28, 28, 84]
    original = write_original(tmp_path / "o", NEXT, tower="folder")
    for model in (original, write_hf(tmp_path / "hf", NEXT)):
        reader = GGUFReader(convert(model, tmp_path / "out").path)
        assert list(reader.fields)[-2:] == ["clip.vision.image_grid_pinpoints", "clip.vision.mm_patch_merge_type"]
        assert reader.fields["clip.vision.image_grid_pinpoints"].contents() == pinpoints
        assert reader.fields["clip.vision.mm_patch_merge_type"].contents() == "spatial_unpad"
        newline = reader.tensors[4]
        assert (newline.name, newline.tensor_type) == ("model.image_newline", GGMLQuantizationType.F32)
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
    tower = write_clip(tmp_path / "clip", llava)
    path = convert(model, tmp_path / "out", options=Options(vision_tower=tower, outtype=outtype)).path
    assert value(path, "clip.projector_type") == projector_type
    projector = {t.name: t for t in GGUFReader(path).tensors if t.name.startswith("mm.")}
    if expected is not None:
        assert list(projector) == expected
    else:
        assert len(projector) == 24
        # 1x1 convolutions are matrices; the depthwise kernel is f16 although it has three axes.
        fc1 = projector["mm.model.mb_block.2.block.1.fc1.weight"]
        assert fc1.shape.tolist() == [32, 8]
        depthwise = projector["mm.model.mb_block.1.block.0.0.weight"]
        assert depthwise.shape.tolist() == [3, 3, 32]
        assert depthwise.tensor_type == fc1.tensor_type == GGMLQuantizationType.F16
    assert convert(
        model, tmp_path / "x", options=Options(vision_tower=tower, projector_type=projector_type, outtype=outtype)
    )


def changed(llava: Llava, **config: Any) -> Llava:
    return replace(llava, config=config)


VIP = {"multi_modal_projector.projector_layernorm.weight": np.ones(48, np.float32)}
PHI = {"model.vision_embed_tokens.img_projection.0.weight": np.ones((4, 4), np.float32)}

REFUSED: dict[str, tuple[Callable[[Path], tuple[Path, dict[str, Any]]], list[str]]] = {
    **{
        kind: (lambda d, k=kind: (write_hf(d / "m", replace(LLAVA, projector=k)), {}), words)  # type: ignore[misc]
        for kind, words in (
            ("linear", ["single linear layer", "crash"]),
            ("mlp1x", ["single linear layer"]),
            ("mlp without biases", ["no biases", "crash"]),
        )
    },
    "mlp3x": (
        lambda d: (write_original(d / "m", replace(LLAVA, projector="mlp3x"), tower="folder"), {}),
        ["3 linear layers", "only two"],
    ),
    "several feature layers": (
        lambda d: (write_hf(d / "m", replace(LLAVA, feature_layer=[-2, -1])), {}),
        ["config.json", "[-2, -1]", "VIP-LLaVA"],
    ),
    "VIP-LLaVA's projector": (
        lambda d: (write_clip(d / "m", LLAVA), {"llava_projector": extra_projector(d / "p.safetensors", VIP)}),
        ["p.safetensors", "VIP-LLaVA"],
    ),
    "Phi-3's projector": (
        lambda d: (write_clip(d / "m", LLAVA), {"llava_projector": extra_projector(d / "p.safetensors", PHI)}),
        ["img_projection", "Phi-3"],
    ),
    "a class token that is kept": (
        lambda d: (write_hf(d / "m", changed(LLAVA, vision_feature_select_strategy="full")), {}),
        ["class token", "'full'"],
    ),
    "a class token that is kept, whatever the layer": (
        lambda d: (write_hf(d / "m", changed(LLAVA, vision_feature_select_strategy="full")), {"feature_layer": -2}),
        ["class token", "'full'"],
    ),
    "no such layer": (lambda d: (write_hf(d / "m", LLAVA), {"feature_layer": -5}), ["--feature-layer is -5", "-4"]),
    "layer zero": (lambda d: (write_hf(d / "m", replace(LLAVA, feature_layer=0)), {}), ["vision_feature_layer is 0"]),
    "a layer that is no number": (
        lambda d: (write_hf(d / "m", changed(LLAVA, vision_feature_layer="last")), {}),
        ["vision_feature_layer is 'last'"],
    ),
    "the tower is elsewhere": (
        lambda d: (write_original(d / "m", LLAVA), {}),
        ["no vision tower", "'openai/clip-vit-large-patch14-336'", "--vision-tower"],
    ),
    "a known tower that is another": (
        lambda d: (write_original(d / "m", LLAVA, tower="inside"), {}),
        ["'openai/clip-vit-large-patch14-336'", "hidden_size 48 instead of 1024", "--vision-config"],
    ),
    "an unknown tower": (
        lambda d: (write_original(d / "m", LLAVA, tower="inside", vision_tower="me/vit"), {}),
        ["'me/vit'", "heads", "--vision-config"],
    ),
    "a tower directory without a tower": (
        lambda d: (write_original(d / "m", LLAVA), {"vision_tower": write_original(d / "n", LLAVA)}),
        ["/n", "has no vision tower"],
    ),
    "a tower directory that is none": (
        lambda d: (write_original(d / "m", LLAVA), {"vision_tower": d / "nowhere"}),
        ["nowhere", "no directory"],
    ),
    "a grid that LDP does not run on": (
        lambda d: (write_original(d / "m", Llava(projector="ldpv2"), tower="folder"), {}),
        ["ldpv2", "24 x 24", "4 x 4"],
    ),
    "a projector of another tower": (
        lambda d: (
            write_clip(d / "m", LLAVA),
            {"llava_projector": write_projector(d / "p.bin", Llava(vision=replace(LLAVA.vision, hidden_size=64)))},
        ),
        ["p.bin", "'model.mm_projector.0.weight'", "(32, 64)", "(any, 48)"],
    ),
    **{
        f"a projector of no {what}": (
            lambda d, s=(hidden, embedding): (  # type: ignore[misc]
                write_clip(d / "m", LLAVA),
                {
                    "llava_projector": extra_projector(
                        d / "p.safetensors",
                        {
                            "model.mm_projector.0.weight": np.ones((s[0], 48), np.float32),
                            "model.mm_projector.0.bias": np.ones(s[0], np.float32),
                            "model.mm_projector.2.weight": np.ones(s[::-1], np.float32),
                            "model.mm_projector.2.bias": np.ones(s[1], np.float32),
                        },
                    )
                },
            ),
            words,
        )
        for what, hidden, embedding, words in (
            ("width", 0, 32, ["p.safetensors", "mm_projector.0.weight'", "(0, 48)", "no axis should be of length 0"]),
            ("embedding", 32, 0, ["p.safetensors", "mm_projector.2.weight'", "(0, 32)"]),
        )
    },
    "a newline of nothing": (
        lambda d: (
            write_clip(d / "m", LLAVA),
            {"llava_projector": extra_projector(d / "p.safetensors", {"image_newline": np.ones(0, np.float32)})},
        ),
        ["p.safetensors", "'image_newline'", "(0)"],
    ),
    "another kind than asked for": (
        lambda d: (write_hf(d / "m", LLAVA), {"projector_type": "ldpv2"}),
        ["as 'ldpv2'", "lacks", "'peg.peg.0.weight'"],
    ),
    "a projector file that is missing": (
        lambda d: (write_clip(d / "m", LLAVA), {"llava_projector": d / "none.bin"}),
        ["none.bin"],
    ),
    "a projector file with other tensors": (
        lambda d: (
            write_clip(d / "m", LLAVA),
            {"llava_projector": extra_projector(d / "p.bin", {"other": np.ones(3, np.float32)})},
        ),
        ["p.bin", "'other'", "unknown"],
    ),
    "a tower of another family": (
        lambda d: (write_hf(d / "m", changed(LLAVA, vision_config={"model_type": "pixtral"})), {}),
        ["vision_config", "'pixtral'"],
    ),
    "a checkpoint with something more": (
        lambda d: (with_tensor(write_hf(d / "m", LLAVA), "model.resampler.weight"), {}),
        ["'model.resampler.weight'", "unknown"],
    ),
    "one tower of an mmproj": (
        lambda d: (write_hf(d / "m", LLAVA), {"vision_only": True}),
        ["LLaVA checkpoint", "--vision-only"],
    ),
}  # fmt: skip


def extra_projector(path: Path, extra: dict[str, Any]) -> Path:
    own = {name: tensor_values(name, shape) for name, shape in LLAVA.projector_shapes().items()}
    write_tensors(path, {**own, **extra})
    return path


def with_tensor(model: Path, name: str) -> Path:
    """Add a tensor to a model, in a shard of its own."""
    write_tensors(model / "more.safetensors", {name: np.ones(3, np.float32)})
    header = (model / "model.safetensors").read_bytes()
    names = [n for n in json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")]) if n != "__metadata__"]
    weight_map = {**dict.fromkeys(names, "model.safetensors"), name: "more.safetensors"}
    write_json(model / "model.safetensors.index.json", {"weight_map": weight_map})
    return model


@pytest.mark.parametrize("case", REFUSED)
def test_what_no_reader_can_run_is_refused(case: str, tmp_path: Path) -> None:
    make, words = REFUSED[case]
    model, options = make(tmp_path)
    with pytest.raises(ClipGGUFError) as caught:
        convert(model, tmp_path / "out", options=Options(**options))
    problem, *others = caught.value.problems
    assert not others or case.startswith("a projector of no ")
    assert all(word in problem for word in words), problem
    assert not (tmp_path / "out").exists()


def test_options_that_contradict_each_other(tmp_path: Path, run: Run) -> None:
    clip = write_clip(tmp_path / "clip", LLAVA)
    projector = write_projector(tmp_path / "p.bin", LLAVA)
    with pytest.raises(ValueError, match="exclude"):
        convert(clip, options=Options(text_only=True, llava_projector=projector))
    result = run(clip, "--vision-only", "--llava-projector", projector)
    assert (result.returncode, result.stdout) == (2, "")


def test_command_line(tmp_path: Path, run: Run) -> None:
    model = write_original(tmp_path / "o", LLAVA)
    tower = write_tower(tmp_path / "vit", LLAVA)
    result = run(model, "--vision-tower", tower, "--feature-layer", "-3", "--keep-last-layer", "-o", "out", "--use-f32")
    assert (result.returncode, result.stdout) == (0, f"{Path('out', 'mmproj-model-f32.gguf')}\n")
    assert "the projector's matrices stay f16" in result.stderr
    path = tmp_path / "work" / "out" / "mmproj-model-f32.gguf"
    assert (value(path, "clip.vision.block_count"), value(path, "clip.vision.feature_layer")) == (3, [2])
    assert run(model, "--dry-run").returncode == 1
