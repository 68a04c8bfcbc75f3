"""Every family of data: its files are those of llama.cpp's own converter, and its checkpoints are read with care."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipgguf import CheckpointError, ClipGGUFError, Options, convert, inspect, plan, upgrade, verify
from clipgguf.families import MODULES
from clipgguf.options import Outtype
from tests.family_fixtures import DTYPES, OUTTYPES, Fixture, digest, fixtures, rename
from tests.gguf_bytes import rewritten
from tests.gguf_reading import read
from tests.json_files import write_json
from tests.llama_client import ask, is_available
from tests.weights import Shapes

FAMILIES = list(fixtures())


def named(fixture: Any) -> str:
    return fixture.name if isinstance(fixture, Fixture) else str(fixture)


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


@pytest.mark.parametrize("family", FAMILIES, ids=named)
def test_shards_and_their_order_do_not_show(family: Fixture, tmp_path: Path) -> None:
    models = [
        family.write(tmp_path / "a" / "m"),
        family.write(tmp_path / "b" / "m", shards=5),
        family.write(tmp_path / "c" / "m", shards=3, reverse=True),
    ]
    assert len({convert(model, tmp_path / f"{n}.gguf").path.read_bytes() for n, model in enumerate(models)}) == 1


@pytest.mark.parametrize("family", FAMILIES, ids=named)
def test_double_precision_is_rounded_by_way_of_single(family: Fixture, tmp_path: Path) -> None:
    # The values are float32's, so that nothing but the way can make a difference.
    single, double = (convert(family.write(tmp_path / d / "m", d), tmp_path / f"{d}.gguf").path for d in ("F32", "F64"))
    assert single.read_bytes() == double.read_bytes()


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
def test_other_spellings_of_the_names(name: str, changes: list[tuple[str, str]], tmp_path: Path) -> None:
    (family,) = (family for family in FAMILIES if family.name == name)
    expected = convert(family.write(tmp_path / "a" / "m"), tmp_path / "a.gguf").path.read_bytes()
    rename(family.write(tmp_path / "b" / "m"), changes)
    assert convert(tmp_path / "b" / "m", tmp_path / "b.gguf").path.read_bytes() == expected


@pytest.mark.parametrize("name", ["dots_ocr", "exaone4_5", "hunyuan_vl"])
def test_pixels_as_transformers_5_saves_them(name: str, tmp_path: Path) -> None:
    (family,) = (family for family in FAMILIES if family.name == name)
    expected = converted(family, tmp_path).read_bytes()
    processor = dict(family.files["preprocessor_config.json"])
    size = {"shortest_edge": processor.pop("min_pixels"), "longest_edge": processor.pop("max_pixels")}
    files = {**family.files, "processor_config.json": {"image_processor": {**processor, "size": size}}}
    del files["preprocessor_config.json"]
    model = replace(family, files=files).write(tmp_path / "b" / "m")
    assert convert(model, tmp_path / "b.gguf").path.read_bytes() == expected


@pytest.mark.parametrize(
    ("name", "note"), [("qwen2_vl--sarashina2_vision", "norm after the projector"), ("qwen3_omni_moe", "audio encoder")]
)
def test_what_readers_lack_is_left_out_with_a_note(name: str, note: str, tmp_path: Path) -> None:
    (family,) = (family for family in FAMILIES if family.name == name)
    (line,) = plan(family.write(tmp_path / "m")).notes
    assert f"{note} is left out" in line


def one_of_each_kind(family: Fixture, directory: Path) -> list[str]:
    """Return the checkpoint's tensors that are written, without those that differ from others in their block only."""
    tensors = plan(family.write(directory / "whole" / "m")).tensors
    names = {view.name for tensor in tensors for view in tensor.source.stored}
    return sorted(name for name in names if not re.search(r"\.[1-9]\d*\.(?!(?:weight|bias)$)", name))


def with_shapes(family: Fixture, shapes: Shapes, directory: Path) -> Path:
    return replace(family, shapes=shapes).write(directory)


@pytest.mark.parametrize("family", FAMILIES, ids=named)
def test_a_missing_tensor_is_named(family: Fixture, tmp_path: Path) -> None:
    for number, name in enumerate(one_of_each_kind(family, tmp_path)):
        model = with_shapes(family, {n: s for n, s in family.shapes.items() if n != name}, tmp_path / f"{number}")
        with pytest.raises(CheckpointError) as error:
            plan(model)
        (problem,) = error.value.problems
        assert "no file has" in problem
        assert ".".join(name.split(".")[-2:]) in problem


@pytest.mark.parametrize("family", FAMILIES, ids=named)
def test_a_bent_tensor_is_named(family: Fixture, tmp_path: Path) -> None:
    for number, name in enumerate(one_of_each_kind(family, tmp_path)):
        shape = family.shapes[name]
        model = with_shapes(
            family, {**family.shapes, name: (*shape[:-1], (shape or (1,))[-1] + 1)}, tmp_path / f"{number}"
        )
        with pytest.raises(CheckpointError) as error:
            plan(model)
        assert any(repr(name) in problem and "asks for" in problem for problem in error.value.problems)


@pytest.mark.parametrize("family", FAMILIES, ids=named)
def test_an_unknown_tensor_is_named_beside_every_one_that_is_known(family: Fixture, tmp_path: Path) -> None:
    beside = {f"{name.rpartition('.')[0]}.extra": (3,) for name in one_of_each_kind(family, tmp_path)}
    model = with_shapes(family, {**family.shapes, **beside}, tmp_path / "m")
    with pytest.raises(CheckpointError) as error:
        plan(model)
    assert {problem.split("'")[1] for problem in error.value.problems} == beside.keys()
    assert all("unknown" in problem and "--ignore-unknown" in problem for problem in error.value.problems)
    ignoring = convert(model, tmp_path / "a.gguf", Options(ignore_unknown=True))
    assert len(ignoring.warnings) == len(beside)
    whole = convert(tmp_path / "whole" / "m", tmp_path / "b.gguf").path
    assert ignoring.path.read_bytes() == whole.read_bytes()


