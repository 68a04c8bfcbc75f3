"""What is said of llama.cpp and files of all families, beside what the real one does with changed copies of them.

"Yes" must mean that it runs a file and computes what the whole one gives, "no" that it does not. Where it is not known,
as where llama.cpp has a value of its own for a key that is missing, anything is right.
"""

import os
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType

from clipgguf import convert, inspect
from tests.family_fixtures import FIXTURES, Fixture, fixtures
from tests.gguf_bytes import rewritten
from tests.llama_client import ask, is_available
from tests.readers import reasons

# So many mutants of each kind for every fixture; a scheduled run has more.
SAMPLE = 4 if "CLIPGGUF_FUZZ" in os.environ else 1
TYPES = (GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.BF16)
# In all other blocks the tensors are called alike.
FIRST = re.compile(r"\.[1-9]\d*\.(?!(?:weight|bias)$)")
# What llama.cpp's graph does not use, or not for one picture of this size, so that it runs without; a file that lacks
# it is none of its family all the same, and "no" is right. So are bounds that no value of a fixture reaches.
UNUSED = {
    "deepseek_ocr": r"v\.patch_embd\.",
    "deepseek_ocr2": r"v\.resample_query_768\.|v\.image_newline",
    # It goes by the tensors.
    "dots3_note": r"clip\.vision\.expert_count_per_layer",
    "gemma3n": r"mm\.(embedding|hard_emb_norm)\.",
    "gemma4": r".*put_(max|min)$",
    "granite4_vision": r"v\.post_ln\.",
    "hunyuan_vl": r"v\.(view_seperator|image_newline)",
    "lfm2_audio": r"a\.(position_embd_norm|embd_to_logits)\.",
    # What it hears is quantized: the nearest code may be the same one.
    "mimo_v2": r"a\.(?!rvq)",
    # It speaks with these, and nobody asks it to.
    "pocket_tts": r"a\.gen\.|clip\.has_gen_audio_encoder",
}
# The keys that mean llama.cpp's own value where they are missing, which is not the fixture's.
MEANT = {"clip.vision.projector.scale_factor", "clip.vision.preproc_min_tiles", "clip.vision.preproc_max_tiles"}


