"""Every family of data: its files are those of llama.cpp's own converter, and llama.cpp runs them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from clipgguf import CheckpointError, Options, convert, inspect, plan, upgrade
from clipgguf.families import MODULES
from clipgguf.options import Outtype
from tests.family_fixtures import DTYPES, OUTTYPES, Fixture, Write, digest, fixtures, mostly_slow, named, rename
from tests.gguf_reading import read
from tests.llama_client import ask, is_available

FAMILIES = fixtures()


def test_every_family_of_data_has_a_fixture() -> None:
    data = MODULES.keys() - {"clip", "llava"}
    assert data == {fixture.module for fixture in FAMILIES}


# Each dtype and each outtype once; the other pairs are slow for so many families.
DEFAULT_PAIRS = (("F32", "q8_0"), ("F16", "f32"), ("BF16", "f16"), ("F32", "bf16"))
PAIRS = [
    pytest.param(dtype, outtype, marks=() if (dtype, outtype) in DEFAULT_PAIRS else pytest.mark.slow)
    for dtype in DTYPES
    for outtype in OUTTYPES
]


@pytest.mark.parametrize(("dtype", "outtype"), PAIRS)
@pytest.mark.parametrize("family", FAMILIES, ids=named)
def test_files_are_the_references(family: Fixture, dtype: str, outtype: Outtype, tmp_path: Path) -> None:
    model = family.write(tmp_path / family.name, dtype, shards=2)
    found = read(convert(model, tmp_path / "out.gguf", Options(outtype=outtype)).path)
    tensors = {name: (t.tensor_type.name, t.shape[::-1], digest(t.data.tobytes())) for name, t in found.tensors.items()}
    assert tensors == {
        name: (expected.types[outtype], list(expected.shape), expected.hashes[f"{dtype} {expected.types[outtype]}"])
        for name, expected in family.tensors.items()
    }
    metadata = {
        name: [" ".join(kind.name for kind in found.types[name]), value] for name, value in found.metadata.items()
    }
    assert family.metadata.items() <= metadata.items()
    assert {name for name in metadata if name.startswith("clip.")} <= family.metadata.keys()


@pytest.mark.parametrize("family", mostly_slow(), ids=named)
def test_double_precision_is_rounded_by_way_of_single(family: Fixture, written: Write, tmp_path: Path) -> None:
    # The values are float32's, so that nothing but the way can make a difference.
    double = convert(family.write(tmp_path / "m", "F64"), tmp_path / "double.gguf").path
    assert written(family).file.read_bytes() == double.read_bytes()


# Other spellings of a fixture's names, as regular expressions and what takes their place: those of other versions of
# transformers, of what it saves and of what is on the hub.
SPELLINGS = {
    "exaone4_5": [[(r"^model\.visual\.", "visual.")]],
    "glm4v": [[(r"^model\.visual\.", "visual."), (r"^model\.language_model\.", "model.")]],
    "hunyuan_vl": [
        [
            (r"^model\.", "model.language_model."),
            (r"^vit\.", "model.vision_tower."),
            (r"\.perceive\.", ".patch_merger."),
            (r"\.proj\.0\.", ".proj_conv."),
            (r"\.proj\.2\.", ".proj_out."),
            (r"tower(\.layers\.\d+)\.input_layernorm\.", r"tower\1.layer_norm1."),
            (r"tower(\.layers\.\d+)\.post_attention_layernorm\.", r"tower\1.layer_norm2."),
            (r"\.dense_h_to_4h\.", ".fc1."),
            (r"\.dense_4h_to_h\.", ".fc2."),
        ],
    ],
    "minimax_m3": [
        [
            (r"^language_model\.model\.", "model.language_model."),
            (r"^language_model\.lm_head", "lm_head"),
            (r"^vision_tower\.vision_model\.embeddings\.patch_embedding\.", "model.vision_tower.embeddings.proj."),
            (r"^vision_tower\.vision_model\.(encoder\.)?", "model.vision_tower."),
            (r"^multi_modal_projector\.", "model.multi_modal_projector."),
            (r"^patch_merge_mlp\.", "model.multi_modal_projector.merge_"),
        ],
    ],
    "qwen2_vl": [[(r"^visual\.", "model.visual."), (r"^model\.(?!visual\.)", "model.language_model.")]],
    "kimi_k25": [
        [
            (r"^vision_tower\.patch_embed\.proj", "vision_tower.encoder.patch_embed.proj"),
            (r"^mm_projector\.pre_norm", "model.mm_projector.pre_norm"),
        ],
        [(r"^language_model.model", "model.language_model"), (r"^(mm_proj|vision_)", r"model.\1")],
        [(r"^mm_projector\.proj\.0", "mm_projector.in_proj"), (r"^mm_projector\.proj\.2", "mm_projector.out_proj")],
    ],
    "kimi_vl": [[(r"^(multi_|vision_)", r"model.\1")]],
    "lighton_ocr": [
        [("^model.vision_encoder", "vision_tower"), ("^model.vision_projection", "multi_modal_projector")],
        [("^model.language_model", "language_model.model")],
    ],
    "ling3_vl": [[(r"^model\.visual", "visual")]],
    "muse_glimmer": [[(r"^model\.", "")]],
    "pixtral": [
        [
            (r"^language_model\.model\.", "model.language_model."),
            (r"^language_model\.lm_head", "lm_head"),
            (r"^(vision_tower|multi_modal_projector)", r"model.\1"),
        ],
        [(r"^language_model\.model\.", "model.")],
    ],
}


@pytest.mark.parametrize(
    ("name", "changes"), [(name, changes) for name, spellings in SPELLINGS.items() for changes in spellings]
)
def test_other_spellings_of_the_names(
    name: str, changes: list[tuple[str, str]], written: Write, tmp_path: Path
) -> None:
    (family,) = (family for family in FAMILIES if family.name == name)
    rename(family.write(tmp_path / "m"), changes)
    assert convert(tmp_path / "m", tmp_path / "b.gguf").path.read_bytes() == written(family).file.read_bytes()


@pytest.mark.parametrize("name", ["dots_ocr", "exaone4_5", "hunyuan_vl"])
def test_pixels_as_transformers_5_saves_them(name: str, written: Write, tmp_path: Path) -> None:
    (family,) = (family for family in FAMILIES if family.name == name)
    processor = dict(family.files["preprocessor_config.json"])
    size = {"shortest_edge": processor.pop("min_pixels"), "longest_edge": processor.pop("max_pixels")}
    files = {**family.files, "processor_config.json": {"image_processor": {**processor, "size": size}}}
    del files["preprocessor_config.json"]
    model = replace(family, files=files).write(tmp_path / "m")
    assert convert(model, tmp_path / "b.gguf").path.read_bytes() == written(family).file.read_bytes()


@pytest.mark.parametrize(
    ("name", "note"), [("qwen2_vl--sarashina2_vision", "norm after the projector"), ("qwen3_omni_moe", "audio encoder")]
)
def test_what_readers_lack_is_left_out_with_a_note(name: str, note: str, tmp_path: Path) -> None:
    (family,) = (family for family in FAMILIES if family.name == name)
    (line,) = plan(family.write(tmp_path / "m")).notes
    assert f"{note} is left out" in line


@pytest.mark.parametrize("family", FAMILIES, ids=named)
def test_inspect_knows_the_family(family: Fixture, written: Write) -> None:
    path = written(family).file
    inspection = inspect(path)
    (tower,) = inspection.towers
    assert inspection.found == f"mmproj for {tower.family}"
    # Gemma 3n's block_count is a number that no reader uses.
    assert tower.blocks == tower.blocks_stored == tower.blocks_run or (tower.blocks, tower.blocks_run) == (128, None)
    assert [verdict.reads for verdict in inspection.verdicts] == [False, False, True]
    with pytest.raises(CheckpointError, match="lacks nothing"):
        upgrade(path)


@pytest.mark.parametrize("family", mostly_slow(), ids=named)
def test_what_does_not_apply_is_refused(family: Fixture, written: Write, tmp_path: Path) -> None:
    model = written(family).model
    for options in (Options(feature_layer=-2), Options(vocab=tmp_path), Options(keep_last_layer=True)):
        with pytest.raises(ValueError, match=r"(is|are) for .*; .* gives an image encoder (of|for)"):
            plan(model, options)


@pytest.mark.skipif(not is_available(), reason="xllamacpp is not installed (extra: client)")
@pytest.mark.parametrize("family", mostly_slow(), ids=named)
def test_llama_cpp_answers_about_a_picture(family: Fixture, written: Write, tmp_path: Path) -> None:
    if family.unrunnable:
        pytest.skip(family.unrunnable)
    result = ask(written(family).file, tmp_path)
    assert result.ok, result.errors
    assert np.isfinite(result.logits).all()
