"""Whether llama.cpp can read a file: the verdicts, and what llama.cpp itself says to the same files."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFValueType

from clipgguf import Options, convert
from clipgguf.checkpoint.gguf_file import MetadataItem
from tests.clip_checkpoints import write_clip
from tests.llama_client import answer_image, is_available
from tests.llava_checkpoints import write_hf
from tests.media import random_pixels
from tests.readers import LAYER, LLAVA, Change, int32s, other, reasons, uint32

T, Q = GGUFValueType, GGMLQuantizationType


def converted(**options: Any) -> Change:
    return lambda directory, to: convert(write_hf(directory / "m", LLAVA), to, options=Options(**options)).path


def of_clip(**options: Any) -> Change:
    return lambda directory, to: convert(write_clip(directory / "m", LLAVA.clip), to, options=Options(**options)).path


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


@pytest.mark.parametrize("case", [*LLAMA_CPP, *ANSWERED_WRONGLY])
def test_verdicts_on_llama_cpp(case: str, tmp_path: Path) -> None:
    change, words = {**LLAMA_CPP, **ANSWERED_WRONGLY}[case]
    found = reasons(change(tmp_path, tmp_path / "changed.gguf"))["llama.cpp"]
    assert len(found) == len(words), found
    assert all(word in reason for word, reason in zip(words, found, strict=True)), found


@pytest.mark.skipif(not is_available(), reason="xllamacpp is not installed (extra: client)")
@pytest.mark.parametrize(
    "case", [case if case in ("f16", "no bias") else pytest.param(case, marks=pytest.mark.slow) for case in LLAMA_CPP]
)
def test_llama_cpp_agrees(case: str, language_model: Path, tmp_path: Path) -> None:
    change, words = LLAMA_CPP[case]
    size = 48 if "ldp" in case or "depthwise" in case or "PEG" in case or case == "mlp_norm" else 28
    # Only an image that is not square is sliced.
    pixels = random_pixels(size * 2 if "pinpoint" in case else size, size)
    result = answer_image(language_model, change(tmp_path, tmp_path / "changed.gguf"), pixels)
    assert result.ok is not bool(words), result.errors


@pytest.mark.slow
@pytest.mark.skipif(not is_available(), reason="xllamacpp is not installed (extra: client)")
@pytest.mark.parametrize("case", ANSWERED_WRONGLY)
def test_llama_cpp_loads_what_it_does_not_run_as_meant(case: str, language_model: Path, tmp_path: Path) -> None:
    change, _ = ANSWERED_WRONGLY[case]
    assert answer_image(language_model, change(tmp_path, tmp_path / "changed.gguf"), random_pixels(28, 28)).ok