def mutants(family: Fixture, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield changes in words and as keywords of ``rewritten``: tensors, keys and types, the same ones always."""
    numbers = random.Random(family.name)
    found = inspect(path)
    tensors = [tensor for tensor in found.tensors if not FIRST.search(tensor.name)]
    unused = re.compile(UNUSED.get(family.module, r"(?!)"))
    # The language model's width is told by projection_dim.
    keys = [i.key for i in found.metadata if i.key.startswith("clip.") and not i.key.endswith("projection_dim")]
    # Without one of these, a file for images and sounds is one for the other, which gives one answer less.
    both = {"clip.has_vision_encoder", "clip.has_audio_encoder"}
    keys = [key for key in keys if not both <= set(keys) or key not in both]
    for tensor in numbers.sample(tensors, min(SAMPLE, len(tensors))):
        if not unused.match(tensor.name):
            yield f"without {tensor.name}", {"without": [tensor.name]}
    # A file for images and sound that does not tell of one of them is a file for the other.
    both = {key for key in keys if re.fullmatch(r"clip\.has_\w+_encoder", key)}
    for key in numbers.sample(sorted(set(keys) - MEANT - (both if len(both) > 1 else set())), SAMPLE):
        if not unused.match(key):
            yield f"without {key}", {"without": [key]}
    # What speaks is loaded, and no question has it run (``test_qwen3_tts.py`` does).
    heard = [tensor for tensor in tensors if not tensor.name.startswith("a.gen.")]
    for tensor in numbers.sample(heard, min(SAMPLE, len(heard))):
        other = numbers.choice([kind for kind in TYPES if kind.name != tensor.dtype])
        if not unused.match(tensor.name):
            yield f"{tensor.name} of {other.name}", {"types": {tensor.name: other}}


@pytest.mark.slow
@pytest.mark.skipif(not is_available(), reason="xllamacpp is not installed (extra: client)")
@pytest.mark.parametrize(
    "family", [f for f in fixtures() if not (f.unrunnable or f.refused)], ids=lambda fixture: fixture.name
)
def test_verdicts_are_llama_cpps(family: Fixture, tmp_path: Path) -> None:
    path = convert(family.write(tmp_path / "m"), tmp_path / "x.gguf").path
    assert inspect(path).verdicts[-1].reads
    whole = ask(path, tmp_path)
    assert whole.ok, whole.errors
    for what, change in mutants(family, path):
        changed = rewritten(path, tmp_path / "y.gguf", **change)
        verdict = inspect(changed).verdicts[-1]
        result = ask(changed, tmp_path)
        # Another type rounds.
        tolerance = 0.05 if "types" in change else 1e-5
        same = result.ok and np.allclose(result.logits, whole.logits, atol=tolerance, equal_nan=True)
        assert verdict.reads in (None, same), (what, verdict.reasons, result.errors)


def fixture(name: str, directory: Path) -> Path:
    return convert(Fixture.read(FIXTURES / f"{name}.json").write(directory / "m"), directory / "x.gguf").path


# What the real one was seen to abort on (True: to run).
@pytest.mark.parametrize(
    ("name", "tensor", "kind", "runs"),
    [
        ("gemma3", "v.position_embd.weight", "F16", False),
        ("kimi_vl", "v.position_embd.weight", "BF16", False),
        ("hunyuan_vl", "v.position_embd.weight", "F16", True),
        ("minicpmv", "v.position_embd.weight", "F32", True),
        ("minicpmv", "resampler.query", "F16", False),
        ("minicpmv", "resampler.ln_kv.bias", "BF16", False),
        ("deepseek_ocr", "v.sam.pos_embd.weight", "F16", False),
        ("granite4_vision", "v.proj_blk.0.img_pos", "F16", False),
        ("nemotron_nano_v2_vl", "v.class_embd", "F16", False),
        ("gemma3n", "v.blk.0.0.conv_exp.weight", "BF16", False),
        ("gemma3n", "v.blk.0.0.conv_exp.weight", "F32", True),
        ("gemma3n", "v.blk.1.0.dw_start.conv.weight", "F32", False),
        ("gemma4", "v.blk.0.attn_q.output_max", "F16", False),
        ("granite_speech", "a.blk.0.conv_dw.weight", "F16", False),
        ("granite_speech", "a.proj_query", "F16", False),
        ("lfm2_audio", "a.blk.0.pos_bias_u", "F16", False),
        ("lfm2_audio", "a.conv1d.0.weight", "BF16", True),
        ("lfm2_audio", "a.conv1d.2.weight", "F16", True),
        ("lfm2_audio", "a.conv1d.2.weight", "BF16", False),
        ("mimo_v2", "a.rvq.codebook.weight", "F16", False),
        ("mimo_v2", "mm.a.code_embd.weight", "F16", True),
        ("gemma4", "a.blk.0.conv_dw.weight", "F16", False),
        ("gemma4", "a.conv1d.0.weight", "BF16", True),
    ],
)
def test_types_that_a_graph_takes(name: str, tensor: str, kind: str, runs: bool, tmp_path: Path) -> None:
    changed = rewritten(fixture(name, tmp_path), tmp_path / "y.gguf", types={tensor: GGMLQuantizationType[kind]})
    (verdict,) = inspect(changed).verdicts[-1:]
    assert verdict.reads is runs
    assert runs or tensor in verdict.reasons[0]


@pytest.mark.parametrize(
    ("name", "key", "reads"),
    [
        ("qwen3_vl", "clip.vision.spatial_merge_size", None),
        ("deepseek_ocr", "clip.vision.preproc_max_tiles", None),
        ("kimi_k25", "clip.vision.image_max_pixels", None),
        ("exaone4_5", "clip.vision.n_wa_pattern", None),
        ("qwen3_tts", "clip.gen.audio.attention.head_count_kv", None),
        ("qwen3_tts", "clip.gen.audio.block_count", False),
        ("exaone4_5", "clip.vision.image_max_pixels", False),
        ("step3p7", "clip.vision.projector.scale_factor", None),
        ("llama4", "clip.vision.projector.scale_factor", False),
        ("minicpmv", "clip.has_text_encoder", True),
    ],
)
def test_keys_that_it_has_values_for(name: str, key: str, reads: bool | None, tmp_path: Path) -> None:
    changed = rewritten(fixture(name, tmp_path), tmp_path / "y.gguf", without=[key])
    (verdict,) = inspect(changed).verdicts[-1:]
    assert verdict.reads is reads
    assert reads or key in verdict.reasons[0]


@pytest.mark.parametrize("name", ["qwen3_vl", "minicpmv", "gemma4"])
def test_other_readers_say_one_thing(name: str, tmp_path: Path) -> None:
    path = fixture(name, tmp_path)
    title = {"qwen3_vl": "Qwen3-VL", "minicpmv": "MiniCPM-V", "gemma4": "Gemma 4"}[name]
    assert reasons(path) == {
        "clip.cpp": (f"it is an mmproj of {title}; clip.cpp reads CLIP's own files only",),
        "PowerInfer": (f"it is an mmproj of {title}; PowerInfer reads LLaVA's only",),
        "llama.cpp": (),
    }
