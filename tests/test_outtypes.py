"""Quantized and bf16 files: gguf-py's bytes, the right types for each tensor, and readers that run them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFValueType, LlamaFileType, quants

from clipgguf import Options, convert, plan, verify
from clipgguf.checkpoint.gguf_file import MetadataItem
from clipgguf.options import Outtype
from tests.checkpoints import Clip, Text, Vision, write_model
from tests.feature_models import image
from tests.gguf_bytes import rewritten
from tests.gguf_forward import GGUFModel
from tests.gguf_reading import read, value
from tests.llama_client import answer_image, is_available, write_tiny_language_model
from tests.llava_checkpoints import Llava, write_hf
from tests.media import random_pixels
from tests.weights import write_safetensors

QUANTIZED: tuple[Outtype, ...] = ("q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
# Rows that are multiples of 32, and a feed-forward of several chunks; the text tower's rows are no multiple.
CLIP = Clip(Text(40, 64, 1, 4, vocab_size=20_011), Vision(64, 9_000 * 4, 1, 4, image_size=28, patch_size=14), 24)
LLAVA = Llava(vision=Vision(64, 128, 3, 4, image_size=28, patch_size=7))


DEEP = Llava(vision=Vision(128, 512, 12, 4, image_size=28, patch_size=7))


@pytest.mark.parametrize(
    "outtype", ["q4_0", *(pytest.param(t, marks=pytest.mark.slow) for t in ("bf16", *QUANTIZED[:-1]))]
)
def test_bytes_are_those_of_ggufs_own_quantization(outtype: Outtype, tmp_path: Path) -> None:
    model = write_model(tmp_path / "m", CLIP)
    exact = read(convert(model, tmp_path / "f32", options=Options(outtype="f32")).path).tensors
    result = convert(model, tmp_path / "out", options=Options(outtype=outtype))
    assert result.path.name == f"model-{outtype}.gguf"
    wanted = GGMLQuantizationType[outtype.upper()]
    seen = set()
    for name, tensor in read(result.path).tensors.items():
        source = exact[name]
        if tensor.tensor_type == wanted:
            seen.add(name)
            expected = quants.quantize(source.data.astype(np.float32), wanted)
            np.testing.assert_array_equal(tensor.data.view(np.uint8).reshape(-1), expected.view(np.uint8).reshape(-1))
    assert {"v.blk.0.attn_q.weight", "v.blk.0.ffn_down.weight", "visual_projection.weight"} <= seen
    assert not any("embd" in name or "ln" in name or name.endswith(".bias") for name in seen)
    types = {name: t.tensor_type.name for name, t in read(result.path).tensors.items()}
    assert {types[n] for n in types if n.endswith("embd.weight")} == {"F16"}
    assert {types[n] for n in types if n.endswith(".bias")} == {"F32"}
    assert types["v.class_embd"] == "F32"
    # Rows of 40 are no multiple of 32: attention (4), the wide half of the feed-forward, and the projection.
    narrow = [n for n in types if n.startswith("t.blk") and n.endswith(("attn_q.weight", "ffn_down.weight"))]
    assert {types[n] for n in narrow} == ({"BF16"} if outtype == "bf16" else {"F16"})
    notes = [note for note in result.notes if "no multiple of" in note]
    assert len(notes) == (outtype != "bf16")


@pytest.mark.slow
@pytest.mark.parametrize("outtype", ["bf16", *QUANTIZED])
@pytest.mark.parametrize("dtype", ["F64", "F16", "BF16"])
def test_other_sources_are_quantized_as_their_float32(outtype: Outtype, dtype: str, tmp_path: Path) -> None:
    clip = Clip(Text(32, 64, 1, 4, vocab_size=99, max_position_embeddings=16), Vision(64, 96, 1, 4, 28, 14), 24)
    model = write_model(tmp_path / "m", clip, dtype=dtype)
    exact = read(convert(model, tmp_path / "f32", options=Options(outtype="f32")).path).tensors
    for name, tensor in read(convert(model, tmp_path / "out", options=Options(outtype=outtype)).path).tensors.items():
        if tensor.tensor_type.name == outtype.upper():
            expected = quants.quantize(exact[name].data.astype(np.float32), tensor.tensor_type)
            np.testing.assert_array_equal(tensor.data.view(np.uint8).reshape(-1), expected.view(np.uint8).reshape(-1))


FILE_TYPE = "general.file_type"
# What llama.cpp and the format's specification call such a file, and clip.cpp, which takes ggml's number of the type.
FILE_TYPES: dict[Outtype, tuple[int, int]] = {
    "f32": (0, 0), "f16": (1, 1), "q4_0": (2, 2), "q4_1": (3, 3), "q8_0": (7, 8), "q5_0": (8, 6), "q5_1": (9, 7),
    "bf16": (32, 32),
}  # fmt: skip


@pytest.mark.parametrize("outtype", FILE_TYPES)
def test_file_type_is_what_the_readers_of_such_a_file_ask_for(outtype: Outtype, tmp_path: Path) -> None:
    of_llama_cpp, of_clip_cpp = FILE_TYPES[outtype]
    assert LlamaFileType[f"{'ALL' if outtype == 'f32' else 'MOSTLY'}_{outtype.upper()}"] == of_llama_cpp
    model = write_model(tmp_path / "m")
    towers: tuple[dict[str, Any], ...] = ({}, {"text_only": True}, {"vision_only": True})
    for options in towers:
        path = convert(model, tmp_path, options=Options(outtype=outtype, **options)).path
        assert value(path, FILE_TYPE) == of_clip_cpp
    mmproj = convert(write_hf(tmp_path / "hf", LLAVA), tmp_path, options=Options(outtype=outtype)).path
    assert value(mmproj, FILE_TYPE) == of_llama_cpp
    for file in (path, mmproj):
        assert value(file, "general.quantization_version") == (2 if outtype in QUANTIZED else None)


@pytest.mark.slow
@pytest.mark.parametrize("outtype", FILE_TYPES)
def test_both_numbers_are_verified(outtype: Outtype, tmp_path: Path) -> None:
    # Rows that are multiples of 32, so that there are matrices of the type.
    clip = Clip(Text(32, 64, 1, 4, vocab_size=99, max_position_embeddings=16), Vision(64, 96, 1, 4, 28, 14), 24)
    for model in (write_model(tmp_path / "m", clip), write_hf(tmp_path / "hf", LLAVA)):
        path = convert(model, tmp_path / "x.gguf", options=Options(outtype=outtype)).path
        for number in FILE_TYPES[outtype]:
            item = MetadataItem(FILE_TYPE, GGUFValueType.UINT32, number)
            result = verify(rewritten(path, tmp_path / "y.gguf", metadata=[item]), model)
            assert (result.outtype, result.problems, result.notes) == (outtype, (), ())
        item = MetadataItem(FILE_TYPE, GGUFValueType.UINT32, 15)
        result = verify(rewritten(path, tmp_path / "y.gguf", metadata=[item]), model)
        assert [problem.split(" is ")[0] for problem in result.problems] == [f"metadata key '{FILE_TYPE}'"]


def test_only_what_falls_back_is_counted(tmp_path: Path) -> None:
    # Rows of 40 in the text tower; its embeddings are f16 in every file, and no fault of their rows.
    notes = plan(write_model(tmp_path / "m", CLIP), Options(outtype="q8_0")).notes
    odd = [note for note in notes if "matrices are f16" in note]
    matrices = ("attn_k", "attn_v", "attn_q", "attn_out", "ffn_down", "text_projection")
    assert [note.partition(" ")[0] for note in odd] == [str(len(matrices))]


def test_a_number_of_which_there_is_no_matrix(tmp_path: Path) -> None:
    # No row of 48 or 24 is a multiple of 32: everything is f16, and the kind of the file decides.
    clip = Clip(Text(24, 48, 1, 4, vocab_size=99, max_position_embeddings=16), Vision(24, 48, 1, 4, 28, 14), 24)
    model = write_model(tmp_path / "m", clip)
    for outtype in QUANTIZED:
        assert (
            verify(convert(model, tmp_path / "x.gguf", options=Options(outtype=outtype)).path, model).outtype == outtype
        )


def test_types_that_no_reader_of_the_file_takes(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m")
    said = "no reader of CLIP's towers takes bf16; clip.cpp takes f32, f16, q8_0, q5_1, q5_0, q4_1, q4_0"
    for outtype in FILE_TYPES:
        for vision_only in (False, True):
            notes = convert(model, tmp_path, options=Options(outtype=outtype, vision_only=vision_only)).notes
            assert (said in notes) is (outtype == "bf16")
    # llama.cpp takes all of them.
    assert said not in convert(write_hf(tmp_path / "hf", LLAVA), tmp_path, options=Options(outtype="bf16")).notes


@pytest.mark.parametrize(("dtype", "expected"), [("F32", "f16"), ("F16", "f16"), ("F64", "f16"), ("BF16", "bf16")])
def test_auto_keeps_the_checkpoints_type(dtype: str, expected: Outtype, tmp_path: Path) -> None:
    model = write_model(tmp_path / "m", dtype=dtype)
    result = convert(model, tmp_path / "a", options=Options(outtype="auto"))
    assert result.path.name == f"model-{expected}.gguf"
    assert (
        result.path.read_bytes() == convert(model, tmp_path / "b", options=Options(outtype=expected)).path.read_bytes()
    )


@pytest.mark.parametrize("outtype", ["q8_0", *(pytest.param(t, marks=pytest.mark.slow) for t in ("q4_1", "bf16"))])
def test_thread_count_does_not_show(outtype: Outtype, tmp_path: Path) -> None:
    model = write_model(tmp_path / "m", CLIP)
    files = {
        convert(model, tmp_path / f"{n}", options=Options(outtype=outtype), threads=n).path.read_bytes() for n in (1, 3)
    }
    assert len(files) == 1


def distribute_as_trained(path: Path, vision: Vision) -> None:
    """Give the matrices of a file what trained ones have, and uniform ones lack.

    The scales are those that CLIP starts its training from (``initialize_parameters`` in OpenAI's ``clip/model.py``):
    what a block adds is small beside what it adds to. The tails are heavy, those of Student's distribution with 8
    degrees of freedom, and rows of one matrix differ by a factor of two or three.
    """
    added = (2 * vision.num_hidden_layers) ** -0.5
    scales = {"out_proj": added, "fc1": 0.5**0.5, "fc2": added * (vision.intermediate_size / vision.hidden_size) ** 0.5}
    raw = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(raw[:8], "little")
    random = np.random.RandomState(5)
    for name, entry in json.loads(raw[8:start]).items():
        if name == "__metadata__" or len(entry["shape"]) != 2 or "embedding" in name:
            continue
        rows, columns = entry["shape"]
        scale = scales.get(name.split(".")[-2], 1.0) * (6 / 8) ** 0.5 * columns**-0.5
        matrix = random.standard_t(8, (rows, columns)) * np.exp(random.normal(0, 0.4, (rows, 1))) * scale
        begin, end = entry["data_offsets"]
        raw[start + begin : start + end] = matrix.astype("<f4").tobytes()
    path.write_bytes(raw)


@pytest.mark.parametrize(
    ("outtype", "bar"),
    [("bf16", 0.999), ("q8_0", 0.999), ("q5_1", 0.99), ("q5_0", 0.99), ("q4_1", 0.98), ("q4_0", 0.98)],
)
@pytest.mark.parametrize(
    "are_trained", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["uniform", "as trained"]
)
def test_features_survive(outtype: Outtype, bar: float, are_trained: bool, tmp_path: Path) -> None:
    llava = DEEP if are_trained else LLAVA
    model = write_hf(tmp_path / "hf", llava)
    if are_trained:
        distribute_as_trained(model / "model.safetensors", DEEP.vision)
    pixels = image(llava)
    exact = GGUFModel.read(convert(model, tmp_path / "f32", options=Options(outtype="f32")).path).llava_features(pixels)
    found = GGUFModel.read(convert(model, tmp_path / "q", options=Options(outtype=outtype)).path).llava_features(pixels)
    cosine = np.sum(exact * found) / np.linalg.norm(exact) / np.linalg.norm(found)
    assert bar <= cosine < 1 - 1e-7  # The file really is another.


@pytest.mark.skipif(not is_available(), reason="xllamacpp is not installed (extra: client)")
@pytest.mark.parametrize(
    "outtype", ["q4_0", *(pytest.param(t, marks=pytest.mark.slow) for t in ("bf16", *QUANTIZED[:-1]))]
)
def test_llama_cpp_answers(outtype: Outtype, tmp_path: Path) -> None:
    language_model = tmp_path / "lm.gguf"
    write_tiny_language_model(language_model, LLAVA.text_width)
    model = write_hf(tmp_path / "hf", LLAVA)
    pixels = random_pixels(28, 28)
    exact = answer_image(language_model, convert(model, tmp_path / "f16.gguf").path, pixels)
    result = answer_image(
        language_model, convert(model, tmp_path / "q.gguf", options=Options(outtype=outtype)).path, pixels
    )
    assert result.ok, result.errors
    # Four bits cost this tiny model up to 1.2 in a logit; another picture costs the likeness.
    other = answer_image(language_model, tmp_path / "q.gguf", random_pixels(28, 28, seed=1))
    assert np.corrcoef(result.logits, exact.logits)[0, 1] > 0.97
    assert np.corrcoef(other.logits, exact.logits)[0, 1] < 0.97


def test_scales_that_float16_cannot_hold_are_counted(tmp_path: Path) -> None:
    name = "vision_model.encoder.layers.0.mlp.fc1.weight"
    clip = Clip(Text(32, 64, 1, 4, vocab_size=99, max_position_embeddings=16), Vision(64, 96, 1, 4, 28, 14), 24)
    model = write_model(tmp_path / "m", clip)
    write_safetensors(model / "model.safetensors", clip.shapes())
    raw = bytearray((model / "model.safetensors").read_bytes())
    header = raw[8 : 8 + int.from_bytes(raw[:8], "little")]
    start = 8 + len(header) + json.loads(header)[name]["data_offsets"][0]
    raw[start : start + 4] = np.float32(1e30).tobytes()
    (model / "model.safetensors").write_bytes(raw)
    for outtype in QUANTIZED:
        (warning,) = convert(model, tmp_path / "out", options=Options(outtype=outtype)).warnings
        assert "v.blk.0.ffn_down.weight: 32 of 6,144 values" in warning
        assert "--outtype f32" in warning
