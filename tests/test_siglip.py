"""SigLIP: the vision tower alone and in LLaVA gives what transformers computes, and llama.cpp runs it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from safetensors import safe_open

from clipgguf import Options, convert
from clipgguf.options import Outtype
from tests.checkpoints import TINY, Vision
from tests.clip_checkpoints import (
    write_processor,
    write_tower,
)
from tests.feature_models import image
from tests.gguf_forward import Floats, GGUFModel
from tests.gguf_reading import read, tensors, value
from tests.json_files import edit_json, write_json
from tests.llama_client import answer_image, is_available, predicted_logits, write_tiny_language_model
from tests.llava_checkpoints import SPELLINGS, write_original
from tests.media import random_pixels
from tests.refusals import refused
from tests.siglip_checkpoints import SIGLIP_LLAVA, SIGLIP_VISION, write_siglip, write_siglip_llava, write_siglip_tower
from tests.weights import arrays_of, tensor_values, write_file

FIXTURES = Path(__file__).parent / "fixtures"


# ---- SigLIP ----------------------------------------------------------------------------------------------------------

SIGLIP_STYLES: dict[str, dict[str, Any]] = {
    "prefix, head": {},
    "no prefix, head": {"prefix": False},
    "prefix, no head": {"head": False},
    "no prefix, no head": {"prefix": False, "head": False},
    "bin": {"suffix": ".bin"},
    "shards": {"shards": 3, "prefix": False},
    "position ids": {"extra": {"vision_model.embeddings.position_ids": np.arange(16)[None]}},
}


@pytest.mark.parametrize("outtype", ["f16", "f32"])
@pytest.mark.parametrize("style", SIGLIP_STYLES)
def test_siglip_tower(style: str, outtype: Outtype, tmp_path: Path) -> None:
    result = convert(write_siglip_tower(tmp_path / "m", **SIGLIP_STYLES[style]), options=Options(outtype=outtype))
    path = result.path
    assert path.name == f"vision-model-{outtype}.gguf"
    found = read(path).tensors
    assert list(found)[:3] == ["v.patch_embd.weight", "v.patch_embd.bias", "v.position_embd.weight"]
    assert list(found)[-2:] == ["v.post_ln.weight", "v.post_ln.bias"]
    assert len(found) == 3 + 3 * 16 + 2
    bias = found["v.patch_embd.bias"]
    assert bias.tensor_type == GGMLQuantizationType.F32
    np.testing.assert_array_equal(bias.data, tensor_values("vision_model.embeddings.patch_embedding.bias", (48,)))
    kernel = found["v.patch_embd.weight"]
    assert kernel.tensor_type == GGMLQuantizationType.F16
    np.testing.assert_array_equal(
        kernel.data,
        tensor_values("vision_model.embeddings.patch_embedding.weight", (48, 3, 7, 7)).astype(np.float16),
    )
    assert found["v.position_embd.weight"].shape == [48, 16]
    assert value(path, "clip.use_gelu") is True
    assert value(path, "clip.vision.attention.layer_norm_epsilon") == pytest.approx(1e-6)
    assert value(path, "clip.vision.image_mean") == value(path, "clip.vision.image_std") == [0.5, 0.5, 0.5]
    assert (value(path, "clip.has_text_encoder"), value(path, "clip.has_vision_encoder")) == (False, True)
    assert result.warnings == ()
    has_head = SIGLIP_STYLES[style].get("head", True)
    assert any("head" in note and "vision_model.head" in note for note in result.notes) is has_head
    assert any("image_mean" in note for note in result.notes)


def test_siglip_styles_agree(tmp_path: Path) -> None:
    files = {
        convert(write_siglip_tower(tmp_path / f"{n}" / "m", **options)).path.read_bytes()
        for n, options in enumerate(SIGLIP_STYLES.values())
    }
    # The vision half of both towers is the same again.
    files.add(convert(write_siglip(tmp_path / "both" / "m"), options=Options(vision_only=True)).path.read_bytes())
    assert len(files) == 1


def test_siglip_statistics_from_a_file(tmp_path: Path) -> None:
    result = convert(write_siglip_tower(tmp_path / "m", processor=True, head=False))
    assert result.notes == ()
    model = write_siglip_tower(tmp_path / "n", head=False)
    write_processor(model, "processor_config.json")
    assert value(convert(model).path, "clip.vision.image_mean") == pytest.approx([0.48145466, 0.4578275, 0.40821073])


def test_siglip_defaults(tmp_path: Path) -> None:
    # SiglipVisionConfig's, of which one block is enough.
    vision = Vision(768, 3072, 1, 12, 224, 16)
    expected = convert(write_siglip_tower(tmp_path / "a" / "m", vision, head=False)).path
    model = write_siglip_tower(tmp_path / "b" / "m", vision, head=False)
    write_json(model / "config.json", {"model_type": "siglip_vision_model", "num_hidden_layers": 1})
    assert convert(model).path.read_bytes() == expected.read_bytes()


def test_siglip_is_told_by_its_config_not_by_its_tensors(tmp_path: Path) -> None:
    model = write_siglip_tower(tmp_path / "m")
    edit_json(model / "config.json", lambda config: config.update(model_type="clip_vision_model"))
    assert "class_embedding" in refused(model)


# ---- LLaVA with a SigLIP tower ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("head", [False, True])
def test_siglip_in_llava(spelling: str, head: bool, tmp_path: Path) -> None:
    model = write_siglip_llava(tmp_path / "m", spelling=spelling, head=head, shards=2)
    result = convert(model)
    path = result.path
    assert path.name == "mmproj-model-f16.gguf"
    names = list(tensors(path))
    assert names[:7] == [
        "mm.0.weight",
        "mm.0.bias",
        "mm.2.weight",
        "mm.2.bias",
        "v.patch_embd.weight",
        "v.patch_embd.bias",
        "v.position_embd.weight",
    ]
    assert len(names) == 7 + 3 * 16
    assert not any(name.startswith(("v.post_ln", "v.class_embd", "v.pre_ln")) for name in names)
    assert value(path, "clip.vision.block_count") == 3
    assert value(path, "clip.vision.feature_layer") == [3]
    assert value(path, "clip.projector_type") == "mlp"
    assert value(path, "clip.use_gelu") is True
    assert value(path, "clip.vision.attention.layer_norm_epsilon") == pytest.approx(1e-6)
    assert value(path, "clip.vision.image_mean") == [0.5, 0.5, 0.5]
    assert result.warnings == ()
    assert any("vision_model.head" in note for note in result.notes) is head


@pytest.mark.parametrize("layer", [-1, -2])
def test_siglip_in_llava_computes_what_transformers_does(layer: int, tmp_path: Path) -> None:
    model = write_siglip_llava(tmp_path / "m", replace(SIGLIP_LLAVA, feature_layer=layer))
    path = convert(model, options=Options(outtype="f32")).path
    with np.load(FIXTURES / "layout_features.npz") as golden:
        found = GGUFModel.read(path).siglip_features(image(SIGLIP_LLAVA))
        # The two formulas for GELU and the convolution in f16 cost 4e-3; quick_gelu is 6e-2 away.
        np.testing.assert_allclose(found, golden[f"SigLIP/{layer}"], atol=0.01)
        assert np.abs(found - golden[f"SigLIP/{-3 - layer}"]).max() > 0.5
    assert value(path, "clip.vision.feature_layer") == [4 + layer]


@pytest.mark.parametrize("strategy", ["full", "default", None])
def test_siglip_has_no_class_token_to_keep_or_drop(strategy: str | None, tmp_path: Path) -> None:
    llava = replace(SIGLIP_LLAVA, config={"vision_feature_select_strategy": strategy})
    model = write_siglip_llava(tmp_path / "m", llava)
    if strategy == "full":
        assert convert(model).tensors == 7 + 3 * 16
    else:
        # transformers then drops the first patch (LlavaModel.get_image_features, [:, 1:]), which no reader does; so it
        # does where the strategy is omitted, as LlavaConfig's default is "default".
        assert "'default'" in refused(model)


def test_siglip_tower_from_elsewhere(tmp_path: Path) -> None:
    expected = convert(write_siglip_llava(tmp_path / "a" / "m")).path
    tower = write_siglip_tower(tmp_path / "siglip", prefix=False)
    projector = write_file(tmp_path / "mm_projector.bin", arrays_of(SIGLIP_LLAVA.projector_shapes()))
    path = convert(tower, options=Options(llava_projector=projector, feature_layer=-1)).path
    assert tensors(path) == tensors(expected)
    for key in ("clip.vision.feature_layer", "clip.use_gelu", "clip.vision.image_mean"):
        assert value(path, key) == value(expected, key)


@pytest.mark.parametrize("layer", [-1, -2])
def test_siglip_tower_of_an_original_llava(layer: int, tmp_path: Path) -> None:
    # nanoLLaVA and its kind; "patch" drops nothing where there is no class token.
    llava = replace(SIGLIP_LLAVA, feature_layer=layer)
    expected = convert(write_siglip_llava(tmp_path / "hf", llava)).path
    original = write_original(tmp_path / "o", llava, vision_tower="google/siglip-so400m-patch14-384")
    path = convert(original, options=Options(vision_tower=write_siglip_tower(tmp_path / "siglip"))).path
    assert tensors(path) == tensors(expected)
    assert value(path, "clip.vision.feature_layer") == [4 + layer]
    assert value(path, "clip.vision.image_mean") == [0.5, 0.5, 0.5]


def test_ignore_unknown_in_llava(tmp_path: Path) -> None:
    model = write_siglip_llava(tmp_path / "m")
    expected = tensors(convert(model).path)
    whole = model / "model.safetensors"
    with safe_open(whole, "np") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 # No dict.
    write_file(whole, {**arrays, "model.resampler.weight": np.ones(3, np.float32)})
    assert "'model.resampler.weight'" in refused(model)
    result = convert(model, options=Options(ignore_unknown=True))
    assert [("'model.resampler.weight'" in warning) for warning in result.warnings] == [True]
    assert tensors(result.path) == expected


# ---- llama.cpp itself ------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not is_available(), reason="xllamacpp is not installed (extra: client)")
@pytest.mark.parametrize("outtype", ["f16", pytest.param("f32", marks=pytest.mark.slow)])
@pytest.mark.parametrize("layer", [-1, pytest.param(-2, marks=pytest.mark.slow)])
def test_llama_cpp_answers_with_a_siglip_tower(layer: int, outtype: Outtype, tmp_path: Path) -> None:
    write_tiny_language_model(tmp_path / "llama.gguf", SIGLIP_LLAVA.text_width)
    model = write_siglip_llava(tmp_path / "m", replace(SIGLIP_LLAVA, feature_layer=layer), head=True)
    mmproj = convert(model, options=Options(outtype=outtype)).path
    side = SIGLIP_VISION.image_size
    pixels = random_pixels(side, side)
    result = answer_image(tmp_path / "llama.gguf", mmproj, pixels)
    assert result.ok, result.errors
    assert result.image_tokens == 16
    normalized: Floats = pixels.transpose(2, 0, 1).astype(np.float32) / np.float32(127.5) - np.float32(1)
    features = GGUFModel.read(mmproj).siglip_features(normalized)
    # Measured: 0.006; with quick_gelu 0.014, with one block fewer 2.
    np.testing.assert_allclose(result.logits, predicted_logits(tmp_path / "llama.gguf", features), atol=0.01)


@pytest.mark.slow
@pytest.mark.skipif(not is_available(), reason="xllamacpp is not installed (extra: client)")
@pytest.mark.parametrize(
    "write",
    [
        lambda d: write_siglip_tower(d, prefix=False),
        lambda d: write_tower(d, "vision", replace(TINY, vision=SIGLIP_VISION), prefix=""),
    ],
    ids=["SigLIP", "CLIP"],
)
def test_llama_cpp_answers_with_a_tower_alone_and_a_projector(write: Callable[[Path], Path], tmp_path: Path) -> None:
    write_tiny_language_model(tmp_path / "llama.gguf", SIGLIP_LLAVA.text_width)
    projector = write_file(tmp_path / "p.bin", arrays_of(SIGLIP_LLAVA.projector_shapes()))
    mmproj = convert(write(tmp_path / "m"), options=Options(llava_projector=projector)).path
    result = answer_image(tmp_path / "llama.gguf", mmproj, random_pixels(28, 28))
    assert result.ok, result.errors
    assert result.image_tokens == 16
