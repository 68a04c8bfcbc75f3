"""LLaVA whose projector takes the features of several layers side by side, as Granite Vision 3's does."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFValueType

from clipgguf import Options, convert, verify
from clipgguf.checkpoint.gguf_file import MetadataItem
from clipgguf.options import Outtype
from tests.clip_checkpoints import write_clip
from tests.feature_models import image
from tests.gguf_bytes import rewritten
from tests.gguf_forward import Floats, GGUFModel
from tests.gguf_reading import read, tensors, value
from tests.llama_client import answer_image, is_available, predicted_logits, write_tiny_language_model
from tests.llava_checkpoints import PROJECTOR, Llava, write_hf, write_original, write_projector
from tests.media import random_pixels
from tests.readers import LAYER, int32s, readers, reasons
from tests.refusals import refused
from tests.siglip_checkpoints import GRANITE_VISION, write_siglip_llava
from tests.weights import tensor_values

FIXTURES = Path(__file__).parent / "fixtures"
# Of four blocks, with a CLIP tower.
TWO_LAYERS = Llava(feature_layer=[1, -2], layers=2)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_siglip_llava(tmp_path / "m", GRANITE_VISION)


@pytest.fixture
def mmproj(model: Path) -> Path:
    return convert(model).path


def test_granite_vision(model: Path) -> None:
    result = convert(model)
    contents = read(result.path)
    assert contents.metadata[LAYER] == [2, 3, 5]
    assert contents.metadata["clip.vision.block_count"] == 5
    assert contents.metadata["clip.projector_type"] == "mlp"
    assert contents.metadata["clip.vision.mm_patch_merge_type"] == "spatial_unpad"
    assert contents.metadata["clip.vision.image_grid_pinpoints"] == [28, 28, 56, 28, 28, 56]
    projector = contents.tensors["mm.0.weight"]
    assert list(projector.shape) == [3 * 48, 32]
    expected = tensor_values(f"{PROJECTOR}0.weight", (32, 3 * 48)).astype(np.float16)
    np.testing.assert_array_equal(projector.data, expected)
    assert len(contents.tensors) == 5 + 3 + 5 * 16
    # llama.cpp would put the last layer's features through it, and transformers does not.
    assert not any(name.startswith("v.post_ln") for name in contents.tensors)
    assert result.warnings == ()


@pytest.mark.parametrize(
    ("layers", "run"), [([-4, -3, -1], [2, 3, 5]), ([1, 2, 4], [1, 2, 4]), ([1, -4, 3], [1, 2, 3])], ids=str
)
def test_what_comes_after_the_deepest_layer_is_not_stored(layers: list[int], run: list[int], tmp_path: Path) -> None:
    model = write_siglip_llava(tmp_path / "m", replace(GRANITE_VISION, feature_layer=layers))
    path = convert(model).path
    assert (value(path, LAYER), value(path, "clip.vision.block_count")) == (run, run[-1])
    assert sum(name.endswith(".ln1.bias") for name in tensors(path)) == run[-1]
    kept = convert(model, tmp_path / "kept.gguf", options=Options(keep_last_layer=True)).path
    assert (value(kept, LAYER), value(kept, "clip.vision.block_count")) == (run, min(run[-1] + 1, 5))
    for file in (path, kept):
        assert verify(file, model).agrees


@pytest.mark.parametrize("projector", ["mlp", "mlp_norm"])
def test_every_layout(projector: str, tmp_path: Path) -> None:
    llava = replace(TWO_LAYERS, projector=projector)
    original = write_original(tmp_path / "original", llava, tower="folder")
    paths = [convert(original, tmp_path / "1.gguf").path]
    if projector == "mlp":
        paths.append(convert(write_hf(tmp_path / "hf", llava), tmp_path / "2.gguf").path)
    clip = write_clip(tmp_path / "clip", llava.clip)
    paths.append(convert(clip, tmp_path / "3.gguf", options=Options(llava_projector=original)).path)
    for path in paths:
        assert (value(path, LAYER), value(path, "clip.vision.block_count")) == ([1, 3], 3)
        assert tensors(path) == tensors(paths[0])
        assert readers(path) == ["llama.cpp"]


REFUSED: dict[str, tuple[list[Any], str]] = {
    "from the last to the first": ([-1, -3, -4], "supported are layers that increase"),
    "one twice": ([2, -4, -1], "each once"),
    "none such": ([-4, -3, 6], "[-4, -3, 6], should be 1 to 5, or -1 to -5"),
    "the embeddings": ([0, -3, -1], "[0, -3, -1], should be 1 to 5"),
    "no number": ([-4, True, -1], "should be 1 to 5"),
    "fewer than the projector takes": ([-4, -1], "2 layers side by side are 96 numbers, but the projector takes 144"),
    "more than the projector takes": ([1, 2, 3, 4], "4 layers side by side are 192 numbers"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_layers_that_no_reader_joins_so(case: str, tmp_path: Path) -> None:
    layers, words = REFUSED[case]
    model = write_siglip_llava(tmp_path / "m", replace(GRANITE_VISION, feature_layer=layers))
    message = refused(model)
    assert f"config.json: vision_feature_layer is {layers}" in message
    assert words in message


def test_vip_llava(tmp_path: Path) -> None:
    # Its own key is vision_feature_layers, and a layer norm stands before the projector.
    llava = replace(TWO_LAYERS, projector="VIP-LLaVA", feature_layer=None)
    llava = replace(llava, config={"model_type": "vipllava", "vision_feature_layers": [1, -2]})
    assert "the projector is VIP-LLaVA's" in refused(write_hf(tmp_path / "m", llava))


def test_an_option_is_of_one_layer(model: Path, tmp_path: Path) -> None:
    message = refused(model, feature_layer=-1)
    assert "linear_1.weight" in message
    # A projector that takes one, of a model whose configuration says several.
    one = write_projector(tmp_path / "one.safetensors", Llava())
    clip = write_clip(tmp_path / "clip", Llava().clip)
    path = convert(clip, options=Options(llava_projector=one, feature_layer=-1)).path
    assert value(path, LAYER) == [4]


@pytest.mark.parametrize("layers", [(5,), (2,), (2, 3), (2, 4, 5), (5, 3, 2)], ids=str)
def test_verify_finds_other_layers(layers: tuple[int, ...], model: Path, mmproj: Path, tmp_path: Path) -> None:
    assert verify(mmproj, model).problems == verify(mmproj, model).notes == ()
    other = rewritten(mmproj, tmp_path / "other.gguf", metadata=[int32s(LAYER, *layers)])
    problems = verify(other, model).problems
    assert problems
    assert all(problem.startswith(f"metadata key {LAYER!r} ") for problem in problems)


def test_who_reads_it(mmproj: Path, tmp_path: Path) -> None:
    assert readers(mmproj) == ["llama.cpp"]
    assert any("it takes the features of one layer" in reason for reason in reasons(mmproj)["PowerInfer"])
    for layers in ([2, 5], [5], [1, 2, 3, 5]):
        other = rewritten(mmproj, tmp_path / "other.gguf", metadata=[int32s(LAYER, *layers)])
        assert any("'mm.0.weight' has shape (32, 144)" in reason for reason in reasons(other)["llama.cpp"])
    # A layer that is said twice is joined once, and negative ones are passed over.
    twice = MetadataItem(LAYER, GGUFValueType.INT32, [2, 3, 3, -1, 5])
    assert readers(rewritten(mmproj, tmp_path / "twice.gguf", metadata=[twice])) == ["llama.cpp"]


def test_it_computes_what_transformers_does(model: Path) -> None:
    file = GGUFModel.read(convert(model, options=Options(outtype="f32")).path)
    with np.load(FIXTURES / "layout_features.npz") as golden:
        expected = golden["Granite Vision"]
    # The two formulas for GELU and the convolution in f16 cost 4e-3.
    np.testing.assert_allclose(file.siglip_features(image(GRANITE_VISION)), expected, atol=0.01)
    file.metadata[LAYER] = [2, 4, 5]
    assert np.abs(file.siglip_features(image(GRANITE_VISION)) - expected).max() > 0.5


@pytest.mark.skipif(not is_available(), reason="xllamacpp is not installed (extra: client)")
@pytest.mark.parametrize("outtype", ["f32", pytest.param("f16", marks=pytest.mark.slow)])
def test_llama_cpp_joins_the_layers(outtype: Outtype, model: Path, tmp_path: Path) -> None:
    write_tiny_language_model(tmp_path / "llama.gguf", GRANITE_VISION.text_width)
    mmproj = convert(model, options=Options(outtype=outtype)).path
    side = GRANITE_VISION.vision.image_size
    pixels = random_pixels(side, side)
    result = answer_image(tmp_path / "llama.gguf", mmproj, pixels)
    assert result.ok, result.errors
    assert result.image_tokens == 16
    normalized: Floats = pixels.transpose(2, 0, 1).astype(np.float32) / np.float32(127.5) - np.float32(1)
    file = GGUFModel.read(mmproj)
    expected = predicted_logits(tmp_path / "llama.gguf", file.siglip_features(normalized))
    np.testing.assert_allclose(result.logits, expected, atol=1e-3 * float(np.abs(expected).max()))
    # With another of the layers they differ by more than 1.
    file.metadata[LAYER] = [2, 4, 5]
    other = predicted_logits(tmp_path / "llama.gguf", file.siglip_features(normalized))
    assert np.abs(result.logits - other).max() > 0.5
