"""Verification: what a conversion wrote agrees with its checkpoint, and nothing else does."""

import json
import random
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFValueType, quants

from clipgguf import CheckpointError, ConfigError, Options, Verification, convert, verify
from clipgguf.checkpoint.gguf_file import MetadataItem
from clipgguf.checkpoint.gguf_reader import read_gguf
from clipgguf.encode import SCRATCH_NBYTES, SOURCE_DTYPES, encoder
from clipgguf.options import Outtype
from clipgguf.sources.local import LocalFile
from clipgguf.verification.values import COMPARABLE, PIECE, compare_values
from tests import layouts
from tests.checkpoints import (
    TINY,
    edit_json,
    to_dtype,
    write_json,
    write_model,
)
from tests.conftest import Run
from tests.gguf_bytes import rewritten
from tests.llava_checkpoints import (
    SPELLINGS,
    VISION_24,
    Llava,
    write_clip,
    write_hf,
    write_original,
    write_projector,
    write_tower,
    write_vision_config,
)
from tests.processes import on_a_terminal

OUTTYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
QUANTIZED = OUTTYPES[3:]


def verdicts(result: Verification) -> dict[str, str]:
    return {tensor.name: tensor.verdict for tensor in result.tensors}


def bad(result: Verification) -> dict[str, str]:
    return {tensor.name: tensor.verdict for tensor in result.tensors if not tensor.is_good}


def changed(path: Path, offset: int, data: bytes) -> Path:
    """Copy a file with other bytes from an offset on."""
    content = bytearray(path.read_bytes())
    content[offset : offset + len(data)] = data
    to = path.with_name("changed.gguf")
    to.write_bytes(content)
    return to


# ---- what agrees -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outtype", OUTTYPES)
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16", "F64"])
def test_a_conversion_agrees(outtype: Outtype, dtype: str, tmp_path: Path) -> None:
    model = write_model(tmp_path / "m", dtype=dtype)
    result = verify(convert(model, tmp_path, options=Options(outtype=outtype)).path, model)
    assert result.agrees
    assert (result.problems, result.notes, result.outtype) == ((), (), outtype)
    found = {tensor.ggml_type: set[str]() for tensor in result.tensors}
    for tensor in result.tensors:
        assert tensor.comparison is not None
        found[tensor.ggml_type].add(tensor.verdict)
        assert 0 <= tensor.comparison.mean_error <= tensor.comparison.worst_error
        assert tensor.comparison.worst_of_allowed <= 1.001
        assert (tensor.verdict == "exact") == (tensor.comparison.worst_error == 0)
    # Of float64 the tests write values that float32 holds.
    assert found["F32"] == {"exact"}
    assert found["F16"] == ({"exact"} if dtype == "F16" else {"rounded"} if dtype != "BF16" else found["F16"])
    if outtype == "bf16":
        assert found["BF16"] == ({"exact"} if dtype == "BF16" else {"rounded"})
    if outtype in QUANTIZED:
        assert found[outtype.upper()] == {"rounded"}


Case = tuple[Path, dict[str, Any], dict[str, Any]]


def _clip_and_projector(directory: Path, **llava: Any) -> Case:
    sizes = Llava(**llava)
    shared = {"llava_projector": write_projector(directory / "mm_projector.bin", sizes)}
    return write_clip(directory / "m", sizes, suffix=".bin"), shared, shared


def _elsewhere(directory: Path, **options: Any) -> Case:
    shared = {"vision_tower": write_tower(directory / "tower", Llava())}
    return write_original(directory / "m", Llava(), shards=2), shared | options, shared


def _inside(directory: Path) -> Case:
    llava = Llava(has_newline=True)
    shared = {"vision_config": write_vision_config(directory / "vision.json", llava)}
    return write_original(directory / "m", llava, tower="inside", dtype="BF16"), shared, shared


def _two_vocabularies(directory: Path) -> Case:
    model = write_model(directory / "m")
    (model / "vocab.json").rename(directory / "vocab.json")
    shared = {"vocab": directory, "image_mean": [0.1, 0.2, 0.3], "image_std": [1, 2, 3]}
    return model, shared, shared


def _transformers(spelling: str, directory: Path) -> Case:
    return write_hf(directory / "m", Llava(has_newline=True), spelling=spelling), {}, {}


