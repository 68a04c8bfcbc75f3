"""The real client: llama.cpp (in the wheel xllamacpp) loads our files and answers about a picture."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipgguf import Options, convert, upgrade
from clipgguf.options import Outtype
from tests.clip_checkpoints import write_clip, write_tower
from tests.gguf_bytes import rewritten
from tests.llama_client import ClientResult, answer_image, is_available
from tests.llava_checkpoints import VISION_24, Llava, write_hf, write_original, write_projector, write_vision_config
from tests.media import random_pixels
from tests.mmproj_files import NEW_KEYS

pytestmark = pytest.mark.skipif(not is_available(), reason="xllamacpp is not installed (extra: client)")

LLAVA = Llava()


def ask(language_model: Path, mmproj: Path, size: int = 28) -> ClientResult:
    return answer_image(language_model, mmproj, random_pixels(size, size))


def four_forms(directory: Path) -> dict[str, Path]:
    """Convert one model by each of the four commands."""
    clip = write_clip(directory / "clip", LLAVA.clip)
    options: dict[str, tuple[Path, dict[str, Any]]] = {
        "CLIP directory and projector": (
            clip, {"llava_projector": write_projector(directory / "llava.projector", LLAVA)},
        ),
        "original, tower elsewhere": (write_original(directory / "v1.5", LLAVA, suffix=".bin"), {"vision_tower": clip}),
        "original, tower inside": (
            write_original(directory / "v1.6", LLAVA, tower="inside"),
            {"vision_config": write_vision_config(directory / "vit.json", LLAVA)},
        ),
        "transformers": (write_hf(directory / "hf", LLAVA), {}),
    }  # fmt: skip
    return {
        name: convert(model, directory / f"{name}.gguf", options=Options(**o)).path
        for name, (model, o) in options.items()
    }


def test_llama_cpp_answers_with_each_of_the_four_forms(language_model: Path, tmp_path: Path) -> None:
    results = {name: ask(language_model, path) for name, path in four_forms(tmp_path).items()}
    assert {name: result.errors for name, result in results.items() if not result.ok} == {}
    first, *others = results.values()
    assert first.image_tokens == 16
    assert first.logits.size > 100
    for other in others:
        np.testing.assert_allclose(other.logits, first.logits, atol=1e-3)


@pytest.mark.slow
def test_llama_cpp_runs_the_layers_that_the_projector_wants(language_model: Path, tmp_path: Path) -> None:
    model = write_hf(tmp_path / "hf", LLAVA)
    logits = {}
    for layer in (-1, -2, -3):
        for keep in (False, True):
            path = convert(model, tmp_path / "x.gguf", options=Options(feature_layer=layer, keep_last_layer=keep)).path
            result = ask(language_model, path)
            assert result.ok, result.errors
            logits[layer, keep] = result.logits
    for layer in (-1, -2, -3):
        np.testing.assert_allclose(logits[layer, True], logits[layer, False], atol=1e-3)
    # Another layer's features give another answer, so the comparison above can fail.
    assert np.abs(logits[-1, False] - logits[-2, False]).max() > 0.1
    assert np.abs(logits[-2, False] - logits[-3, False]).max() > 0.1


@pytest.mark.slow
def test_the_scripts_file_is_refused_and_works_after_upgrade(language_model: Path, tmp_path: Path) -> None:
    new = convert(write_hf(tmp_path / "hf", LLAVA), tmp_path / "new.gguf").path
    old = rewritten(new, tmp_path / "old.gguf", without=NEW_KEYS)
    refused = ask(language_model, old)
    assert not refused.ok
    assert any(re.search("unknown projector type:", line) for line in refused.errors)
    upgrade(old, feature_layer=3)
    mended = ask(language_model, old)
    assert mended.ok, mended.errors
    np.testing.assert_allclose(mended.logits, ask(language_model, new).logits, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("outtype", ["f16", "f32"])
@pytest.mark.parametrize("projector", ["mlp", "mlp_norm", "ldp", "ldpv2"])
def test_projector_kinds(projector: str, outtype: Outtype, language_model: Path, tmp_path: Path) -> None:
    llava = Llava(vision=VISION_24, projector=projector)
    model = write_original(tmp_path / "m", llava)
    tower = write_tower(tmp_path / "vit", "vision", llava.clip)
    path = convert(model, tmp_path / "x.gguf", options=Options(vision_tower=tower, outtype=outtype)).path
    result = ask(language_model, path, VISION_24.image_size)
    assert result.ok, result.errors


@pytest.mark.slow
def test_llava_next_slices_a_wide_image(language_model: Path, tmp_path: Path) -> None:
    model = write_hf(tmp_path / "hf", Llava(has_newline=True))
    path = convert(model, tmp_path / "x.gguf").path
    square = ask(language_model, path)
    wide = answer_image(language_model, path, random_pixels(56, 28))
    assert square.ok, square.errors
    assert wide.ok, wide.errors
    assert wide.image_tokens > square.image_tokens
