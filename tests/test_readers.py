"""Who can read a file: the rules' verdicts, and what llama.cpp itself says to the same files."""

import os
import sys
from collections.abc import Callable
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
from tests.checkpoints import Clip, Text, Vision, edit_json, write_model, write_sparse_safetensors
from tests.gguf_bytes import gguf, rewritten, tensor
from tests.llama_client import answer_image, is_available, random_pixels, write_tiny_language_model
from tests.llava_checkpoints import VISION_24, Llava, write_clip, write_hf, write_original, write_projector, write_tower
from tests.other_mmproj import GEMMA3, OTHERS, QWEN2_VL, TEXT_WIDTH, Other, write_other

T, Q = GGUFValueType, GGMLQuantizationType
# Rows that are multiples of a quantized block.
LLAVA = Llava(vision=Vision(64, 128, 3, 4, image_size=28, patch_size=7))
# The depths of ViT-B, and its vocabulary: what clip.cpp counts, at a fraction of the width.
BASE = Clip(Text(32, 64, 12, 4), Vision(32, 64, 12, 4, image_size=28, patch_size=14), 24)
LAYER = "clip.vision.feature_layer"


def reasons(path: Path) -> dict[str, tuple[str, ...]]:
    return {verdict.reader: verdict.reasons for verdict in inspect(path).verdicts}


def readers(path: Path) -> list[str]:
    return [verdict.reader for verdict in inspect(path).verdicts if verdict.reads]


def uint32(key: str, value: int) -> MetadataItem:
    return MetadataItem(key, T.UINT32, value)


def int32s(key: str, *values: int) -> MetadataItem:
    return MetadataItem(key, T.INT32, list(values))


def test_names_of_the_readers() -> None:
    assert [reader.name for reader in READERS] == [name.value for name in ReaderName]


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


def test_layers_of_a_scripts_file(tmp_path: Path) -> None:
    # A ViT-B/32 has 12 blocks of 768; of one that has 11, the script took one away.
    llava = Llava(vision=Vision(768, 8, 12, 12, image_size=32, patch_size=32))
    clip, projector = write_clip(tmp_path / "clip", llava), write_projector(tmp_path / "p.bin", llava)
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


def mmproj(directory: Path, projector: str = "mlp") -> Path:
    if projector == "mlp":
        return convert(write_hf(directory / "m", LLAVA), directory / "x.gguf").path
    llava = Llava(vision=replace(VISION_24, hidden_size=64), projector=projector)
    tower = write_tower(directory / "vit", llava)
    return convert(
        write_original(directory / "m", llava), directory / "x.gguf", options=Options(vision_tower=tower)
    ).path


Change = Callable[[Path, Path], Path]


def other(projector: str = "mlp", **changes: Any) -> Change:
    return lambda directory, to: rewritten(mmproj(directory, projector), to, **changes)


def converted(**options: Any) -> Change:
    return lambda directory, to: convert(write_hf(directory / "m", LLAVA), to, options=Options(**options)).path


def of_clip(**options: Any) -> Change:
    return lambda directory, to: convert(write_clip(directory / "m", LLAVA), to, options=Options(**options)).path


