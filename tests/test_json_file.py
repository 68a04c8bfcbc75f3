"""JSON files of a model directory: what is read without its largest array is what json reads, but for that array."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from clipgguf.errors import ConfigError
from clipgguf.json_file import read_json_object
from clipgguf.sources.given import given_file

EMPTIED = ("model", "merges")


def outcome(path: Path, emptied: tuple[str, ...] = ()) -> Any:
    """Return what a file is read as, or the text of the error."""
    try:
        value = read_json_object(given_file(path), emptied=emptied)
    except ConfigError as e:
        return str(e)
    model = value.get("model")
    if isinstance(model, dict) and isinstance(model.get("merges"), list):
        model["merges"] = []
    return value


@pytest.mark.parametrize(
    "text",
    [
        '{"model": {"vocab": {"a": 0}, "merges": [["a", "b"], "a b", [], {}, 1e3, null]}, "added_tokens": []}',
        '{"model": {"merges": []}}',
        '{"model":{"merges":[1,[2,[3]]],"merges2":[4]},"merges":[5]}',
        ' \t\r\n{ "model" : { "merges" : [ 1 , 2 ] , "x" : { } } , "y" : [ ] } \n',
        '{"model": {}}',
        "{}",
        "[]",
        '{"model": []}',
        '{"model": {"merges": {"a": 1}}}',
        '{"model": {"merges": "none"}}',
        '{"mod\\u0065l": {"merges": [1]}, "\\"": "]}"}',
        '{"model": {"merges": ["]", "\\"]", "}"]}}',
        '{"model": {"merges": [1]}, "model": {"merges": [1]}}',
        '{"model": {"x": 1}, "model": {"x": 2}}',
        '{"model": {"vocab": {"a": 1, "a": 2}}}',
        '{"model": {"merges": [{"a": 1, "a": 2}]}}',
        '{"model": {"merges": [1,]}}',
        '{"model": {"merges": [,]}}',
        '{"model": {"merges": [1 2]}}',
        '{"model": {"merges": [1}}',
        '{"model": {"merges": [1',
        '{"model": {"merges": [1]',
        '{"model": {"merges": [1]}',
        '{"model": {"merges": [1]}} x',
        '{"model": {"merges": [1]},}',
        '{"model": {"merges": [1]} "x": 1}',
        '{"model" {"merges": [1]}}',
        '{"model":',
        '{1: 2, "model": {"merges": [1]}}',
        "{",
        "",
        '{"model": {"merges": ["' + "\x01" + '"]}}',
        '{"model": {"merges": [' + "[" * 100_000,
        '{"model": {"merges": [' + "9" * 5_000 + "]}}",
    ],
)
def test_reading_with_an_array_emptied(text: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(text, encoding="utf-8")
    assert outcome(path, EMPTIED) == outcome(path)


@pytest.mark.slow
def test_reading_with_an_array_emptied_of_mutated_text(tmp_path: Path) -> None:
    text = json.dumps(
        {"model": {"vocab": {'"': 0, "é": 1}, "merges": [["a", "b"], ["c", "d"]]}, "added": [{}]}, indent=1
    )
    path = tmp_path / "x.json"
    chance = random.Random(1)
    for _ in range(1_000):
        at = chance.randrange(len(text))
        mutated = text[:at] + chance.choice(["", *'[]{},:"\\1 ', text[chance.randrange(len(text)) :]]) + text[at + 1 :]
        path.write_text(mutated, encoding="utf-8")
        assert outcome(path, EMPTIED) == outcome(path), mutated


def test_the_array_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('{"model": {"vocab": {"a": 0}, "merges": ["a b", "c d"], "x": [1]}, "merges": [2]}')
    expected = {"model": {"vocab": {"a": 0}, "merges": [], "x": [1]}, "merges": [2]}
    assert read_json_object(given_file(path), emptied=EMPTIED) == expected
