"""Every layout that CLIP and SigLIP towers are published in gives the same tensors; all others are refused by name."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader
from safetensors import safe_open

from clipgguf import ClipGGUFError, Options, convert
from clipgguf.options import Outtype
from tests.checkpoints import REAL, TINY, Clip, Text, Vision, edit_json, write_json
from tests.conftest import Run
from tests.gguf_forward import Floats, GGUFModel
from tests.layouts import (
    SAVED,
    SIGLIP_LLAVA,
    SIGLIP_VISION,
    arrays_of,
    narrow,
    open_clip_arrays,
    tokens,
    write_cache,
    write_clip,
    write_file,
    write_open_clip,
    write_open_clip_timm,
    write_pipeline,
    write_processor,
    write_siglip,
    write_siglip_llava,
    write_siglip_tower,
    write_tower,
    write_vocabulary,
    write_weights,
)
from tests.llama_client import answer_image, is_available, predicted_logits, random_pixels, write_tiny_language_model
from tests.llava_checkpoints import SPELLINGS, TOKENS, Llava, image, tensor_values, write_original

FIXTURES = Path(__file__).parent / "fixtures"
GELU = replace(TINY, hidden_act="gelu")

Tensors = dict[str, tuple[GGMLQuantizationType, list[int], bytes]]


def tensors(path: Path) -> Tensors:
    return {t.name: (t.tensor_type, t.shape.tolist(), t.data.tobytes()) for t in GGUFReader(path).tensors}


def value(path: Path, key: str) -> Any:
    field = GGUFReader(path).fields.get(key)
    return field.contents() if field else None


def only(tower: str) -> dict[str, Any]:
    return {f"{tower}_only": True}


def refusal(model: Path, **options: Any) -> str:
    """Return the problems that a conversion is refused with, after making sure that nothing was written."""
    before = sorted(model.parent.rglob("*"))
    with pytest.raises(ClipGGUFError) as caught:
        convert(model, options=Options(**options))
    assert caught.value.problems
    assert sorted(model.parent.rglob("*")) == before
    return str(caught.value)


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


@pytest.mark.parametrize("outtype", ["f16", "f32"])
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("layout", TWO_TOWERS)
def test_every_layout_gives_the_same_file(layout: str, dtype: str, outtype: Outtype, tmp_path: Path) -> None:
    expected = convert(write_clip(tmp_path / "hf" / "tiny", dtype=dtype), options=Options(outtype=outtype))
    result = convert(
        TWO_TOWERS[layout](tmp_path / "other" / "tiny", TINY, dtype=dtype), options=Options(outtype=outtype)
    )
    assert tensors(result.path) == tensors(expected.path)
    assert result.path.read_bytes() == expected.path.read_bytes()
    assert (result.path.name, result.tensors) == (f"model-{outtype}.gguf", expected.tensors)
    assert (result.warnings, result.notes) == ((), expected.notes)


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
    found = {t.name: np.asarray(t.data) for t in GGUFReader(path).tensors}
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


# ---- containers ------------------------------------------------------------------------------------------------------

CONTAINERS = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
)


def write_container(directory: Path, container: str, **options: Any) -> None:
    if container.startswith("open_clip"):
        write_open_clip(directory, suffix=Path(container).suffix, **options)
    else:
        suffix = ".safetensors" if "safetensors" in container else ".bin"
        write_weights(
            directory, arrays_of(TINY.shapes()), suffix=suffix, shards=2 if "index" in container else 1, **options
        )


@pytest.mark.parametrize("container", CONTAINERS)
def test_containers_in_their_order_of_preference(container: str, tmp_path: Path) -> None:
    expected = convert(write_clip(tmp_path / "hf" / "tiny")).path.read_bytes()
    model = write_clip(tmp_path / "other" / "tiny")
    (model / "model.safetensors").unlink()
    # As in the repositories that have both, OpenCLIP's config stands beside transformers'.
    write_container(model, container)
    write_open_clip(tmp_path / "oc")
    (tmp_path / "oc" / "open_clip_config.json").replace(model / "open_clip_config.json")
    for other in CONTAINERS[CONTAINERS.index(container) + 1 :]:
        (model / other).write_bytes(b"not to be opened")
    assert convert(model).path.read_bytes() == expected


def test_no_weights_at_all(tmp_path: Path) -> None:
    model = write_clip(tmp_path / "m")
    (model / "model.safetensors").rename(model / "other.safetensors")
    problem = refusal(model)
    assert all(name in problem for name in CONTAINERS)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "my-weights.safetensors", "my.fp16.bin"])
def test_a_file_as_model(name: str, tmp_path: Path) -> None:
    expected = convert(write_clip(tmp_path / "hf" / "tiny")).path
    model = write_clip(tmp_path / "other" / "tiny")
    (model / "model.safetensors").write_bytes(b"not to be opened")
    write_file(model / name, arrays_of(TINY.shapes()))
    result = convert(model / name)
    assert result.path == model / "model-f16.gguf"
    assert result.path.read_bytes() == expected.read_bytes()


@pytest.mark.parametrize("name", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])
@pytest.mark.parametrize("has_both_configs", [False, True])
def test_a_file_of_open_clip_as_model(has_both_configs: bool, name: str, tmp_path: Path) -> None:
    expected = convert(write_clip(tmp_path / "hf" / "tiny")).path
    model = tmp_path / "other" / "tiny"
    if has_both_configs:
        write_clip(model)
    write_open_clip(model, suffix=Path(name).suffix)
    assert convert(model / name).path.read_bytes() == expected.read_bytes()


def test_a_file_as_model_on_the_command_line(tmp_path: Path, run: Run) -> None:
    model = write_clip(tmp_path / "m", suffix=".bin")
    result = run(model / "pytorch_model.bin", "-o", "out")
    assert (result.returncode, result.stdout) == (0, f"{Path('out', 'model-f16.gguf')}\n")
    result = run(model / "nothing.bin")
    assert (result.returncode, result.stdout) == (1, "")
    assert "nothing.bin" in result.stderr


def test_a_file_as_model_without_config(tmp_path: Path) -> None:
    path = write_file(tmp_path / "m" / "model.safetensors", arrays_of(TINY.shapes()))
    assert str(tmp_path / "m" / "config.json") in refusal(path)


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_variant(suffix: str, shards: int, tmp_path: Path) -> None:
    expected = convert(write_clip(tmp_path / "hf" / "tiny", dtype="F16", suffix=suffix)).path
    model = write_clip(tmp_path / "other" / "tiny", suffix=suffix)
    full = convert(model, tmp_path / "full.gguf").path.read_bytes()
    write_weights(model, arrays_of(TINY.shapes()), dtype="F16", suffix=suffix, shards=shards, variant="fp16")
    assert convert(model, options=Options(variant="fp16")).path.read_bytes() == expected.read_bytes()
    # Without being asked for, it is not taken.
    assert convert(model).path.read_bytes() == full


def test_variant_alone(tmp_path: Path, run: Run) -> None:
    model = write_clip(tmp_path / "m", dtype="F16", variant="fp16")
    result = run(model, "--variant", "fp16", "-o", "out")
    assert (result.returncode, result.stdout) == (0, f"{Path('out', 'model-f16.gguf')}\n")
    assert "model.fp16.safetensors" in result.stderr
    assert "F16" in result.stderr
    result = run(model)
    assert result.returncode == 1
    assert "model.safetensors" in result.stderr


@pytest.mark.parametrize("variant", ["é", "non_ema", "日本"])
def test_variant_that_is_no_ascii_word(variant: str, tmp_path: Path, run: Run) -> None:
    expected = convert(write_clip(tmp_path / "m", dtype="F16"), tmp_path / "x.gguf").path.read_bytes()
    (tmp_path / "m" / "model.safetensors").rename(tmp_path / "m" / f"model.{variant}.safetensors")
    assert convert(tmp_path / "m", tmp_path / "y.gguf", options=Options(variant=variant)).path.read_bytes() == expected
    if "_" not in variant:
        result = run(tmp_path / "m", "--variant", variant, "-o", "z.gguf", encoding="utf-8")
        assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("variant", ["", "a/b", "..", "a\0b", "a\\b", "\udce9", "fp16.x"])
def test_variant_that_can_be_none(variant: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="variant"):
        convert(write_clip(tmp_path / "m"), options=Options(variant=variant))


def test_variant_of_open_clip_or_a_tower(tmp_path: Path) -> None:
    expected = convert(write_clip(tmp_path / "hf" / "tiny", dtype="F16")).path
    path = convert(
        write_open_clip(tmp_path / "oc" / "tiny", dtype="F16", variant="fp16"), options=Options(variant="fp16")
    ).path
    assert path.read_bytes() == expected.read_bytes()
    write_pipeline(tmp_path / "sd", dtype="F16", variant="fp16")
    assert convert(tmp_path / "sd" / "text_encoder", options=Options(variant="fp16")).tensors == 2 + 2 * 16 + 2


@pytest.mark.parametrize("write", [write_clip, write_open_clip])
def test_variant_that_is_not_there(write: Callable[..., Path], tmp_path: Path, run: Run) -> None:
    model = write(tmp_path / "m")
    problem = refusal(model, variant="bf16")
    assert "model.bf16.safetensors" in problem
    assert str(model) in problem
    assert run(model, "--variant", "bf16").returncode == 1


@pytest.mark.skipif(os.name == "nt", reason="Windows wants a privilege for symbolic links")
@pytest.mark.parametrize(
    "write",
    [
        write_clip,
        lambda d: write_clip(d, shards=3),
        lambda d: write_clip(d, suffix=".bin"),
        write_open_clip,
        lambda d: write_tower(d, "vision", projection=True),
        write_siglip_llava,
    ],
    ids=["safetensors", "shards", "bin", "OpenCLIP", "tower", "LLaVA"],
)
def test_snapshot_of_a_hugging_face_cache(write: Callable[[Path], Path], tmp_path: Path) -> None:
    expected = tensors(convert(write(tmp_path / "m"), tmp_path / "x.gguf").path)
    snapshot = write_cache(tmp_path / "hub", tmp_path / "m")
    assert any(path.is_symlink() for path in snapshot.iterdir())
    assert tensors(convert(snapshot, tmp_path / "y.gguf").path) == expected


@pytest.mark.skipif(os.name == "nt", reason="Windows wants a privilege for symbolic links")
def test_pipeline_in_a_hugging_face_cache(tmp_path: Path) -> None:
    snapshot = write_cache(tmp_path / "hub", write_pipeline(tmp_path / "sdxl"))
    path = convert(snapshot / "text_encoder_2", tmp_path / "x.gguf").path
    assert value(path, "tokenizer.ggml.tokens") == tokens(99, "two")
    # The weights by their link, whose target is called otherwise and lies in another directory.
    path = convert(snapshot / "text_encoder_2" / "model.safetensors", tmp_path / "y.gguf").path
    assert value(path, "tokenizer.ggml.tokens") == tokens(99, "two")


# ---- single towers ---------------------------------------------------------------------------------------------------

TOWER_STYLES: dict[str, dict[str, Any]] = {
    "5, fresh": {"prefix": False},
    "5, loaded": {},
    "4": {"style": "4", "has_position_ids": True},
    "4, bin": {"style": "4", "has_position_ids": True, "suffix": ".bin"},
    "fresh, position ids": {"prefix": False, "has_position_ids": True},
    "shards": {"shards": 2},
}


@pytest.mark.parametrize("tower", ["text", "vision"])
@pytest.mark.parametrize("style", TOWER_STYLES)
def test_single_tower(tower: str, style: str, tmp_path: Path) -> None:
    whole = convert(write_clip(tmp_path / "hf" / "tiny"), options=Options(**only(tower))).path
    projection = "text_projection.weight" if tower == "text" else "visual_projection.weight"
    expected = tensors(whole)
    del expected[projection]
    model = write_tower(tmp_path / "other" / "tiny", tower, **TOWER_STYLES[style])
    result = convert(model)
    assert result.path == model / f"{tower}-model-f16.gguf"
    assert tensors(result.path) == expected
    assert list(tensors(result.path)) == list(expected)
    assert result.warnings == ()
    for key in ("general.description", "clip.has_text_encoder", "clip.has_vision_encoder", "general.name"):
        assert value(result.path, key) == value(whole, key)
    assert value(result.path, "general.description") == f"{tower}-only CLIP model"


@pytest.mark.parametrize("tower", ["text", "vision"])
@pytest.mark.parametrize("outtype", ["f16", "f32"])
@pytest.mark.parametrize("style", [style for style, options in TOWER_STYLES.items() if options.get("prefix", True)])
def test_single_tower_with_projection_is_half_of_the_whole(
    tower: str, outtype: Outtype, style: str, tmp_path: Path
) -> None:
    expected = convert(write_clip(tmp_path / "hf" / "tiny"), options=Options(outtype=outtype, **only(tower))).path
    options = TOWER_STYLES[style]
    result = convert(
        write_tower(tmp_path / "other" / "tiny", tower, projection=True, **options), options=Options(outtype=outtype)
    )
    assert result.path.read_bytes() == expected.read_bytes()
    assert result.path.name == expected.name
    # Asking for what there is anyway changes nothing.
    again = convert(tmp_path / "other" / "tiny", tmp_path / "x", options=Options(outtype=outtype, **only(tower))).path
    assert again.read_bytes() == expected.read_bytes()


@pytest.mark.parametrize("tower", ["text", "vision"])
def test_single_tower_by_its_flat_config(tower: str, tmp_path: Path) -> None:
    # The flags are the tower's own, and what is omitted has CLIPTextConfig's and CLIPVisionConfig's defaults.
    path = convert(write_tower(tmp_path / "gelu", tower, GELU)).path
    assert value(path, "clip.use_gelu") is True
    default = Clip(Text(512, 2048, 1, 8, vocab_size=50), Vision(768, 3072, 1, 12), 512)
    full = write_tower(tmp_path / "a" / "m", tower, default, projection=True)
    short = write_tower(tmp_path / "b" / "m", tower, default, projection=True, style="4")
    assert len((short / "config.json").read_text()) < len((full / "config.json").read_text())
    assert convert(short).path.read_bytes() == convert(full).path.read_bytes()


def test_projection_dim_is_the_tensors(tmp_path: Path) -> None:
    model = write_tower(tmp_path / "m", "vision", projection=True)
    edit_json(model / "config.json", lambda config: config.update(projection_dim=512))
    result = convert(model)
    assert value(result.path, "clip.vision.projection_dim") == 24
    (warning,) = result.warnings
    assert "projection_dim is 512" in warning
    assert "24 is written" in warning


@pytest.mark.parametrize("tower", ["text", "vision"])
def test_heads_divide_the_width(tower: str, tmp_path: Path) -> None:
    model = write_tower(tmp_path / "m", tower)
    edit_json(model / "config.json", lambda config: config.update(num_attention_heads=5))
    problem = refusal(model)
    assert "config.json" in problem
    assert "num_attention_heads 5" in problem


@pytest.mark.parametrize(("tower", "other"), [("text", "vision"), ("vision", "text")])
@pytest.mark.parametrize("projection", [False, True])
def test_the_tower_that_is_not_there(tower: str, other: str, projection: bool, tmp_path: Path, run: Run) -> None:
    model = write_tower(tmp_path / "m", tower, projection=projection)
    problem = refusal(model, **only(other))
    assert f"--{other}-only" in problem
    assert tower in problem.replace(f"--{other}-only", "").replace(str(model), "")
    result = run(model, f"--{other}-only")
    assert (result.returncode, result.stdout) == (1, "")
    assert f"{tower}" in result.stderr


def test_a_siglip_tower_has_no_text(tmp_path: Path) -> None:
    assert "--text-only" in refusal(write_siglip_tower(tmp_path / "m"), text_only=True)


def test_pipeline(tmp_path: Path) -> None:
    whole = tensors(convert(write_clip(tmp_path / "hf"), options=Options(text_only=True)).path)
    for vocabulary in ("vocab.json", "tokenizer.json"):
        sdxl = write_pipeline(tmp_path / vocabulary, vocabulary=vocabulary, dtype="F32")
        one, two = convert(sdxl / "text_encoder").path, convert(sdxl / "text_encoder_2").path
        assert tensors(two) == whole
        assert tensors(one) == {name: t for name, t in whole.items() if name != "text_projection.weight"}
        assert value(one, "tokenizer.ggml.tokens") == tokens(99, "one")
        assert value(two, "tokenizer.ggml.tokens") == tokens(99, "two")
        result = convert(sdxl / "image_encoder")
        assert result.path.name == "vision-model-f16.gguf"
        assert result.warnings == ()
        assert any("image_mean" in note for note in result.notes)
        assert value(result.path, "clip.vision.image_mean") == pytest.approx([0.48145466, 0.4578275, 0.40821073])


def test_pipeline_from_inside(tmp_path: Path, run: Run) -> None:
    sdxl = write_pipeline(tmp_path / "sdxl")
    result = run(".", "-o", "x.gguf", cwd=sdxl / "text_encoder_2")
    assert result.returncode == 0, result.stderr
    path = sdxl / "text_encoder_2" / "x.gguf"
    assert value(path, "tokenizer.ggml.tokens") == tokens(99, "two")


@pytest.mark.parametrize("tower", ["text", "vision"])
def test_single_tower_with_the_config_of_the_whole(tower: str, tmp_path: Path) -> None:
    # As sd-image-variations has its image encoder: the class tells which tower it is.
    whole = convert(write_clip(tmp_path / "a" / "tiny"), options=Options(**only(tower))).path
    model = write_tower(tmp_path / "b" / "tiny", tower, projection=True)
    write_json(
        model / "config.json",
        {**TINY.config_json(), "architectures": [f"CLIP{tower.title()}ModelWithProjection"]},
    )
    assert convert(model).path.read_bytes() == whole.read_bytes()


def test_stable_diffusion_2(tmp_path: Path) -> None:
    # Its projection_dim of 512 is nothing but a default, which is there without any projection.
    model = write_tower(tmp_path / "text_encoder", "text", GELU, dtype="F16")
    assert json.loads((model / "config.json").read_text())["projection_dim"] == 512
    result = convert(model)
    assert result.warnings == ()
    assert value(result.path, "clip.text.projection_dim") == 512


# ---- vocabulary ------------------------------------------------------------------------------------------------------


def test_vocabulary_given(tmp_path: Path, run: Run) -> None:
    model = write_tower(tmp_path / "m", "text", vocabulary=None)
    assert "--vocab" in refusal(model)
    for kind in ("vocab.json", "tokenizer.json"):
        given = write_vocabulary(tmp_path / f"with {kind}", tokens(99, "mine"), kind)
        for vocab in (given, given / kind):
            path = convert(model, tmp_path / "out", options=Options(vocab=vocab)).path
            assert value(path, "tokenizer.ggml.tokens") == tokens(99, "mine")
        (given / kind).rename(given / "renamed.json")
        path = convert(model, tmp_path / "out", options=Options(vocab=str(given / "renamed.json"))).path
        assert value(path, "tokenizer.ggml.tokens") == tokens(99, "mine")
    result = run(model, "--vocab", given / "renamed.json", "-o", "x.gguf")
    assert result.returncode == 0, result.stderr
    assert value(tmp_path / "work" / "x.gguf", "tokenizer.ggml.tokens") == tokens(99, "mine")


def test_vocabulary_given_comes_before_the_models_own(tmp_path: Path) -> None:
    given = write_vocabulary(tmp_path / "v", tokens(99, "mine"))
    for model in (write_clip(tmp_path / "hf"), write_open_clip(tmp_path / "oc")):
        assert value(convert(model, options=Options(vocab=given)).path, "tokenizer.ggml.tokens") == tokens(99, "mine")
    sdxl = write_pipeline(tmp_path / "sdxl")
    assert value(convert(sdxl / "text_encoder", options=Options(vocab=given)).path, "tokenizer.ggml.tokens") == tokens(
        99, "mine"
    )


def test_vocabulary_that_is_not_there(tmp_path: Path) -> None:
    model = write_clip(tmp_path / "m")
    assert "nowhere.json" in refusal(model, vocab=tmp_path / "nowhere.json")
    (tmp_path / "empty").mkdir()
    assert str(tmp_path / "empty") in refusal(model, vocab=tmp_path / "empty")


def test_vision_needs_no_vocabulary(tmp_path: Path) -> None:
    for model in (write_clip(tmp_path / "hf", vocabulary=None), write_open_clip(tmp_path / "oc", vocabulary=None)):
        assert convert(model, options=Options(vision_only=True)).path.name == "vision-model-f16.gguf"
        assert "vocab.json" in refusal(model)


@pytest.mark.parametrize("kind", ["vocab.json", "tokenizer.json"])
def test_vocabulary_by_id_whatever_the_order(kind: str, tmp_path: Path) -> None:
    model = write_clip(tmp_path / "m", vocabulary=kind)

    def reverse(values: dict[str, Any]) -> None:
        vocab = values["model"]["vocab"] if kind == "tokenizer.json" else values
        items = list(vocab.items())[::-1]
        vocab.clear()
        vocab.update(items)

    edit_json(model / kind, reverse)
    assert value(convert(model).path, "tokenizer.ggml.tokens") == tokens(99)


@pytest.mark.parametrize("where", ["model", "sibling", "given"])
@pytest.mark.parametrize(
    ("kind", "edit", "words"),
    [
        ("vocab.json", lambda v: v.pop("tok7</w>"), ["no token has id 7"]),
        ("vocab.json", lambda v: v.update({"again": 7}), ["id 7", "'again'", "'tok7</w>'"]),
        ("tokenizer.json", lambda v: v["model"]["vocab"].pop("tok7</w>"), ["no token has id 7"]),
        ("tokenizer.json", lambda v: v["added_tokens"].pop(), []),
        ("tokenizer.json", lambda v: v["added_tokens"][1].update(id=100), ["no token has id 98"]),
        ("tokenizer.json", lambda v: v["added_tokens"][1].update(id=7), ["id 7", "'tok98</w>'", "'tok7</w>'"]),
        ("tokenizer.json", lambda v: v["added_tokens"][0].update(id=7), ["id 7"]),
    ],
    ids=["hole", "duplicate", "hole", "shorter", "hole at the end", "added duplicate", "contradiction"],
)
def test_holes_and_duplicates(
    where: str, kind: str, edit: Callable[[Any], object], words: list[str], tmp_path: Path
) -> None:
    model = write_tower(tmp_path / "text_encoder", "text", vocabulary=None)
    place = {"model": model, "sibling": tmp_path / "tokenizer", "given": tmp_path / "v"}[where]
    write_vocabulary(place, tokens(99), kind)
    edit_json(place / kind, edit)
    options: dict[str, Any] = {"vocab": place} if where == "given" else {}
    if not words:  # One token fewer than rows is no error, but deserves a second look.
        (warning,) = convert(model, options=Options(**options)).warnings
        assert "98 tokens" in warning
        return
    problem = refusal(model, **options)
    assert str(place / kind) in problem
    assert all(word in problem for word in words), problem


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
    problem = refusal(model)
    assert "open_clip_config.json" in problem
    assert "mean" in problem


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


def change(key: str, part: str | None = None, **values: Any) -> Callable[[Any], None]:
    def edit(config: Any) -> None:
        where = config[key] if part is None else config[key][part]
        where.update(values)

    return edit


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
    problem = refusal(model)
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
    problem = refusal(model)
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
        problem = refusal(model)
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
    problem = refusal(model)
    assert "timm" in problem
    # By the tensors, too, where the config does not tell.
    write_open_clip(tmp_path / "n")
    (tmp_path / "n" / "open_clip_config.json").replace(model / "open_clip_config.json")
    problem = refusal(model)
    assert "timm" in problem
    assert "'visual.trunk." in problem


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", ["t5", "bert", "chinese_clip", "clipseg", "siglip2_vision_model", None, "", 5])
def test_other_model_types(model_type: Any, tmp_path: Path, run: Run) -> None:
    model = write_clip(tmp_path / "m")
    write_json(model / "config.json", {"model_type": model_type, "hidden_size": 8, "architectures": ["Other"]})
    problem = refusal(model)
    assert str(model / "config.json") in problem
    assert repr(model_type) in problem or model_type is None
    for word in ("clip", "clip_text_model", "clip_vision_model", "siglip_vision_model", "LLaVA", "OpenCLIP"):
        assert word in problem
    if model_type == "t5":
        result = run(model)
        assert (result.returncode, result.stdout) == (1, "")
        assert problem in result.stderr


@pytest.mark.parametrize("model_type", ["clip", "clip_vision_model"])
@pytest.mark.parametrize(("method", "code"), [("bitsandbytes", "U8"), ("fp8", "F8_E4M3")])
def test_quantized_checkpoints(method: str, code: str, model_type: str, tmp_path: Path) -> None:
    def dtype(name: str) -> str:
        return code if name.endswith("layers.0.mlp.fc1.weight") else "F16"

    for directory, dtypes in ((tmp_path / "q" / "m", dtype), (tmp_path / "m", "F16")):
        if model_type == "clip":
            write_clip(directory, dtype=dtypes)
        else:
            write_tower(directory, "vision", dtype=dtypes)
    edited = {"quantization_config": {"quant_method": method, "bits": 4}}
    expected = convert(tmp_path / "m").path.read_bytes()
    for directory in (tmp_path / "q" / "m", tmp_path / "m"):
        edit_json(directory / "config.json", lambda config: config.update(edited))
    problem = refusal(tmp_path / "q" / "m")
    assert f"config.json: the checkpoint is quantized ({method}; '" in problem
    assert f"layers.0.mlp.fc1.weight' is of type {code})" in problem
    # What the config says is one thing, what there is another.
    assert convert(tmp_path / "m").path.read_bytes() == expected


@pytest.mark.parametrize("code", ["F8_E4M3", "F8_E5M2"])
@pytest.mark.parametrize("write", [write_clip, write_open_clip], ids=["transformers", "OpenCLIP"])
def test_float8(write: Callable[..., Path], code: str, tmp_path: Path) -> None:
    model = write(
        tmp_path / "m", dtype=lambda name: code if name.endswith(("mlp.fc1.weight", "c_fc.weight")) else "F32"
    )
    problem = refusal(model)
    assert code in problem
    assert "encoder.layers.0.mlp.fc1.weight" in problem or "resblocks.0.mlp.c_fc.weight" in problem
    assert "F16" in problem


def test_packed_integers(tmp_path: Path) -> None:
    # bitsandbytes' weights without the config that tells it.
    packed = {"vision_model.encoder.layers.0.mlp.fc1.weight": np.zeros((96, 48), np.int64)}
    model = write_clip(tmp_path / "m", extra=packed)
    problem = refusal(model)
    assert "'vision_model.encoder.layers.0.mlp.fc1.weight'" in problem
    assert "I64" in problem


def test_siglip_with_both_towers(tmp_path: Path) -> None:
    problem = refusal(write_siglip(tmp_path / "m"))
    assert "SigLIP" in problem
    assert "--vision-only" in problem
    assert "--text-only" not in refusal(write_siglip(tmp_path / "m"))
    assert refusal(tmp_path / "m", text_only=True)


EXTRA = {"vision_model.adapter.weight": np.ones((3, 3), np.float32)}
TEXT_EXTRA = {"text_model.adapter.weight": np.ones((3, 3), np.float32)}


@pytest.mark.parametrize(
    ("write", "named"),
    [
        (lambda d: write_clip(d, extra=EXTRA), "vision_model.adapter.weight"),
        (lambda d: write_clip(d, extra=EXTRA, suffix=".bin"), "vision_model.adapter.weight"),
        (lambda d: write_tower(d, "vision", extra=EXTRA), "vision_model.adapter.weight"),
        (lambda d: write_tower(d, "vision", prefix=False, extra={"adapter": np.ones(3, np.float32)}), "adapter"),
        (lambda d: write_tower(d, "text", projection=True, extra=TEXT_EXTRA), "text_model.adapter.weight"),
        (lambda d: write_open_clip(d, extra={"visual.adapter": np.ones(3, np.float32)}), "visual.adapter"),
        (
            lambda d: write_open_clip(d, extra={"visual.transformer.resblocks.0.ls_1.gamma": np.ones(48, np.float32)}),
            "visual.transformer.resblocks.0.ls_1.gamma",
        ),
        (lambda d: write_siglip_tower(d, extra=EXTRA), "vision_model.adapter.weight"),
    ],
    ids=["clip", "bin", "tower", "bare tower", "text tower", "OpenCLIP", "OpenCLIP block", "SigLIP"],
)
def test_unknown_tensors(write: Callable[[Path], Path], named: str, tmp_path: Path, run: Run) -> None:
    model = write(tmp_path / "m")
    problem = refusal(model)
    assert f"'{named}'" in problem
    assert "--ignore-unknown" in problem
    result = convert(model, options=Options(ignore_unknown=True))
    (warning,) = result.warnings
    assert f"'{named}'" in warning
    assert not any("adapter" in name or "ls_1" in name for name in tensors(result.path))
    shown = run(model, "--ignore-unknown", "-o", "x.gguf")
    assert shown.returncode == 0
    assert "warning" in shown.stderr
    assert named in shown.stderr
    assert (tmp_path / "work" / "x.gguf").read_bytes() == result.path.read_bytes()


def test_all_unknown_tensors_are_listed(tmp_path: Path) -> None:
    extra = {f"other.{n}.weight": np.ones(3, np.float32) for n in range(3)}
    problem = refusal(write_clip(tmp_path / "m", extra=extra))
    assert all(f"'{name}'" in problem for name in extra)


def test_ignoring_does_not_forgive_what_is_missing(tmp_path: Path) -> None:
    arrays = open_clip_arrays(TINY)
    del arrays["visual.ln_post.bias"]
    model = write_open_clip(tmp_path / "m")
    write_file(model / "open_clip_model.safetensors", arrays)
    assert "'visual.ln_post.bias'" in refusal(model, ignore_unknown=True)


def test_blocks_beyond_the_configs_are_unknown(tmp_path: Path) -> None:
    for model, name in (
        (write_tower(tmp_path / "hf", "vision"), "encoder.layers.2."),
        (write_open_clip(tmp_path / "oc"), "transformer.resblocks.2."),
    ):
        if name.startswith("encoder"):
            edit_json(model / "config.json", lambda config: config.update(num_hidden_layers=2))
        else:
            edit_json(model / "open_clip_config.json", change("model_cfg", "vision_cfg", layers=2))
        problem = refusal(model)
        assert name in problem
        assert "unknown" in problem


@pytest.mark.parametrize("kind", ["weight", "bias"])
def test_open_clip_matrices_of_a_wrong_shape(kind: str, tmp_path: Path) -> None:
    name = f"visual.transformer.resblocks.0.attn.in_proj_{kind}"
    for rows in (143, 147):
        shape = (rows, 48)[: 2 if kind == "weight" else 1]
        model = write_open_clip(tmp_path / f"{rows}", extra={name: np.ones(shape, np.float32)})
        problem = refusal(model)
        assert name in problem, problem


@pytest.mark.parametrize("name", ["text.positional_embedding", "text_model.embeddings.position_embedding.weight"])
def test_open_clip_tensors_that_are_there_twice(name: str, tmp_path: Path) -> None:
    # Two spellings of one tensor: neither is to be dropped in silence.
    model = write_open_clip(tmp_path / "m", extra={name: np.ones((16, 32), np.float32)})
    problem = refusal(model)
    assert "unknown" in problem
    assert f"'{name}'" in problem or "'positional_embedding'" in problem


def test_open_clip_projection_of_a_wrong_shape(tmp_path: Path) -> None:
    model = write_open_clip(tmp_path / "m", extra={"visual.proj": np.ones((24, 48), np.float32)})
    assert "'visual.proj'" in refusal(model)


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
    found = {t.name: t for t in GGUFReader(path).tensors}
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
    assert found["v.position_embd.weight"].shape.tolist() == [48, 16]
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
    assert "class_embedding" in refusal(model)


# ---- LLaVA with a SigLIP tower ---------------------------------------------------------------------------------------


def siglip_features(model: GGUFModel, pixels: Floats) -> Floats:
    """Return what a language model gets of a file with a SigLIP tower, as llama.cpp's ``build_llava`` has it."""
    metadata, weights = model.metadata, model.tensors
    patch, width = metadata["clip.vision.patch_size"], metadata["clip.vision.embedding_length"]
    grid = pixels.shape[1] // patch
    patches = pixels.reshape(3, grid, patch, grid, patch).transpose(1, 3, 0, 2, 4).reshape(grid * grid, -1)
    x: Floats = patches @ weights["v.patch_embd.weight"].reshape(width, -1).T + weights["v.patch_embd.bias"]
    x = x + weights["v.position_embd.weight"]
    for block in range(model.blocks_run()):
        x = model._block(x, "vision", block)
    return model._mlp(x)


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
        found = siglip_features(GGUFModel.read(path), image(SIGLIP_LLAVA))
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
        assert "'default'" in refusal(model)


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
    assert "'model.resampler.weight'" in refusal(model)
    result = convert(model, options=Options(ignore_unknown=True))
    assert [("'model.resampler.weight'" in warning) for warning in result.warnings] == [True]
    assert tensors(result.path) == expected


# ---- counts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "both", "vision", "text"),
    [("vit-b-32", 397, 200, 197), ("vit-l-14-336", 589, 392, 197), ("vit-h-14", 909, 520, 389)],
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
    "bare vision": (lambda d: write_tower(d, "vision", prefix=False), ["CLIPVisionModel", "tensors *"]),
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


# ---- llama.cpp itself ------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not is_available(), reason="xllamacpp is not installed (extra: client)")
@pytest.mark.parametrize("outtype", ["f16", "f32"])
@pytest.mark.parametrize("layer", [-1, -2])
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
    features = siglip_features(GGUFModel.read(mmproj), normalized)
    # Measured: 0.006; with quick_gelu 0.014, with one block fewer 2.
    np.testing.assert_allclose(result.logits, predicted_logits(tmp_path / "llama.gguf", features), atol=0.01)


@pytest.mark.skipif(not is_available(), reason="xllamacpp is not installed (extra: client)")
@pytest.mark.parametrize(
    "write",
    [
        lambda d: write_siglip_tower(d, prefix=False),
        lambda d: write_tower(d, "vision", replace(TINY, vision=SIGLIP_VISION), prefix=False),
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