NORM = {"v.post_ln.weight": np.ones(64, np.float32), "v.post_ln.bias": np.zeros(64, np.float32)}
STATISTIC = MetadataItem("clip.vision.image_mean", T.FLOAT32, [0.5, 0.5])
# What is done to a file, and a word of each reason why llama.cpp cannot read it; it answers where there is none.
LLAMA_CPP: dict[str, tuple[Change, list[str]]] = {
    **{f"{outtype}": (converted(outtype=outtype), []) for outtype in ("f16", "f32", "bf16", "q8_0", "q4_0")},
    **{f"{kind}": (other(kind), []) for kind in ("mlp_norm", "ldp", "ldpv2")},
    "all blocks": (converted(keep_last_layer=True), []),
    "features of an earlier layer": (converted(keep_last_layer=True, feature_layer=-3), []),
    "LLaVA 1.6": (lambda d, to: convert(write_hf(d / "m", replace(LLAVA, has_newline=True)), to).path, []),
    "what only others ask for": (other(without=["clip.has_text_encoder", "general.file_type", "clip.use_gelu"]), []),
    "the other key": (
        other(without=["clip.projector_type"], metadata=[MetadataItem("clip.vision.projector_type", T.STRING, "mlp")]),
        [],
    ),
    "names of today": (other(renamed={"ffn_down": "ffn_up", "ffn_up": "ffn_down"}), []),
    "an f32 kernel": (other(types={"patch_embd.weight": Q.F32}), []),
    "a quantized position embedding": (other(types={"position_embd.weight": Q.Q8_0}), []),
    "two towers": (of_clip(), ["projector_type is missing", "no projector"]),
    "vision only": (of_clip(vision_only=True), ["projector_type is missing", "no projector"]),
    "text only": (of_clip(text_only=True), ["has_vision_encoder is false", "missing", "no projector"]),
    "a script's": (other(without=["clip.projector_type", LAYER]), ["projector_type is missing"]),
    "a projector_type of its own": (
        other(metadata=[MetadataItem("clip.projector_type", T.STRING, "mlp2x_gelu")]), ["'mlp2x_gelu'"],
    ),
    "a projector_type of another": (
        other(metadata=[MetadataItem("clip.projector_type", T.STRING, "ldp")]), ["'ldp', but the tensors"],
    ),
    "no size": (other(without=["clip.vision.image_size"]), ["lacks the metadata clip.vision.image_size"]),
    "no statistics": (other(without=["clip.vision.image_std"]), ["lacks the metadata clip.vision.image_std"]),
    "two statistics": (other(metadata=[STATISTIC]), ["image_mean has 2 values"]),
    "a bool that is none": (other(metadata=[MetadataItem("clip.use_gelu", T.UINT8, 1)]), ["use_gelu is UINT8"]),
    "two activations": (
        other(metadata=[MetadataItem(f"clip.use_{act}", T.BOOL, True) for act in ("gelu", "silu")]), ["both true"],
    ),
    "a layer that is not there": (other(metadata=[int32s(LAYER, 5)]), [f"{LAYER} is 5"]),
    "layers of another type": (
        other(metadata=[MetadataItem(LAYER, T.UINT32, [2])]), ["ARRAY of UINT32"],
    ),
    "several layers": (other(metadata=[int32s(LAYER, 1, 2)]), ["do not fit its metadata or each other: 'mm.0.weight'"]),
    "heads": (other(metadata=[uint32("clip.vision.attention.head_count", 3)]), ["no multiple of"]),
    "another image size": (other(metadata=[uint32("clip.vision.image_size", 35)]), ["'v.position_embd.weight'"]),
    "half a pinpoint": (other(metadata=[int32s("clip.vision.image_grid_pinpoints", 28, 56, 56)]), ["pairs"]),
    "a pinpoint between": (
        other(metadata=[int32s("clip.vision.image_grid_pinpoints", 56, 50)]), ["no multiples of image_size"],
    ),
    "too few blocks": (other(metadata=[uint32("clip.vision.block_count", 3)]), ["'v.blk.2.attn_k.weight' and 15 more"]),
    "no bias": (other(without=["mm.0.bias"]), ["no known kind"]),
    "one layer": (other(without=["mm.2.weight", "mm.2.bias"]), ["no known kind"]),
    "f16 biases": (other(types={".bias": Q.F16}), ["F16 but for matrices"]),
    "an f16 class embedding": (other(types={"class_embd": Q.F16}), ["F16 but for matrices"]),
    "an f32 depthwise kernel": (other("ldp", types={"0.0.weight": Q.F32}), ["F32 as a depthwise"]),
    "an f32 kernel of PEG": (other("ldpv2", types={"peg.0.weight": Q.F32}), ["F32 as a depthwise"]),
}  # fmt: skip
# These llama.cpp loads and answers to, but from something else than what the file means.
ANSWERED_WRONGLY: dict[str, tuple[Change, list[str]]] = {
    "a block too few": (other(without=[LAYER]), [f"without {LAYER} it runs 1 of the 2 blocks"]),
    "a final norm": (other(tensors=NORM), ["'v.post_ln.weight' is there"]),
    "no class embedding": (other(without=["v.class_embd"]), ["lacks tensors", "'v.position_embd.weight'"]),
    "no norm": (other(without=["v.blk.0.ln1.weight"]), ["lacks tensors"]),
    "three layers": (
        other(tensors={"mm.4.weight": np.ones((32, 32), np.float16), "mm.4.bias": np.ones(32, np.float32)}),
        ["no known kind"],
    ),
}


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lm") / "llama.gguf"
    write_tiny_language_model(path, LLAVA.text_width)
    return path


@pytest.mark.parametrize("case", [*LLAMA_CPP, *ANSWERED_WRONGLY])
def test_verdicts_on_llama_cpp(case: str, tmp_path: Path) -> None:
    change, words = {**LLAMA_CPP, **ANSWERED_WRONGLY}[case]
    found = reasons(change(tmp_path, tmp_path / "changed.gguf"))["llama.cpp"]
    assert len(found) == len(words), found
    assert all(word in reason for word, reason in zip(words, found, strict=True)), found


@pytest.mark.skipif(not is_available(), reason="xllamacpp is not installed (extra: client)")
@pytest.mark.parametrize("case", LLAMA_CPP)
def test_llama_cpp_agrees(case: str, language_model: Path, tmp_path: Path) -> None:
    change, words = LLAMA_CPP[case]
    size = 48 if "ldp" in case or "depthwise" in case or "PEG" in case or case == "mlp_norm" else 28
    # Only an image that is not square is sliced.
    pixels = random_pixels(size * 2 if "pinpoint" in case else size, size)
    result = answer_image(language_model, change(tmp_path, tmp_path / "changed.gguf"), pixels)
    assert result.ok is not bool(words), result.errors


@pytest.mark.skipif(not is_available(), reason="xllamacpp is not installed (extra: client)")
@pytest.mark.parametrize("case", ANSWERED_WRONGLY)
def test_llama_cpp_loads_what_it_does_not_run_as_meant(case: str, language_model: Path, tmp_path: Path) -> None:
    change, _ = ANSWERED_WRONGLY[case]
    assert answer_image(language_model, change(tmp_path, tmp_path / "changed.gguf"), random_pixels(28, 28)).ok