def places(config: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the keys of all numbers that the tables read, by their paths."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield from places(value, (*path, key))
        elif type(value) in (int, float):
            yield (*path, key)


MORE_NUMBERS: tuple[Any, ...] = (-1, 2**200, True, "7", {})


@pytest.mark.parametrize(
    "value", [0, 1e400, [7], *(pytest.param(n, marks=pytest.mark.slow) for n in MORE_NUMBERS)], ids=str
)
@pytest.mark.parametrize("family", FAMILIES, ids=named)
def test_hostile_numbers_in_the_configuration(family: Fixture, value: Any, tmp_path: Path) -> None:
    expected = convert(family.write(tmp_path / "m"), tmp_path / "a.gguf").path.read_bytes()
    refused = 0
    for path in places(family.files[family.config_name]):
        files = json.loads(json.dumps(family.files))
        where = files[family.config_name]
        for key in path[:-1]:
            where = where[key]
        where[path[-1]] = value
        write_json(tmp_path / "m" / family.config_name, files[family.config_name])
        try:
            result = convert(tmp_path / "m", tmp_path / "b.gguf").path.read_bytes()
        except ClipGGUFError as error:
            refused += 1
            assert any(path[-1] in problem or "asks for" in problem for problem in error.problems), error
        else:  # It is none that matters here, or the number of a block, counted from 0.
            assert result == expected or (path[-1], value) == ("insert_layer_id", 0), path
    assert refused >= 3


def converted(family: Fixture, directory: Path) -> Path:
    return convert(family.write(directory / "m"), directory / "x.gguf").path


@pytest.mark.parametrize("family", FAMILIES, ids=named)
def test_inspect_knows_the_family(family: Fixture, tmp_path: Path) -> None:
    path = converted(family, tmp_path)
    inspection = inspect(path)
    (tower,) = inspection.towers
    assert inspection.found == f"mmproj for {tower.family}"
    # Gemma 3n's block_count is a number that no reader uses.
    assert tower.blocks == tower.blocks_stored == tower.blocks_run or (tower.blocks, tower.blocks_run) == (128, None)
    assert [verdict.reads for verdict in inspection.verdicts] == [False, False, True]
    with pytest.raises(CheckpointError, match="lacks nothing"):
        upgrade(path)


# What llama.cpp has a default for, which some files mean, and what it does not ask for.
DISPENSABLE = {
    "clip.rope.freq_base",
    "clip.vision.projector.scale_factor",
    "clip.vision.preproc_min_tiles",
    "clip.vision.preproc_max_tiles",
    "clip.has_text_encoder",
    "clip.has_minicpmv_projector",
}
# Keys without which a reader takes something else, so that a tensor is what does not fit.
CONTRADICTED = {"clip.vision.spatial_merge_size": "mm.patch_merger.weight"}


@pytest.mark.parametrize("family", FAMILIES, ids=named)
def test_llama_cpp_is_said_to_refuse_what_lacks_anything(family: Fixture, tmp_path: Path) -> None:
    path = converted(family, tmp_path)
    ours = [item.key for item in inspect(path).metadata if item.key.startswith("clip.")]
    for name in (*family.tensors, *ours):
        if name in DISPENSABLE or re.search(r"\.[1-9]\.", name.replace("weight.1", "")):
            continue
        changed = rewritten(path, tmp_path / "y.gguf", without=[name])
        verdict = inspect(changed).verdicts[-1]
        assert verdict.reads is not True, name
        # Without a name for the projector, it is taken for LLaVA's.
        either = (name, CONTRADICTED.get(name, name))
        assert name.endswith("projector_type") or any(n in reason for n in either for reason in verdict.reasons), name


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES, ids=named)
def test_verify_finds_any_flipped_bit(family: Fixture, tmp_path: Path) -> None:
    path = converted(family, tmp_path)
    assert verify(path, tmp_path / "m").agrees
    data = bytearray(path.read_bytes())
    for tensor in inspect(path).tensors:
        position = tensor.offset + tensor.nbytes // 2
        data[position] ^= 1
        path.write_bytes(data)
        problems = verify(path, tmp_path / "m").problems
        assert len(problems) == 1
        assert repr(tensor.name) in problems[0]
        data[position] ^= 1


@pytest.mark.parametrize("family", FAMILIES, ids=named)
def test_what_does_not_apply_is_refused(family: Fixture, tmp_path: Path) -> None:
    model = family.write(tmp_path / "m")
    for options in (Options(feature_layer=-2), Options(vocab=tmp_path), Options(keep_last_layer=True)):
        with pytest.raises(ValueError, match=r"(is|are) for .*; .* gives an image encoder (of|for)"):
            plan(model, options)


@pytest.mark.skipif(not is_available(), reason="xllamacpp is not installed (extra: client)")
@pytest.mark.parametrize("family", FAMILIES, ids=named)
def test_llama_cpp_answers_about_a_picture(family: Fixture, tmp_path: Path) -> None:
    if family.unrunnable:
        pytest.skip(family.unrunnable)
    result = ask(converted(family, tmp_path), tmp_path)
    assert result.ok, result.errors
    assert np.isfinite(result.logits).all()