CASES: dict[str, Callable[[Path], Case]] = {
    "shards": lambda d: (write_model(d / "m", shards=3), {}, {}),
    "text": lambda d: (write_model(d / "m"), {"text_only": True}, {}),
    "vision": lambda d: (write_model(d / "m"), {"vision_only": True}, {}),
    "options": _two_vocabularies,
    "unknown tensors": lambda d: (
        write_model(d / "m", extra={"other": (3,)}),
        {"ignore_unknown": True},
        {"ignore_unknown": True},
    ),
    ".bin": lambda d: (layouts.write_clip(d / "m", suffix=".bin", dtype="F16"), {}, {}),
    "vision tower": lambda d: (layouts.write_tower(d / "m", "vision", projection=True, prefix=False), {}, {}),
    "text tower": lambda d: (layouts.write_tower(d / "m", "text", projection=False), {}, {}),
    "OpenCLIP": lambda d: (layouts.write_open_clip(d / "m"), {"outtype": "q8_0"}, {}),
    "OpenCLIP .bin": lambda d: (layouts.write_open_clip(d / "m", suffix=".bin"), {"vision_only": True}, {}),
    "SigLIP": lambda d: (layouts.write_siglip(d / "m"), {"vision_only": True}, {}),
    "SigLIP tower": lambda d: (layouts.write_siglip_tower(d / "m"), {}, {}),
    "CLIP and projector": _clip_and_projector,
    "ldp": lambda d: _clip_and_projector(d, vision=VISION_24, projector="ldp", text_width=16),
    "ldpv2": lambda d: _clip_and_projector(d, vision=VISION_24, projector="ldpv2", text_width=16),
    "mlp with norms": lambda d: _clip_and_projector(d, projector="mlp_norm"),
    "tower elsewhere": _elsewhere,
    "tower elsewhere, whole": lambda d: _elsewhere(d, keep_last_layer=True),
    "tower elsewhere, q4_0": lambda d: _elsewhere(d, outtype="q4_0"),
    "tower inside": _inside,
    "tower in a folder": lambda d: (write_original(d / "m", Llava(), tower="folder"), {}, {}),
    **{f"transformers {name}": partial(_transformers, name) for name in SPELLINGS},
    "SigLIP in LLaVA": lambda d: (layouts.write_siglip_llava(d / "m"), {}, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_every_layout_agrees(case: str, tmp_path: Path) -> None:
    model, options, shared = CASES[case](tmp_path)
    result = verify(convert(model, tmp_path / "out", options=Options(**options)).path, model, options=Options(**shared))
    assert (result.problems, result.notes) == ((), ())
    assert [warning.rsplit("; ", 1)[1] for warning in result.warnings] == ["it is left out"] * (
        case == "unknown tensors"
    )


def test_another_feature_layer_is_noted(tmp_path: Path) -> None:
    model = write_hf(tmp_path / "m", Llava())
    for number, options in enumerate(({"feature_layer": 2}, {"feature_layer": 2, "keep_last_layer": True})):
        result = verify(convert(model, tmp_path / str(number), options=Options(**options)).path, model)  # type: ignore[arg-type]
        assert result.agrees
        assert [note.split(",")[0] for note in result.notes] == ["the projector takes the features of layer 2"]


def test_all_blocks_stored_for_an_earlier_layer(tmp_path: Path) -> None:
    # As --keep-last-layer was before: all four blocks, and not just one more than the two that are run.
    model = write_hf(tmp_path / "m", Llava())
    path = convert(model, tmp_path, options=Options(keep_last_layer=True)).path
    layer = MetadataItem("clip.vision.feature_layer", T.INT32, [2])
    result = verify(rewritten(path, tmp_path / "x.gguf", metadata=[layer]), model)
    assert (result.problems, len(result.tensors)) == ((), len(read_gguf(LocalFile(path)).tensors))


def test_a_layer_chosen_where_the_configuration_asks_for_several(tmp_path: Path) -> None:
    model = write_hf(tmp_path / "m", Llava(feature_layer=[-2, -3]))
    path = convert(model, tmp_path, options=Options(feature_layer=-2)).path
    assert verify(path, model).agrees
    with pytest.raises(ConfigError, match="several layers"):
        verify(rewritten(path, tmp_path / "x.gguf", without=["clip.vision.feature_layer"]), model)


@pytest.mark.parametrize("threads", [1, 5])
def test_results_do_not_depend_on_threads(threads: int, model: Path, tmp_path: Path) -> None:
    path = convert(model, tmp_path).path
    seen: list[tuple[int, int]] = []
    result = verify(path, model, threads=threads, progress=lambda done, total: seen.append((done, total)))
    assert result == verify(path, model)
    total = (model / "model.safetensors").stat().st_size
    assert seen[-1][0] == seen[-1][1] < total < seen[-1][1] + 20_000
    assert sorted(seen) == seen


# ---- what does not ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outtype", OUTTYPES)
def test_one_flipped_bit_anywhere(outtype: Outtype, model: Path, tmp_path: Path) -> None:
    path = convert(model, tmp_path, options=Options(outtype=outtype)).path
    content, tensors = path.read_bytes(), read_gguf(LocalFile(path)).tensors
    chosen = random.Random(outtype)
    by_type = {tensor.dtype: [t for t in tensors if t.dtype == tensor.dtype] for tensor in tensors}
    for same in by_type.values():
        for tensor in chosen.sample(same, min(3, len(same))):
            byte, bit = chosen.randrange(tensor.nbytes), chosen.randrange(8)
            offset = tensor.offset + byte
            result = verify(changed(path, offset, bytes([content[offset] ^ 1 << bit])), model)
            assert bad(result) == {tensor.name: "differs"}, (byte, bit)
            check = next(check for check in result.tensors if check.name == tensor.name)
            assert check.comparison is not None
            assert check.comparison.differing == 1
            elements = int(np.prod(tensor.shape)) * byte // tensor.nbytes
            block = 32 if check.units == "blocks" else 1
            assert check.comparison.first == elements // block * block
            assert check.first_difference == tuple(map(int, np.unravel_index(elements // block * block, tensor.shape)))
            assert len(result.problems) == 1


def test_the_lowest_bit_of_a_scale_and_of_a_level(model: Path, tmp_path: Path) -> None:
    path = convert(model, tmp_path, options=Options(outtype="q4_0")).path
    content = path.read_bytes()
    tensor = next(tensor for tensor in read_gguf(LocalFile(path)).tensors if tensor.dtype == "Q4_0")
    for byte in (0, 2, 18, 18 * 7 + 17):
        offset = tensor.offset + byte
        result = verify(changed(path, offset, bytes([content[offset] ^ 1])), model)
        assert bad(result) == {tensor.name: "differs"}
        assert f"in 1 block, first at [{byte // 18}, 0]" in result.problems[0]


def test_the_sign_of_a_zero(tmp_path: Path) -> None:
    stored = np.array([0, 1], "<f2")
    for source, differing in ((np.array([0, 1], "<f4"), 0), (np.array([-0.0, 1], "<f4"), 1)):
        result = compare_values(source.view("u1"), "F32", stored.view("u1"), GGMLQuantizationType.F16)
        assert (result.differing, result.worst_error) == (differing, 0)


K, Q = "v.blk.1.attn_k", "v.blk.1.attn_q"


@pytest.mark.parametrize("outtype", ["f16", "q8_0"])
@pytest.mark.parametrize(
    ("renamed", "wrong"),
    [
        ({"t.blk.0.attn_v.weight": "t.blk.1.attn_v.weight", "t.blk.1.attn_v.weight": "t.blk.0.attn_v.weight"},
         {"t.blk.0.attn_v.weight", "t.blk.1.attn_v.weight"}),
        ({"v.blk.1.ln1.bias": "v.blk.1.ln2.bias", "v.blk.1.ln2.bias": "v.blk.1.ln1.bias"},
         {"v.blk.1.ln1.bias", "v.blk.1.ln2.bias"}),
        ({K: Q, Q: K}, {f"{name}.{kind}" for name in (K, Q) for kind in ("weight", "bias")}),
    ],
    ids=["matrices", "norms", "q and k"],
)  # fmt: skip
def test_exchanged_tensors(
    renamed: dict[str, str], wrong: set[str], outtype: Outtype, model: Path, tmp_path: Path
) -> None:
    path = convert(model, tmp_path, options=Options(outtype=outtype)).path
    assert verify(rewritten(path, tmp_path / "same.gguf"), model).agrees
    result = verify(rewritten(path, tmp_path / "x.gguf", renamed=renamed), model)
    assert bad(result) == dict.fromkeys(wrong, "differs")


@pytest.mark.parametrize("outtype", OUTTYPES)
def test_a_transposed_square_matrix(outtype: Outtype, model: Path, tmp_path: Path) -> None:
    path = convert(model, tmp_path, options=Options(outtype=outtype)).path
    tensor = next(tensor for tensor in read_gguf(LocalFile(path)).tensors if tensor.name == "t.blk.1.attn_out.weight")
    assert tensor.shape == (32, 32)
    ggml_type = GGMLQuantizationType[tensor.dtype]
    data = np.frombuffer(path.read_bytes()[tensor.offset :][: tensor.nbytes], np.uint8)
    transposed = quants.dequantize(data.reshape(32, -1), ggml_type).T
    result = verify(changed(path, tensor.offset, quants.quantize(transposed, ggml_type).tobytes()), model)
    assert bad(result) == {tensor.name: "differs"}
    check = next(check for check in result.tensors if check.name == tensor.name)
    assert check.comparison is not None
    assert check.comparison.worst_of_allowed > 2
    assert result.tensors[0].badness < check.badness == max(check.badness for check in result.tensors)


def test_a_missing_block(model: Path, tmp_path: Path) -> None:
    path = convert(model, tmp_path).path
    names = [tensor.name for tensor in read_gguf(LocalFile(path)).tensors if tensor.name.startswith("v.blk.2.")]
    result = verify(rewritten(path, tmp_path / "x.gguf", without=names), model)
    assert bad(result) == dict.fromkeys(names, "missing")
    assert f"tensor 'v.blk.2.attn_k.weight' is missing, the checkpoint has it as {HF_K!r}" in result.problems


HF_K = "vision_model.encoder.layers.2.self_attn.k_proj.weight"


def test_an_extra_block(model: Path, tmp_path: Path) -> None:
    path = convert(model, tmp_path).path
    result = verify(rewritten(path, tmp_path / "x.gguf", tensors={"v.blk.3.ln1.bias": np.zeros(48, "f4")}), model)
    assert bad(result) == {"v.blk.3.ln1.bias": "unexpected"}
    assert result.problems == (
        "tensor 'v.blk.3.ln1.bias' is unexpected, a conversion of the checkpoint gives none of that name",
    )


def test_blocks_of_an_mmproj(tmp_path: Path) -> None:
    model = write_hf(tmp_path / "m", Llava())
    path = convert(model, tmp_path).path
    blocks = MetadataItem("clip.vision.block_count", GGUFValueType.UINT32, 2)
    names = [tensor.name for tensor in read_gguf(LocalFile(path)).tensors if tensor.name.startswith("v.blk.2.")]
    result = verify(rewritten(path, tmp_path / "x.gguf", without=names, metadata=[blocks]), model)
    assert bad(result) == dict.fromkeys(names, "missing")
    assert result.problems[-1] == "metadata key 'clip.vision.block_count' is 2, should be 3"
    layers = MetadataItem("clip.vision.feature_layer", GGUFValueType.INT32, [7])
    result = verify(rewritten(path, tmp_path / "y.gguf", metadata=[layers]), model)
    assert result.problems == ("metadata key 'clip.vision.feature_layer' is 7 at index 0, should be 3",)


@pytest.mark.parametrize("outtype", OUTTYPES)
def test_a_sibling_that_was_tuned_a_little_further(outtype: Outtype, model: Path, tmp_path: Path) -> None:
    path = convert(model, tmp_path, options=Options(outtype=outtype)).path
    weights = model / "model.safetensors"
    content = bytearray(weights.read_bytes())
    header_length = int.from_bytes(content[:8], "little")
    name = "text_model.encoder.layers.1.mlp.fc1.weight"
    start, stop = json.loads(content[8 : 8 + header_length])[name]["data_offsets"]
    part = np.frombuffer(content, "<f4", (stop - start) // 4, 8 + header_length + start)
    part *= np.float32(1.001)
    weights.write_bytes(content)
    result = verify(path, model)
    assert bad(result) == {"t.blk.1.ffn_down.weight": "differs"}


def test_a_wrong_shape(model: Path, tmp_path: Path) -> None:
    path = convert(model, tmp_path).path
    name = "v.blk.0.ln1.bias"
    result = verify(rewritten(path, tmp_path / "x.gguf", without=[name], tensors={name: np.zeros(47, "f4")}), model)
    assert bad(result) == {name: "wrong shape"}
    assert result.problems == (f"tensor {name!r} has shape (47,), should have (48,)",)


# ---- metadata --------------------------------------------------------------------------------------------------------

T = GGUFValueType


@pytest.mark.parametrize(
    ("item", "problem"),
    [
        (MetadataItem("clip.vision.image_size", T.UINT32, 336), "is 336, should be 28"),
        (MetadataItem("clip.use_gelu", T.BOOL, True), "is True, should be False"),
        (MetadataItem("clip.vision.image_mean", T.FLOAT32, [0.48145466, 0.5, 0.4]),
         "is 0.5 at index 1, should be 0.4578275"),
        (MetadataItem("clip.text.attention.layer_norm_epsilon", T.FLOAT32, 1e-6), "is 1e-06, should be 1e-05"),
        (MetadataItem("clip.text.block_count", T.UINT64, 2), "is of type UINT64, should be UINT32"),
        (MetadataItem("clip.vision.image_std", T.FLOAT32, 0.5), "is of type FLOAT32, should be ARRAY of FLOAT32"),
        (MetadataItem("clip.has_text_encoder", T.BOOL, False), "is False, should be True"),
    ],
)  # fmt: skip
def test_a_changed_value(item: MetadataItem, problem: str, model: Path, tmp_path: Path) -> None:
    path = rewritten(convert(model, tmp_path).path, tmp_path / "x.gguf", metadata=[item])
    result = verify(path, model)
    assert not result.agrees
    assert result.problems == (f"metadata key {item.key!r} {problem}",)
    assert not bad(result)


def test_missing_and_extra_keys(model: Path, tmp_path: Path) -> None:
    extra = MetadataItem("general.author", T.STRING, "somebody")
    path = convert(model, tmp_path).path
    result = verify(rewritten(path, tmp_path / "x.gguf", metadata=[extra], without=["clip.use_gelu"]), model)
    assert result.problems == ("metadata key 'clip.use_gelu' is missing, should be False",)
    assert result.notes == ("metadata key 'general.author' is one that no conversion writes",)


def test_the_model_was_renamed(model: Path, tmp_path: Path) -> None:
    path = convert(model, tmp_path).path
    result = verify(path, model.rename(tmp_path / "other"))
    assert result.agrees
    assert result.notes == ("metadata key 'general.name' is 'tiny-clip', should be 'other'",)


def test_another_vocabulary(model: Path, tmp_path: Path) -> None:
    path = convert(model, tmp_path).path
    vocabulary = {f"tok{i}</w>": i for i in range(TINY.text.vocab_size)}
    write_json(model / "vocab.json", {"other" if i == 7 else token: i for token, i in vocabulary.items()})
    key = "metadata key 'tokenizer.ggml.tokens'"
    assert verify(path, model).problems == (f"{key} is 'tok7</w>' at index 7, should be 'other'",)
    write_json(model / "vocab.json", {token: i for token, i in vocabulary.items() if i < 98})
    assert verify(path, model).problems == (f"{key} has 99 values, should have 98",)


def test_a_file_of_the_script_lacks_two_keys(tmp_path: Path) -> None:
    model = write_hf(tmp_path / "m", Llava())
    keys = ("clip.projector_type", "clip.vision.feature_layer")
    old = rewritten(convert(model, tmp_path).path, tmp_path / "old.gguf", without=keys)
    result = verify(old, model)
    assert not bad(result)
    assert result.problems == (
        "metadata key 'clip.projector_type' is missing, should be 'mlp'",
        "metadata key 'clip.vision.feature_layer' is missing, should be [3]",
    )
    assert result.notes == ("clipgguf upgrade adds clip.projector_type and clip.vision.feature_layer",)


# ---- other types, other models ---------------------------------------------------------------------------------------


def test_other_types_are_noted_and_compared(tmp_path: Path) -> None:
    # The checkpoint is f16, so that another program that quantizes an f16 file gives the same.
    model = write_model(tmp_path / "m", dtype="F16")
    types = {f"t.blk.{i}.ffn_up.weight": GGMLQuantizationType.Q4_1 for i in (0, 1)}
    path = rewritten(convert(model, tmp_path).path, tmp_path / "x.gguf", types=types)
    result = verify(path, model)
    assert result.agrees
    assert result.notes == (
        "2 tensors are of type Q4_1, where a conversion to f16 gives F16; compared by the type that the file has",
    )
    assert {verdicts(result)[name] for name in types} == {"rounded"}


def test_a_file_type_that_is_not_ours(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m")
    for outtype in ("f32", "q5_0"):
        item = MetadataItem("general.file_type", T.UINT32, 15)
        path = rewritten(
            convert(model, tmp_path, options=Options(outtype=outtype)).path, tmp_path / "x.gguf", metadata=[item]
        )
        result = verify(path, model)
        # Most bytes of the tiny model's matrices are f16 in the quantized file, whose types are then noted.
        assert result.outtype == ("f32" if outtype == "f32" else "f16")
        assert not bad(result)
        assert "metadata key 'general.file_type' is 15, should be " in result.problems[0]


def test_a_type_to_which_nothing_rounds(model: Path, tmp_path: Path) -> None:
    name = "v.blk.0.ln1.bias"
    doubles = {name: np.zeros(48, np.float64)}
    path = convert(model, tmp_path).path
    result = verify(rewritten(path, tmp_path / "x.gguf", without=[name], tensors=doubles), model)
    assert bad(result) == {name: "unknown type"}
    assert result.problems == (f"tensor {name!r} is of type F64, whose values cannot be verified",)


def test_a_projector_that_was_not_given(tmp_path: Path) -> None:
    model, options, _ = _clip_and_projector(tmp_path)
    path = convert(model, tmp_path, options=Options(**options)).path
    with pytest.raises(CheckpointError, match=r"has a LLaVA projector, .* has none; --llava-projector takes it"):
        verify(path, model)
    result = verify(convert(model, tmp_path, options=Options(vision_only=True)).path, model, options=Options(**options))
    assert {tensor.verdict for tensor in result.tensors if tensor.name.startswith("mm.")} == {"missing"}


def test_a_file_of_something_else(model: Path, tmp_path: Path) -> None:
    path = convert(model, tmp_path).path
    names = [tensor.name for tensor in read_gguf(LocalFile(path)).tensors]
    keys = [item.key for item in read_gguf(LocalFile(path)).metadata]
    other = rewritten(path, tmp_path / "x.gguf", without=names + keys)
    with pytest.raises(CheckpointError, match="is no GGUF file of CLIP, it has neither towers nor a projector"):
        verify(other, model)
    with pytest.raises(CheckpointError, match="is no GGUF file"):
        verify(model / "model.safetensors", model)
    with pytest.raises(ValueError, match="threads is 0"):
        verify(path, model, threads=0)


def test_a_model_of_another_depth(model: Path, tmp_path: Path) -> None:
    path = convert(model, tmp_path).path
    edit_json(model / "config.json", lambda config: config["vision_config"].update(num_hidden_layers=4))
    with pytest.raises(CheckpointError, match="no file has tensor 'vision_model"):
        verify(path, model)


# ---- values ----------------------------------------------------------------------------------------------------------


def special_values() -> Any:
    """Every float16 and every bfloat16, and float32 around the ties and the largest values of both."""
    bits = np.arange(1 << 16, dtype="<u4")
    singles = [bits.astype("<u2").view("<f2").astype("<f4"), (bits << 16).view("<f4")]
    singles += [((bits << 16) + offset).view("<f4") for offset in (0x7FFF, 0x8000, 0x8001, 0x1000, 0xFFF, 0x1001)]
    singles.append(np.random.RandomState(0).standard_normal(PIECE).astype("<f4"))
    return np.concatenate(singles)


def encoded(source: Any, dtype: str, ggml_type: GGMLQuantizationType) -> Any:
    codec = encoder(dtype, ggml_type)
    if codec.encode is None:
        return source.view("u1").copy()
    target = np.empty(codec.nbytes(len(source)), "u1")
    codec.encode(source.copy(), target.view(codec.target_dtype), np.empty(SCRATCH_NBYTES, "u1"))
    return target


@pytest.mark.parametrize("ggml_type", [t for t in sorted(COMPARABLE) if t.name.startswith(("F", "B"))])
@pytest.mark.parametrize("dtype", SOURCE_DTYPES)
def test_what_is_special_agrees_and_one_bit_less_does_not(dtype: str, ggml_type: GGMLQuantizationType) -> None:
    with np.errstate(all="ignore"):
        source = np.ascontiguousarray(to_dtype(special_values(), dtype)).view(SOURCE_DTYPES[dtype])
        if dtype == "F64":
            source *= 1 + 2**-40  # What float32 does not hold.
    stored = encoded(source, dtype, ggml_type)
    result = compare_values(source.view("u1"), dtype, stored, ggml_type)
    assert (result.differing, result.first, result.elements) == (0, None, len(source))
    assert np.isfinite([result.worst_error, result.total_error, result.worst_of_allowed]).all()
    assert result.worst_of_allowed <= 1.0001
    assert (result.verdict == "exact") == (dtype == ggml_type.name or (dtype, ggml_type.name) in WIDER)
    units = stored.reshape(len(source), -1)
    with np.errstate(all="ignore"):
        numbers = np.count_nonzero(~np.isnan(quants.dequantize(stored, ggml_type)))
    for bit in (0, 3, 7):
        units[:, 0] ^= 1 << bit
        result = compare_values(source.view("u1"), dtype, stored, ggml_type)
        units[:, 0] ^= 1 << bit
        # What is no number may have other bits, unless it was copied.
        assert (len(source) if dtype == ggml_type.name else numbers) <= result.differing <= len(source)
        assert np.isfinite([result.worst_error, result.total_error, result.worst_of_allowed]).all()


WIDER = {("F16", "F32"), ("BF16", "F32")}


@pytest.mark.parametrize("ggml_type", [t for t in sorted(COMPARABLE) if t.name.startswith("Q")])
def test_quantized_values_of_every_size(ggml_type: GGMLQuantizationType) -> None:
    random_values = np.random.RandomState(1).standard_normal((1 << 10, 32))
    for block in (random_values, random_values * 0, np.full((1, 32), np.inf), np.full((1, 32), np.nan)):
        for scale in (1e-9, 1e-4, 1.0, 1e3, 1e6, 1e30):
            source = (block * scale).astype("<f4").reshape(-1)
            stored = encoded(source, "F32", ggml_type)
            result = compare_values(source.view("u1"), "F32", stored, ggml_type)
            assert result.differing == 0
            assert result.worst_of_allowed <= 1.001
            if scale != 1e6:  # With which some scales are too large for float16, and others are not.
                assert result.infinite == (len(source) if scale > 1e6 and block is random_values else 0)
            stored[5] ^= 16
            result = compare_values(source.view("u1"), "F32", stored, ggml_type)
            if np.isfinite(source).all() and not result.infinite:
                assert (result.differing, result.first) == (1, 0)


def test_values_that_became_infinite_are_counted(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m", dtype="F32")
    weights = model / "model.safetensors"
    content = bytearray(weights.read_bytes())
    header_length = int.from_bytes(content[:8], "little")
    name = "vision_model.encoder.layers.0.mlp.fc2.weight"
    start = json.loads(content[8 : 8 + header_length])[name]["data_offsets"][0] + 8 + header_length
    content[start : start + 16] = np.array([1e5, -1e38, np.inf, np.nan], "<f4").tobytes()
    weights.write_bytes(content)
    result = verify(convert(model, tmp_path).path, model)
    assert result.agrees
    check = next(check for check in result.tensors if check.name == "v.blk.0.ffn_up.weight")
    assert check.comparison is not None
    assert (check.verdict, check.comparison.infinite) == ("rounded", 2)
    assert check.comparison.worst_error < 0.001
    assert [w.split(" values")[0] for w in result.warnings] == ["v.blk.0.ffn_up.weight: 2"]


# ---- the command line ------------------------------------------------------------------------------------------------

JSON_KEYS = ["path", "model_dir", "agrees", "found", "outtype", "verdicts", "tensors", "metadata", "warnings", "notes"]
TENSOR_KEYS = [
    "name", "verdict", "type", "shape", "source", "source_type", "expected_shape", "differing", "units",
    "first_difference", "became_infinite", "worst_error", "mean_error", "worst_of_allowed",
]  # fmt: skip
METADATA_KEYS = ["key", "what", "expected", "found", "index"]


def test_the_command(model: Path, tmp_path: Path, run: Run) -> None:
    path = convert(model, tmp_path, options=Options(outtype="q8_0")).path
    result = run("verify", path, model)
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0].startswith(f"{path}: compared with a conversion to q8_0 of CLIPModel in model.safetensors")
    assert lines[1:] == [
        "",
        "93 tensors: 36 rounded, 57 exact; the metadata agree",
        f"agrees: {path} is what a conversion of {model} gives",
    ]
    shown = run("verify", path, model, "--all").stdout.splitlines()
    names = {tensor.name for tensor in read_gguf(LocalFile(path)).tensors}
    assert {line.split()[0] for line in shown if line} >= names
    quiet = run("verify", path, model, "-q", "--threads", "3")
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")


def test_the_command_says_what_is_wrong(model: Path, tmp_path: Path, run: Run) -> None:
    path = convert(model, tmp_path).path
    tensor = read_gguf(LocalFile(path)).tensors[-1]
    wrong = changed(path, tensor.offset + 3, b"\0")
    mean = ("--image-mean", "0.5", "0.5", "0.5")
    result = run("verify", wrong, model, *mean)
    assert result.returncode == 1
    first, second = result.stderr.splitlines()
    assert first.startswith(f"clipgguf: error: {wrong}: tensor 'text_projection.weight' differs from ")
    assert second.startswith(
        f"clipgguf: error: {wrong}: metadata key 'clip.vision.image_mean' is 0.48145467 at index 0"
    )
    lines = result.stdout.splitlines()
    row = next(line.split() for line in lines if line.startswith("text_projection.weight"))
    assert row[4:9] == ["F32", "F16", "differs", "1", "value"]
    assert lines.index(next(line for line in lines if line.startswith("text_projection.weight"))) == 3
    assert [line.split()[0] for line in lines[2:4]] == ["tensor", "text_projection.weight"]
    assert lines[-2:] == [
        "93 tensors: 1 differs, 35 rounded, 57 exact; 1 difference in the metadata",
        f"differs: {wrong} is not what a conversion of {model} gives",
    ]
    quiet = run("verify", wrong, model, "-q", *mean)
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (1, "", result.stderr)


def test_many_faults_are_told_in_part(model: Path, tmp_path: Path, run: Run) -> None:
    path = convert(model, tmp_path).path
    other = write_model(tmp_path / "other", seed=1)
    result = run("verify", path, other, "--json")
    assert result.returncode == 1
    assert len(json.loads(result.stdout)["tensors"]) == 93
    assert len(result.stderr.splitlines()) == 11
    assert result.stderr.splitlines()[-1] == "clipgguf: error: and 83 more like these"
    in_part = run("verify", path, other).stdout
    assert "and 73 more: 73 differs (--all shows them)" in in_part
    assert len(run("verify", path, other, "--all").stdout.splitlines()) == len(in_part.splitlines()) + 73 - 2


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals are POSIX")
@pytest.mark.parametrize(("columns", "headings"), [(80, 6), (200, 9)])
def test_tables_fit_the_terminal(columns: int, headings: int, model: Path, tmp_path: Path) -> None:
    path = convert(model, tmp_path, options=Options(outtype="q8_0")).path
    tensors = [t for t in read_gguf(LocalFile(path)).tensors if t.name.endswith("blk.1.attn_out.weight")]
    for tensor in tensors:
        changed(path, tensor.offset, b"\1\2\3").rename(path)
    shown = on_a_terminal(columns, "verify", path, model)
    table = shown[shown.index("tensor ") :].split("\n\n")[0].splitlines()
    assert {line.split()[0] for line in table[1:]} == {tensor.name for tensor in tensors}
    assert all(len(line) <= columns for line in table)
    assert len(re.split(r"  +", table[0].strip())) == headings


def test_json(model: Path, tmp_path: Path, run: Run) -> None:
    path = convert(model, tmp_path, options=Options(outtype="q4_0")).path
    names = [tensor.name for tensor in read_gguf(LocalFile(path)).tensors]
    path = rewritten(
        path,
        tmp_path / "x.gguf",
        without=["t.blk.0.ln1.bias", "clip.use_gelu"],
        metadata=[MetadataItem("clip.vision.image_std", T.FLOAT32, [0.5, float("nan"), 0.5])],
        tensors={"extra": np.zeros(3, "f4")},
    )
    result = run("verify", path, model, "--json")
    assert result.returncode == 1
    found = json.loads(result.stdout)
    assert list(found) == JSON_KEYS
    assert (found["path"], found["model_dir"], found["agrees"]) == (str(path), str(model), False)
    assert [tensor["name"] for tensor in found["tensors"]] == [*names, "extra"]
    assert all(list(tensor) == TENSOR_KEYS for tensor in found["tensors"])
    assert all(list(difference) == METADATA_KEYS for difference in found["metadata"])
    assert found["verdicts"] == {
        "missing": 1, "unexpected": 1, "wrong shape": 0, "unknown type": 0, "differs": 0, "rounded": 36, "exact": 56,
    }  # fmt: skip
    by_name = {tensor["name"]: tensor for tensor in found["tensors"]}
    assert by_name["t.blk.0.ln1.bias"]["expected_shape"] == [32]
    assert by_name["extra"] == {
        **dict.fromkeys(TENSOR_KEYS),
        "name": "extra",
        "verdict": "unexpected",
        "type": "F32",
        "shape": [3],
    }
    quantized = by_name["t.blk.1.attn_q.weight"]
    assert (quantized["type"], quantized["source_type"], quantized["units"]) == ("Q4_0", "F32", "blocks")
    assert 0 < quantized["mean_error"] < quantized["worst_error"] < 0.5
    assert {d["key"]: (d["what"], d["found"], d["index"]) for d in found["metadata"]} == {
        "clip.use_gelu": ("missing", None, None),
        "clip.vision.image_std": ("value", 0.5, 0),
    }


@pytest.mark.parametrize(
    "arguments", [["FILE"], ["FILE", "MODEL", "--variant", "a/b"], ["FILE", "MODEL", "--outtype", "f16"]]
)
def test_wrong_usage(arguments: list[str], model: Path, tmp_path: Path, run: Run) -> None:
    places = {"FILE": convert(model, tmp_path).path, "MODEL": model}
    result = run("verify", *[places.get(argument, argument) for argument in arguments])
    assert (result.returncode, result.stdout) == (2, "")
