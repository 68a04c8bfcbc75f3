"""CLIP models of two towers: every layout gives the same file, whose tensors and names are the right ones."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from clipgguf import Conversion, Options, convert
from clipgguf.options import Outtype
from tests.checkpoints import GELU, REAL, TINY
from tests.clip_checkpoints import (
    narrow,
    only,
    write_clip,
    write_tower,
)
from tests.conftest import Run
from tests.feature_models import TOKENS, image
from tests.gguf_forward import GGUFModel
from tests.gguf_reading import read, tensors, value
from tests.layouts import SAVED
from tests.llava_checkpoints import Llava
from tests.open_clip_checkpoints import write_open_clip
from tests.siglip_checkpoints import write_siglip_llava, write_siglip_tower
from tests.weights import arrays_of

FIXTURES = Path(__file__).parent / "fixtures"


# ---- the layouts themselves ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("title", SAVED)
def test_names_and_shapes_are_those_that_were_really_saved(title: str, tmp_path: Path) -> None:
    saved = json.loads((FIXTURES / "saved_names.json").read_text())[title]
    (file,) = SAVED[title](tmp_path / "m").glob("*.safetensors")
    with safe_open(file, "np") as opened:
        assert {name: opened.get_slice(name).get_shape() for name in opened.keys()} == saved  # noqa: SIM118 # No dict.


# ---- one set of weights, both towers ---------------------------------------------------------------------------------

TWO_TOWERS: dict[str, Callable[..., Path]] = {
    "safetensors": write_clip,
    "safetensors, 3 shards": lambda d, c, **o: write_clip(d, c, shards=3, **o),
    "bin": lambda d, c, **o: write_clip(d, c, suffix=".bin", **o),
    "bin, 3 shards": lambda d, c, **o: write_clip(d, c, suffix=".bin", shards=3, **o),
    "transformers 4": lambda d, c, **o: write_clip(d, c, style="4", has_position_ids=True, **o),
    "transformers 4, bin": lambda d, c, **o: write_clip(d, c, style="4", has_position_ids=True, suffix=".bin", **o),
    "config dicts": lambda d, c, **o: write_clip(d, c, style="config_dict", **o),
    "tokenizer.json, processor_config.json": lambda d, c, **o: write_clip(
        d, c, vocabulary="tokenizer.json", processor="processor_config.json", **o
    ),
    "OpenCLIP": write_open_clip,
    "OpenCLIP, custom text": lambda d, c, **o: write_open_clip(d, c, custom_text=True, **o),
    "OpenCLIP, bin": lambda d, c, **o: write_open_clip(d, c, suffix=".bin", **o),
    "OpenCLIP, custom text, bin": lambda d, c, **o: write_open_clip(d, c, custom_text=True, suffix=".bin", **o),
    "OpenCLIP, tokenizer.json": lambda d, c, **o: write_open_clip(d, c, vocabulary="tokenizer.json", **o),
}


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Outtype], Conversion[Path]]:
    """What a conversion of transformers' own layout gives, made once for each dtype and type."""

    @cache
    def convert_once(dtype: str, outtype: Outtype) -> Conversion[Path]:
        directory = tmp_path_factory.mktemp("expected")
        return convert(write_clip(directory / "tiny", dtype=dtype), options=Options(outtype=outtype))

    return convert_once


@pytest.mark.parametrize("outtype", ["f16", "f32"])
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("layout", TWO_TOWERS)
def test_every_layout_gives_the_same_file(
    layout: str, dtype: str, outtype: Outtype, expected: Callable[[str, Outtype], Conversion[Path]], tmp_path: Path
) -> None:
    wanted = expected(dtype, outtype)
    model = TWO_TOWERS[layout](tmp_path / "other" / "tiny", TINY, dtype=dtype)
    result = convert(model, options=Options(outtype=outtype))
    assert result.path.read_bytes() == wanted.path.read_bytes()
    assert (result.path.name, result.tensors) == (f"model-{outtype}.gguf", wanted.tensors)
    assert (result.warnings, result.notes) == ((), wanted.notes)


@pytest.mark.parametrize("layout", ["transformers 4", "config dicts", "OpenCLIP", "OpenCLIP, custom text, bin"])
def test_activation(layout: str, tmp_path: Path) -> None:
    expected = convert(write_clip(tmp_path / "hf" / "tiny", GELU)).path
    path = convert(TWO_TOWERS[layout](tmp_path / "other" / "tiny", GELU)).path
    assert value(path, "clip.use_gelu") is True
    assert value(convert(write_clip(tmp_path / "quick")).path, "clip.use_gelu") is False
    assert path.read_bytes() == expected.read_bytes()


@pytest.mark.parametrize("tower", ["text", "vision"])
@pytest.mark.parametrize("layout", ["transformers 4, bin", "config dicts", "OpenCLIP", "OpenCLIP, custom text, bin"])
def test_one_tower_of_two(layout: str, tower: str, tmp_path: Path) -> None:
    expected = convert(write_clip(tmp_path / "hf" / "tiny"), options=Options(**only(tower))).path
    path = convert(TWO_TOWERS[layout](tmp_path / "other" / "tiny", TINY), options=Options(**only(tower))).path
    assert path.name == f"{tower}-model-f16.gguf"
    assert path.read_bytes() == expected.read_bytes()


