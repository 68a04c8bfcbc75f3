"""The vocabulary: where it is looked for, and that its tokens go in by their ids."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clipgguf import Options, convert
from tests.clip_checkpoints import (
    tokens,
    write_clip,
    write_pipeline,
    write_tower,
    write_vocabulary,
)
from tests.conftest import Run
from tests.gguf_reading import value
from tests.json_files import edit_json
from tests.open_clip_checkpoints import write_open_clip
from tests.refusals import refused

# ---- vocabulary ------------------------------------------------------------------------------------------------------


def test_vocabulary_given(tmp_path: Path, run: Run) -> None:
    model = write_tower(tmp_path / "m", "text", vocabulary=None)
    assert "--vocab" in refused(model)
    for kind in ("vocab.json", "tokenizer.json"):
        given = write_vocabulary(tmp_path / f"with {kind}", tokens(99, "mine"), kind)
        for vocab in (given, given / kind):
            path = convert(model, tmp_path / "out", options=Options(vocab=vocab)).path
            assert value(path, "tokenizer.ggml.tokens") == tokens(99, "mine")
        (given / kind).rename(given / "renamed.json")
        path = convert(model, tmp_path / "out", options=Options(vocab=str(given / "renamed.json"))).path
        assert value(path, "tokenizer.ggml.tokens") == tokens(99, "mine")
    result = run(model, "--vocab", given / "renamed.json", "-o", "x.gguf")
    assert result.returncode == 0, result.stderr
    assert value(tmp_path / "work" / "x.gguf", "tokenizer.ggml.tokens") == tokens(99, "mine")


def test_vocabulary_given_comes_before_the_models_own(tmp_path: Path) -> None:
    given = write_vocabulary(tmp_path / "v", tokens(99, "mine"))
    for model in (write_clip(tmp_path / "hf"), write_open_clip(tmp_path / "oc")):
        assert value(convert(model, options=Options(vocab=given)).path, "tokenizer.ggml.tokens") == tokens(99, "mine")
    sdxl = write_pipeline(tmp_path / "sdxl")
    assert value(convert(sdxl / "text_encoder", options=Options(vocab=given)).path, "tokenizer.ggml.tokens") == tokens(
        99, "mine"
    )


def test_vocabulary_that_is_not_there(tmp_path: Path) -> None:
    model = write_clip(tmp_path / "m")
    assert "nowhere.json" in refused(model, vocab=tmp_path / "nowhere.json")
    (tmp_path / "empty").mkdir()
    assert str(tmp_path / "empty") in refused(model, vocab=tmp_path / "empty")


def test_vision_needs_no_vocabulary(tmp_path: Path) -> None:
    for model in (write_clip(tmp_path / "hf", vocabulary=None), write_open_clip(tmp_path / "oc", vocabulary=None)):
        assert convert(model, options=Options(vision_only=True)).path.name == "vision-model-f16.gguf"
        assert "vocab.json" in refused(model)


@pytest.mark.parametrize("kind", ["vocab.json", "tokenizer.json"])
def test_vocabulary_by_id_whatever_the_order(kind: str, tmp_path: Path) -> None:
    model = write_clip(tmp_path / "m", vocabulary=kind)

    def reverse(values: dict[str, Any]) -> None:
        vocab = values["model"]["vocab"] if kind == "tokenizer.json" else values
        items = list(vocab.items())[::-1]
        vocab.clear()
        vocab.update(items)

    edit_json(model / kind, reverse)
    assert value(convert(model).path, "tokenizer.ggml.tokens") == tokens(99)


@pytest.mark.parametrize("where", ["model", "sibling", "given"])
@pytest.mark.parametrize(
    ("kind", "edit", "words"),
    [
        ("vocab.json", lambda v: v.pop("tok7</w>"), ["no token has id 7"]),
        ("vocab.json", lambda v: v.update({"again": 7}), ["id 7", "'again'", "'tok7</w>'"]),
        ("tokenizer.json", lambda v: v["model"]["vocab"].pop("tok7</w>"), ["no token has id 7"]),
        ("tokenizer.json", lambda v: v["added_tokens"].pop(), []),
        ("tokenizer.json", lambda v: v["added_tokens"][1].update(id=100), ["no token has id 98"]),
        ("tokenizer.json", lambda v: v["added_tokens"][1].update(id=7), ["id 7", "'tok98</w>'", "'tok7</w>'"]),
        ("tokenizer.json", lambda v: v["added_tokens"][0].update(id=7), ["id 7"]),
    ],
    ids=["hole", "duplicate", "hole", "shorter", "hole at the end", "added duplicate", "contradiction"],
)
def test_holes_and_duplicates(
    where: str, kind: str, edit: Callable[[Any], object], words: list[str], tmp_path: Path
) -> None:
    model = write_tower(tmp_path / "text_encoder", "text", vocabulary=None)
    place = {"model": model, "sibling": tmp_path / "tokenizer", "given": tmp_path / "v"}[where]
    write_vocabulary(place, tokens(99), kind)
    edit_json(place / kind, edit)
    options: dict[str, Any] = {"vocab": place} if where == "given" else {}
    if not words:  # One token fewer than rows is no error, but deserves a second look.
        (warning,) = convert(model, options=Options(**options)).warnings
        assert "98 tokens" in warning
        return
    problem = refused(model, **options)
    assert str(place / kind) in problem
    assert all(word in problem for word in words), problem
