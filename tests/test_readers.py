"""Who can read a file: the verdicts for clip.cpp, PowerInfer and other families."""

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter

from clipgguf import Options, convert, inspect, plan
from clipgguf.checkpoint.gguf_file import MetadataItem
from clipgguf.cli.inspect import ReaderName
from clipgguf.readers import CLIP_CPP_SCRATCH, READERS
from tests.checkpoints import Clip, Text, Vision, write_model
from tests.clip_checkpoints import write_clip
from tests.gguf_bytes import gguf, rewritten, tensor
from tests.json_files import edit_json
from tests.llama_client import answer_image, is_available, write_tiny_language_model
from tests.llava_checkpoints import Llava, write_hf, write_projector
from tests.media import random_pixels
from tests.other_mmproj import GEMMA3, OTHERS, QWEN2_VL, TEXT_WIDTH, Other, write_other
from tests.readers import LAYER, LLAVA, other, readers, reasons, uint32
from tests.weights import write_sparse_safetensors

T, Q = GGUFValueType, GGMLQuantizationType

# The depths of ViT-B, and its vocabulary: what clip.cpp counts, at a fraction of the width.
BASE = Clip(Text(32, 64, 12, 4), Vision(32, 64, 12, 4, image_size=28, patch_size=14), 24)


def test_names_of_the_readers() -> None:
    assert [reader.name for reader in READERS] == [name.value for name in ReaderName]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "who"),
    [
        ({}, ["clip.cpp"]),
        ({"text_only": True}, ["clip.cpp"]),
        ({"vision_only": True}, ["clip.cpp"]),
        ({"outtype": "f32"}, ["clip.cpp"]),
        ({"outtype": "q4_0"}, ["clip.cpp"]),
        *(({"outtype": outtype}, ["clip.cpp"]) for outtype in ("q8_0", "q5_0", "q5_1")),
        ({"outtype": "bf16"}, []),
    ],
)
def test_clip_cpp(options: dict[str, Any], who: list[str], tmp_path: Path) -> None:
    path = convert(write_model(tmp_path / "m", BASE), tmp_path / "x.gguf", options=Options(**options)).path
    assert readers(path) == who
    assert len(inspect(path).tensors) in CLIP_CPP_SCRATCH


