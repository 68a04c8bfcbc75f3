"""What the files compute is what the source models compute, whose features transformers gave (make_llava_golden.py)."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from clipgguf import Options, convert
from clipgguf.options import Outtype
from tests.clip_checkpoints import write_clip, write_tower
from tests.feature_models import FEATURE_LAYERS, FEATURE_MODELS, TOKENS, image
from tests.gguf_forward import GGUFModel
from tests.llava_checkpoints import SPELLINGS, Llava, write_hf, write_original, write_projector, write_vision_config

FIXTURES = Path(__file__).parent / "fixtures"
# Asked for is 0.9999. That is much between layers, but little between quick_gelu and gelu: 0.99997 in the text tower.
# float16 weights alone leave 0.999998 of the worst token.
BAR = 0.99999
# The features of a neighbouring layer are farther away than this.
NEIGHBOUR = 0.9

Floats = NDArray[np.float32]


@pytest.fixture(scope="module")
def golden() -> dict[str, Floats]:
    with np.load(FIXTURES / "features.npz") as file:
        return dict(file)


def cosine(a: Floats, b: Floats) -> float:
    """Return the cosine of all features together."""
    assert a.shape == b.shape
    return float(np.vdot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b)))


def worst_cosine(a: Floats, b: Floats) -> float:
    """Return the lowest of the cosines of the tokens, each by itself."""
    assert a.shape == b.shape
    return float(np.min(np.sum(a * b, -1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))))


def features(model: GGUFModel, llava: Llava) -> Floats:
    """Return what the language model gets; for LLaVA 1.6 of an image of two tiles beside each other."""
    if not llava.has_newline:
        return model.llava_features(image(llava))
    side = llava.vision.image_size
    return model.llava_next_features([image(llava, tile) for tile in range(3)], (2 * side, side))


def clip_and_torch_projector(directory: Path, llava: Llava, layer: int, **options: Any) -> Path:
    clip = write_clip(directory / "clip", llava.clip)
    projector = FIXTURES / "llava.projector"
    return convert(clip, directory, options=Options(llava_projector=projector, feature_layer=layer, **options)).path


def clip_and_safetensors_projector(directory: Path, llava: Llava, layer: int, **options: Any) -> Path:
    clip = write_clip(directory / "clip", llava.clip, shards=3)
    projector = write_projector(directory / "projector.safetensors", llava)
    return convert(clip, directory, options=Options(llava_projector=projector, feature_layer=layer, **options)).path


def clip_and_projector_of_checkpoint(directory: Path, llava: Llava, layer: int, **options: Any) -> Path:
    clip = write_clip(directory / "clip", llava.clip)
    projector = write_original(directory / "llava", replace(llava, feature_layer=layer), shards=2, suffix=".bin")
    return convert(clip, directory, options=Options(llava_projector=projector, **options)).path


def hf(directory: Path, llava: Llava, layer: int, **options: Any) -> Path:
    return convert(
        write_hf(directory / "hf", replace(llava, feature_layer=layer)), directory, options=Options(**options)
    ).path


def hf_with_option(directory: Path, llava: Llava, layer: int, **options: Any) -> Path:
    hf = write_hf(directory / "hf", replace(llava, feature_layer=4), shards=4)
    return convert(hf, directory, options=Options(feature_layer=layer, **options)).path


def original(directory: Path, llava: Llava, layer: int, **options: Any) -> Path:
    checkpoint = write_original(directory / "original", replace(llava, feature_layer=layer), tower="inside")
    config = write_vision_config(directory / "tower.json", llava)
    return convert(checkpoint, directory, options=Options(vision_config=config, **options)).path


def original_with_option(directory: Path, llava: Llava, layer: int, **options: Any) -> Path:
    checkpoint = write_original(directory / "original", llava, tower="inside", shards=3)
    config = write_vision_config(directory / "tower.json", llava)
    return convert(checkpoint, directory, options=Options(vision_config=config, feature_layer=layer, **options)).path


@dataclass(frozen=True)
class Source:
    """Where a model's features come from: its name in the golden values, and how its checkpoint is converted."""

    model: str
    convert: Callable[..., Path]

    @property
    def llava(self) -> Llava:
        return FEATURE_MODELS[self.model]


SOURCES = (
    Source("CLIP + projector", clip_and_torch_projector),
    Source("CLIP + projector", clip_and_safetensors_projector),
    Source("CLIP + projector", clip_and_projector_of_checkpoint),
    Source("HF LLaVA", hf),
    Source("HF LLaVA", hf_with_option),
    Source("LLaVA 1.6", original),
    Source("LLaVA 1.6", original_with_option),
)


