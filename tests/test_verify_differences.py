"""Verification finds every difference: a bit, tensors that are exchanged or missing, metadata."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFValueType, quants

from clipgguf import Options, convert, verify
from clipgguf.checkpoint.gguf_file import MetadataItem
from clipgguf.checkpoint.gguf_reader import read_gguf
from clipgguf.options import Outtype
from clipgguf.sources.local import LocalFile
from clipgguf.verification.values import compare_values
from tests.checkpoints import TINY
from tests.gguf_bytes import rewritten
from tests.json_files import write_json
from tests.llava_checkpoints import (
    Llava,
    write_hf,
)
from tests.verifying import OUTTYPES, bad, changed

T = GGUFValueType

# ---- what does not ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
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
    blocks = MetadataItem("clip.vision.block_count", T.UINT32, 2)
    names = [tensor.name for tensor in read_gguf(LocalFile(path)).tensors if tensor.name.startswith("v.blk.2.")]
    result = verify(rewritten(path, tmp_path / "x.gguf", without=names, metadata=[blocks]), model)
    assert bad(result) == dict.fromkeys(names, "missing")
    assert result.problems[-1] == "metadata key 'clip.vision.block_count' is 2, should be 3"
    layers = MetadataItem("clip.vision.feature_layer", T.INT32, [7])
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


@pytest.mark.parametrize(
    ("key", "told", "problem"),
    [
        ("architecture", "clop", "metadata key 'general.architecture' is 'clop', should be 'clip'"),
        ("architecturX", "clip", "metadata key 'general.architecture' is missing, should be 'clip'"),
    ],
)
def test_another_architecture(key: str, told: str, problem: str, model: Path, tmp_path: Path) -> None:
    path = convert(model, tmp_path).path
    content = path.read_bytes()
    start, length = content.index(b"general.architecture"), len("general.architecture")
    # The value's type and length come between the key and the value.
    between = content[start + length : start + length + 12]
    new = f"general.{key}".encode() + between + told.encode()
    result = verify(changed(path, start, new), model)
    assert not result.agrees
    assert problem in result.problems


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