def test_the_names_that_readers_look_up_have_the_right_values(tmp_path: Path) -> None:
    # Against the weights and not against another conversion: rows of the fused matrix, and what is transposed.
    path = convert(write_open_clip(tmp_path / "m"), options=Options(outtype="f32")).path
    found = {name: t.data for name, t in read(path).tensors.items()}
    canonical = arrays_of(TINY.shapes())
    for name, source in {
        "v.blk.2.attn_q.weight": "vision_model.encoder.layers.2.self_attn.q_proj.weight",
        "v.blk.2.attn_k.bias": "vision_model.encoder.layers.2.self_attn.k_proj.bias",
        "t.blk.1.attn_v.weight": "text_model.encoder.layers.1.self_attn.v_proj.weight",
        "visual_projection.weight": "visual_projection.weight",
        "text_projection.weight": "text_projection.weight",
    }.items():
        np.testing.assert_array_equal(found[name], canonical[source])


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_mixed_element_types(suffix: str, tmp_path: Path) -> None:
    def dtype(name: str) -> str:
        if name.startswith("vis"):
            return "F16"
        return "F64" if "projection" in name else "BF16" if "token_embedding" in name else "F32"

    expected = tensors(convert(write_clip(tmp_path / "hf", dtype=dtype, suffix=suffix)).path)
    assert tensors(convert(write_clip(tmp_path / "shards", dtype=dtype, suffix=suffix, shards=4)).path) == expected
    assert tensors(convert(write_open_clip(tmp_path / "oc", dtype=dtype, suffix=suffix)).path) == expected
    assert expected != tensors(convert(write_clip(tmp_path / "f32")).path)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_features_are_what_open_clip_computes(activation: str, tmp_path: Path) -> None:
    llava = Llava(hidden_act=activation)
    model = GGUFModel.read(convert(write_open_clip(tmp_path / "m", llava.clip), options=Options(outtype="f32")).path)
    with np.load(FIXTURES / "layout_features.npz") as golden:
        found = {"text": model.text_features(TOKENS), "image": model.image_features(image(llava))}
        for what, features in found.items():
            # The convolution stays f16, which costs 3e-4; the other activation is 2e-2 away.
            np.testing.assert_allclose(features, golden[f"OpenCLIP {activation}/{what}"], atol=1e-3)


# ---- counts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "both", "vision", "text"),
    [
        ("vit-b-32", 397, 200, 197),
        ("vit-l-14-336", 589, 392, 197),
        pytest.param("vit-h-14", 909, 520, 389, marks=pytest.mark.slow),
    ],
)
def test_clip_cpp_counts_the_tensors(name: str, both: int, vision: int, text: int, tmp_path: Path) -> None:
    # ``clip_model_load`` in clip.cpp exits for any other number.
    clip = narrow(REAL[name])
    models = [write_clip(tmp_path / "hf", clip), write_open_clip(tmp_path / "oc", clip)]
    for model in models:
        assert convert(model).tensors == both
        assert convert(model, options=Options(vision_only=True)).tensors == vision
        assert convert(model, options=Options(text_only=True)).tensors == text
    assert convert(write_tower(tmp_path / "v", "vision", clip, projection=True)).tensors == vision
    assert convert(write_tower(tmp_path / "t", "text", clip, projection=True)).tensors == text


# ---- what is said ----------------------------------------------------------------------------------------------------

FOUND: dict[str, tuple[Callable[[Path], Path], list[str]]] = {
    "clip": (write_clip, ["CLIPModel", "model.safetensors", "F32"]),
    "clip, bin": (lambda d: write_clip(d, suffix=".bin", dtype="F16"), ["CLIPModel", "pytorch_model.bin", "F16"]),
    "clip, shards": (
        lambda d: write_clip(d, shards=2, dtype="BF16"),
        ["CLIPModel", "model.safetensors.index.json", "BF16"],
    ),
    "clip, mixed": (
        lambda d: write_clip(d, dtype=lambda name: "F16" if "fc1" in name else "F32"),
        ["CLIPModel", "F16", "F32"],
    ),
    "vision": (lambda d: write_tower(d, "vision"), ["CLIPVisionModel", "vision_model.", "model.safetensors"]),
    "bare vision": (lambda d: write_tower(d, "vision", prefix=""), ["CLIPVisionModel", "tensors *"]),
    "text": (lambda d: write_tower(d, "text", projection=True), ["CLIPTextModel", "text_model."]),
    "OpenCLIP": (lambda d: write_open_clip(d, dtype="F16"), ["OpenCLIP", "open_clip_model.safetensors", "F16"]),
    "OpenCLIP, bin": (lambda d: write_open_clip(d, suffix=".bin"), ["OpenCLIP", "open_clip_pytorch_model.bin", "F32"]),
    "SigLIP": (write_siglip_tower, ["SigLIP", "vision_model.", "model.safetensors", "F32"]),
    "LLaVA": (write_siglip_llava, ["LLaVA", "SigLIP", "vision_tower.vision_model.", "model.safetensors", "F32"]),
}


@pytest.mark.parametrize("case", FOUND)
def test_what_was_found_is_said(case: str, tmp_path: Path, run: Run) -> None:
    write, words = FOUND[case]
    model = write(tmp_path / "input")
    result = run(model, "-o", "out")
    assert result.returncode == 0, result.stderr
    summary = next(line for line in result.stderr.splitlines() if " tensors, " in line)
    assert all(word in summary for word in words), summary
    dry = run(model, "--dry-run", "-o", "dry")
    assert dry.returncode == 0
    first = dry.stdout.splitlines()[0]
    assert all(word in first for word in words), first
    assert not (tmp_path / "work" / "dry").exists()
    assert run(model, "-o", "out", "--quiet").stderr == ""
