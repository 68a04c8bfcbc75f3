"""Ids of single tokens: from the files of tokenizers, of whatever size."""

from pathlib import Path
from typing import Any

import pytest

from clipgguf import ConfigError
from clipgguf.json_file import MOST_IN_JSON
from clipgguf.sources.local import LocalFolder
from clipgguf.tokens import token_id
from tests.json_files import write_json

TOKEN = "[IMG_BREAK]"
DECODER = {"added_tokens_decoder": {"3": {"content": "<s>"}, "12": {"content": TOKEN, "special": True}}}
# As in real ones, the token is a key of the vocabulary, too, and beside braces.
VOCABULARY = {"}": 1, TOKEN: 13, "{": 2, "\\" + TOKEN: 3}
TOKENIZER = {"model": {"vocab": VOCABULARY}, "added_tokens": [{"id": 1, "content": "{"}, {"id": 13, "content": TOKEN}]}
TEKKEN = {"vocab": [{"rank": 0, "token_str": "a"}], "special_tokens": [{"rank": 14, "token_str": TOKEN}]}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"tokenizer_config.json": DECODER, "tokenizer.json": TOKENIZER, "tekken.json": TEKKEN}, 12),
        ({"tokenizer_config.json": {"added_tokens_decoder": None}, "tokenizer.json": TOKENIZER}, 13),
        ({"tokenizer_config.json": {}, "tekken.json": TEKKEN}, 14),
        ({"tokenizer.json": {"added_tokens": []}, "tekken.json": TEKKEN}, 14),
    ],
)
def test_the_first_file_that_has_it(files: dict[str, Any], expected: int, tmp_path: Path) -> None:
    for name, values in files.items():
        write_json(tmp_path / name, values)
    assert token_id(LocalFolder(tmp_path), TOKEN) == expected


def test_vocabularies_of_large_language_models(tmp_path: Path) -> None:
    merges = [["a", "b"]] * (MOST_IN_JSON // 2)
    write_json(tmp_path / "tokenizer.json", {"merges": merges, **TOKENIZER})
    assert token_id(LocalFolder(tmp_path), TOKEN) == 13


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"no file has the token '\[IMG_BREAK\]', should be in one of tokenizer_config.json, tokenizer.json, tek"),
        ({"tekken.json": {"special_tokens": [{"rank": -1, "token_str": TOKEN}]}}, "tekken.json.* has id -1, should be"),
        ({"tokenizer.json": {"added_tokens": [{"content": TOKEN}]}}, "tokenizer.json.* has id None, should be"),
        ({"tokenizer_config.json": {"added_tokens_decoder": {"x": {"content": TOKEN}}}}, "config.json.* has id 'x'"),
    ],
)
def test_what_is_no_id(files: dict[str, Any], message: str, tmp_path: Path) -> None:
    for name, values in files.items():
        write_json(tmp_path / name, values)
    with pytest.raises(ConfigError, match=message):
        token_id(LocalFolder(tmp_path), TOKEN)


def test_objects_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"[IMG_BREAK]": ' + "[" * 3000 + '} "[IMG_BREAK]" }{ "[IMG_BREAK]"}')
    with pytest.raises(ConfigError, match="no file has the token"):
        token_id(LocalFolder(tmp_path), TOKEN)