@pytest.mark.parametrize("outtype", ["f16", "f32"])
@pytest.mark.parametrize("layer", FEATURE_LAYERS)
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.convert.__name__)
def test_llava_features(
    source: Source, layer: int, outtype: Outtype, golden: dict[str, Floats], tmp_path: Path
) -> None:
    llava = source.llava
    found = features(GGUFModel.read(source.convert(tmp_path, llava, layer, outtype=outtype)), llava)
    assert worst_cosine(found, golden[f"{source.model}/{layer}"]) >= BAR
    for other in FEATURE_LAYERS:
        if other != layer:
            assert cosine(found, golden[f"{source.model}/{other}"]) < NEIGHBOUR


@pytest.mark.parametrize("layer", FEATURE_LAYERS)
@pytest.mark.parametrize("source", SOURCES[::3], ids=lambda source: source.model)
def test_a_block_more_kept(source: Source, layer: int, golden: dict[str, Floats], tmp_path: Path) -> None:
    llava = source.llava
    model = GGUFModel.read(source.convert(tmp_path, llava, layer, keep_last_layer=True))
    # One more than are run, where the tower has one.
    blocks = llava.vision.num_hidden_layers
    assert model.metadata["clip.vision.block_count"] == min(blocks + 2 + layer, blocks)
    assert worst_cosine(features(model, llava), golden[f"{source.model}/{layer}"]) >= BAR


@pytest.mark.parametrize("source", SOURCES[::3], ids=lambda source: source.model)
def test_the_layer_that_the_old_script_made_llama_cpp_run(
    source: Source, golden: dict[str, Floats], tmp_path: Path
) -> None:
    # Control: without its key, one block fewer is run, and the bar is missed by far.
    llava = source.llava
    model = GGUFModel.read(source.convert(tmp_path, llava, -2))
    metadata = {key: value for key, value in model.metadata.items() if key != "clip.vision.feature_layer"}
    found = features(replace(model, metadata=metadata), llava)
    assert cosine(found, golden[f"{source.model}/-2"]) < NEIGHBOUR
    assert worst_cosine(found, golden[f"{source.model}/-3"]) >= BAR


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_of_transformers(spelling: str, golden: dict[str, Floats], tmp_path: Path) -> None:
    llava = FEATURE_MODELS["HF LLaVA"]
    path = convert(write_hf(tmp_path / "hf", llava, spelling=spelling), tmp_path).path
    assert worst_cosine(features(GGUFModel.read(path), llava), golden["HF LLaVA/-2"]) >= BAR


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_llava_next_of_transformers(spelling: str, golden: dict[str, Floats], tmp_path: Path) -> None:
    llava = FEATURE_MODELS["LLaVA 1.6"]
    path = convert(write_hf(tmp_path / "hf", llava, spelling=spelling), tmp_path).path
    assert worst_cosine(features(GGUFModel.read(path), llava), golden["LLaVA 1.6/-2"]) >= BAR


@pytest.mark.parametrize("outtype", ["f16", "f32"])
@pytest.mark.parametrize("kind", ["mlp_norm", "ldp", "ldpv2"])
def test_other_projectors(kind: str, outtype: Outtype, golden: dict[str, Floats], tmp_path: Path) -> None:
    llava = FEATURE_MODELS[kind]
    tower = write_tower(tmp_path / "tower", "vision", llava.clip, prefix="")
    path = convert(
        write_original(tmp_path / "llava", llava), tmp_path, options=Options(vision_tower=tower, outtype=outtype)
    ).path
    assert worst_cosine(features(GGUFModel.read(path), llava), golden[f"{kind}/-2"]) >= BAR


@pytest.mark.parametrize("outtype", ["f16", "f32"])
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_clip_features(activation: str, outtype: Outtype, golden: dict[str, Floats], tmp_path: Path) -> None:
    llava = Llava(hidden_act=activation)
    clip = write_clip(tmp_path / "clip", llava.clip)
    paths = (
        convert(clip, tmp_path, options=Options(outtype=outtype)).path,
        convert(clip, tmp_path, options=Options(outtype=outtype, text_only=True)).path,
        convert(clip, tmp_path, options=Options(outtype=outtype, vision_only=True)).path,
    )
    both, text, vision = map(GGUFModel.read, paths)
    for model in (both, vision):
        assert worst_cosine(model.image_features(image(llava)), golden[f"CLIP {activation}/image"]) >= BAR
    for model in (both, text):
        assert worst_cosine(model.text_features(TOKENS), golden[f"CLIP {activation}/text"]) >= BAR


@pytest.mark.parametrize("what", ["image", "text"])
def test_the_bar_tells_the_activations_apart(what: str, golden: dict[str, Floats]) -> None:
    assert cosine(golden[f"CLIP quick_gelu/{what}"], golden[f"CLIP gelu/{what}"]) < BAR