@pytest.mark.slow
def test_all_that_keeps_clip_cpp_from_a_file(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m", BASE)
    path = convert(model, tmp_path / "x.gguf", options=Options(outtype="bf16")).path
    found = reasons(path)["clip.cpp"]
    assert found[0].startswith("general.file_type is 32")
    assert found[1] == "it does not take BF16: 't.blk.0.attn_k.weight' and 145 more"
    # One tensor too few, one size that is another, one key less.
    changed = rewritten(
        convert(model, tmp_path / "f16.gguf").path,
        tmp_path / "y.gguf",
        without=["v.post_ln.bias", "clip.use_gelu", "clip.text.context_length"],
        metadata=[uint32("clip.vision.projection_dim", 512), uint32("clip.vision.feed_forward_length", 63)],
        types={"t.blk.3.ln1.bias": Q.F16, "v.patch_embd.weight": Q.F32},
    )
    assert reasons(changed)["clip.cpp"] == (
        "it lacks the metadata clip.use_gelu",
        "it lacks the metadata clip.text.context_length",
        "it has 396 tensors, the numbers that are known are 197, 200, 389, 392, 397, 520, 589, 909",
        "it lacks tensors: 'v.post_ln.bias'",
        "its tensors do not fit its metadata or each other: 'v.blk.0.ffn_down.weight' has shape (64, 32), not (63, 32) "
        "(35 more do not fit)",
        "clip.vision.projection_dim is 512, but 'visual_projection.weight' has shape (24, 32)",
        "it does not take F32 as a convolution's kernel: 'v.patch_embd.weight'",
        "it does not take F16 but for matrices: 't.blk.3.ln1.bias'",
    )


@pytest.mark.parametrize("options", [{}, {"vision_only": True}], ids=str)
def test_a_file_without_a_projector_lacks_no_tensor_of_one(options: dict[str, Any], tmp_path: Path) -> None:
    path = convert(write_model(tmp_path / "m"), tmp_path / "x.gguf", options=Options(**options)).path
    found = reasons(path)["PowerInfer"]
    assert "it has no projector (no tensor is called mm.*), so it is no mmproj" in found
    assert not any("lacks tensors" in reason for reason in found)


def test_numbers_of_tensors_that_clip_cpp_does_not_know(tmp_path: Path) -> None:
    bigg = replace(
        BASE, text=replace(BASE.text, num_hidden_layers=32), vision=replace(BASE.vision, num_hidden_layers=48)
    )
    (reason,) = reasons(convert(write_model(tmp_path / "m", bigg), tmp_path / "x.gguf").path)["clip.cpp"]
    assert reason.startswith("it has 1,293 tensors")
    short = replace(BASE, text=replace(BASE.text, vocab_size=49_407))
    (reason,) = reasons(convert(write_model(tmp_path / "s", short), tmp_path / "x.gguf").path)["clip.cpp"]
    assert reason == "its vocabulary has 49,407 tokens, the tokens 49406 and 49407 must be there"


@pytest.mark.parametrize(
    ("options", "who"),
    [
        ({}, ["llama.cpp"]),
        ({"keep_last_layer": True}, ["PowerInfer", "llama.cpp"]),
        ({"keep_last_layer": True, "outtype": "f32"}, ["PowerInfer", "llama.cpp"]),
        ({"keep_last_layer": True, "outtype": "q4_1"}, ["PowerInfer", "llama.cpp"]),
        ({"keep_last_layer": True, "outtype": "bf16"}, ["llama.cpp"]),
        ({"keep_last_layer": True, "feature_layer": -1}, ["llama.cpp"]),
        ({"keep_last_layer": True, "feature_layer": -3}, ["PowerInfer", "llama.cpp"]),
    ],
)
def test_mmproj(options: dict[str, Any], who: list[str], tmp_path: Path) -> None:
    path = convert(write_hf(tmp_path / "m", LLAVA), tmp_path / "x.gguf", options=Options(**options)).path
    assert readers(path) == who


@pytest.mark.slow
def test_layers_of_a_scripts_file(tmp_path: Path) -> None:
    # A ViT-B/32 has 12 blocks of 768; of one that has 11, the script took one away.
    llava = Llava(vision=Vision(768, 8, 12, 12, image_size=32, patch_size=32))
    clip, projector = write_clip(tmp_path / "clip", llava.clip), write_projector(tmp_path / "p.bin", llava)
    for keep, who in ((True, ["PowerInfer", "llama.cpp"]), (False, [])):
        path = convert(clip, tmp_path / "x.gguf", options=Options(llava_projector=projector, keep_last_layer=keep)).path
        old = rewritten(path, tmp_path / "old.gguf", without=[LAYER])
        assert readers(old) == who
    found = reasons(old)
    assert found["llama.cpp"] == (f"without {LAYER} it runs 10 of the 11 blocks; clipgguf upgrade adds it",)
    assert found["PowerInfer"] == (
        "it always runs all blocks but the last, 10 here, and 11 are meant to run; --keep-last-layer stores 12",
    )
    # After the last block there is none that could be stored, too.
    last = convert(clip, tmp_path / "x.gguf", options=Options(llava_projector=projector, feature_layer=-1)).path
    assert reasons(last)["PowerInfer"] == (
        "it always runs all blocks but the last, 11 here, and 12 are meant to run, all that the tower has",
    )


def test_layers_that_a_file_does_not_tell(tmp_path: Path) -> None:
    path = convert(write_hf(tmp_path / "m", LLAVA), tmp_path / "x.gguf").path
    *_, llama = inspect(rewritten(path, tmp_path / "old.gguf", without=[LAYER])).verdicts
    assert (llama.reads, llama.reasons) == (
        None,
        (
            f"without {LAYER} it runs 1 of the 2 blocks, and the file does not tell whether the last is meant to run; "
            "clipgguf upgrade --feature-layer adds it",
        ),
    )
    # What certainly keeps a reader from a file is said alone.
    *_, llama = inspect(rewritten(path, tmp_path / "older.gguf", without=[LAYER, "clip.projector_type"])).verdicts
    assert (llama.reads, llama.reasons) == (False, ("clip.projector_type is missing; clipgguf upgrade adds it",))
    powerinfer = inspect(tmp_path / "old.gguf").verdicts[1]
    assert (powerinfer.reads, len(powerinfer.reasons)) == (None, 1)


@pytest.mark.parametrize(
    ("blocks", "options", "words"),
    [
        (39, {}, []),
        (40, {}, ["no room for 40 blocks"]),
        (40, {"feature_layer": -3}, []),
        # With one block more there would be no room.
        (40, {"keep_last_layer": False}, ["38 here, and 39 are meant to run"]),
    ],
)
def test_blocks_that_powerinfer_has_no_room_for(
    blocks: int, options: dict[str, Any], words: list[str], tmp_path: Path
) -> None:
    llava = Llava(vision=Vision(32, 32, blocks, 4, image_size=28, patch_size=14))
    model = write_hf(tmp_path / "m", llava)
    found = reasons(convert(model, tmp_path / "x.gguf", options=Options(**{"keep_last_layer": True, **options})).path)[
        "PowerInfer"
    ]
    assert len(found) == len(words)
    assert all(reason.endswith(word) or word in reason for word, reason in zip(words, found, strict=True))
    assert not any("--keep-last-layer" in reason for reason in found)


def vision_tower(directory: Path, vision: Vision) -> Path:
    """Write a file of a vision tower of real sizes, with a hole where the values would be."""
    clip = replace(BASE, vision=vision, projection_dim=1024)
    model = write_model(directory / "m", BASE)
    edit_json(model / "config.json", lambda config: config.update(clip.config_json()))
    write_sparse_safetensors(model / "model.safetensors", clip.shapes(), "F16")
    made = plan(model, Options(vision_only=True))
    writer = GGUFWriter(directory / "x.gguf", "clip")
    for item in made.metadata:
        sub_type = item.value_type if item.is_array else None
        writer.add_key_value(item.key, item.value, T.ARRAY if item.is_array else item.value_type, sub_type)
    nbytes = 0
    for t in made.tensors:
        writer.add_tensor_info(t.name, t.shape, np.dtype("f4"), t.nbytes, raw_dtype=t.ggml_type)
        nbytes += -(-t.nbytes // 32) * 32
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    data_start = -(-(directory / "x.gguf").stat().st_size // 32) * 32
    os.truncate(directory / "x.gguf", data_start + nbytes)
    return directory / "x.gguf"


@pytest.mark.skipif(sys.platform == "win32", reason="files have no holes on Windows unless they are asked to")
@pytest.mark.parametrize(
    ("vision", "reason"),
    [
        (Vision(768, 3072, 12, 12, image_size=224, patch_size=16), None),
        (Vision(1024, 4096, 24, 16, image_size=336, patch_size=14), None),
        (Vision(1280, 5120, 32, 16, image_size=224, patch_size=14), None),
        # Built and run: it loads this one, and dies on the first image.
        (
            Vision(1280, 5120, 32, 16, image_size=378, patch_size=14),
            "an image of image_size 378 takes about 193 MiB, it has 144 MiB for files of 520 tensors",
        ),
    ],
)
def test_images_that_clip_cpp_has_no_memory_for(vision: Vision, reason: str | None, tmp_path: Path) -> None:
    path = vision_tower(tmp_path, vision)
    assert reasons(path)["clip.cpp"] == ((reason,) if reason else ())


@pytest.mark.parametrize("family", OTHERS)
def test_other_families_are_not_known_here(family: str, tmp_path: Path) -> None:
    path = write_other(tmp_path / "x.gguf", OTHERS[family])
    *old, llama = inspect(path).verdicts
    told = " and ".join(f"{key} is {text!r}" for key, text in OTHERS[family].types.items())
    assert (llama.reads, llama.reasons) == (None, (f"{told}, of which no family is known here",))
    assert not any(verdict.reads for verdict in old)


@pytest.mark.slow
@pytest.mark.skipif(not is_available(), reason="xllamacpp is not installed (extra: client)")
@pytest.mark.parametrize("other", [QWEN2_VL, GEMMA3], ids=["Qwen2-VL", "Gemma 3"])
def test_llama_cpp_runs_other_families(other: Other, tmp_path: Path) -> None:
    write_tiny_language_model(tmp_path / "llama.gguf", TEXT_WIDTH)
    path = write_other(tmp_path / "x.gguf", other)
    result = answer_image(tmp_path / "llama.gguf", path, random_pixels(56, 56))
    assert result.ok, result.errors


def test_a_type_that_nobody_has_heard_of(tmp_path: Path) -> None:
    path = other(metadata=[MetadataItem("clip.projector_type", T.STRING, "mlp2x_gelu")])(tmp_path, tmp_path / "y.gguf")
    assert inspect(path).verdicts[2].reads is None


def test_a_language_model_is_not_judged(tmp_path: Path) -> None:
    write_tiny_language_model(tmp_path / "llama.gguf", 32)
    *old, llama = inspect(tmp_path / "llama.gguf").verdicts
    assert (llama.reads, llama.reasons) == (None, ("general.architecture is 'llama', known here is 'clip'",))
    assert [verdict.reads for verdict in old] == [False, False]


def test_what_is_no_model_at_all(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(gguf([], [tensor("v.blk.")], bytes(16)))
    found = reasons(tmp_path / "x.gguf")
    assert found["llama.cpp"] == (
        "it lacks the metadata clip.has_vision_encoder",
        "clip.projector_type is missing",
        "it has no projector (no tensor is called mm.*), so it is no mmproj",
    )
    assert "general.file_type, general.description" in found["clip.cpp"][0]
    assert "clip.has_llava_projector" in found["PowerInfer"][0]


def test_more_blocks_than_anyone_could_store(tmp_path: Path) -> None:
    path = convert(write_hf(tmp_path / "m", LLAVA), tmp_path / "x.gguf").path
    huge = rewritten(path, tmp_path / "y.gguf", metadata=[uint32("clip.vision.block_count", 2**32 - 1)])
    assert "its metadata tells of 4,294,967,295 blocks, it has 41 tensors" in reasons(huge)["llama.cpp"]
