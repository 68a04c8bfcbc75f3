"""JSON files of a model directory: read whole, checked, and never trusted."""

import contextlib
import json
import re
from collections.abc import Sequence
from typing import Any

from clipgguf.errors import CheckpointError, ConfigError, shown
from clipgguf.sources import File

# What a JSON file may have: CLIP's tokenizer.json is 3.6 MB with 200,000 values, the index of 90,000 tensors 9 MB.
# It bounds memory: at worst, one character beyond 16 bits, a byte of text takes 4, and a key with its value 200.
LARGEST_JSON = 24 << 20
MOST_IN_JSON = 500_000
# The bytes of an object that is looked for.
_LARGEST_FOUND = 4096


class DuplicateKeyError(ValueError):
    """A JSON object that has a key, the argument, twice, so that it depends on the reader what it says."""


def read_json_object(path: File, *, emptied: Sequence[str] = ()) -> dict[str, Any]:
    """Return the object that a UTF-8 JSON file holds.

    ``emptied`` are the keys that lead to a large array which nobody needs: it is returned empty, and its elements never
    take memory all at once. Raises ConfigError when the file is missing, unreadable, too large or no JSON object, and
    when an object has a key twice with different values: transformers takes the last one, other readers the first.
    """
    try:
        # A byte order mark is no JSON, but editors on Windows leave one and transformers' files survive it.
        text = _read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise ConfigError(f"{path}: is not UTF-8 text: byte {e.object[e.start]:#04x} at offset {e.start}") from e
    try:
        value = _parse(text, emptied)
    except RecursionError as e:
        raise ConfigError(f"{path}: is JSON nested too deeply to be read") from e
    except DuplicateKeyError as e:
        raise ConfigError(f"{path}: has the key {shown(e.args[0])} twice in one object, with different values") from e
    except ValueError as e:  # JSONDecodeError, or an integer with more digits than Python converts.
        raise ConfigError(f"{path}: is not valid JSON: {e}") from e
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: holds a JSON {type(value).__name__}, should hold an object ({{...}})")
    return value


def find_object(path: File, key: str, text: str) -> dict[str, Any] | None:
    """Return the first small object of a JSON file that has a text under a key, and no object inside; None without any.

    The rest of the file is not parsed, so that it may have more values than ``read_json_object`` takes, as the
    vocabularies of large language models do. Raises ConfigError when the file cannot be read.
    """
    data, wanted = _read_bytes(path, most_values=None), json.dumps(text).encode()
    at = data.find(wanted)
    while at >= 0:
        start, end = data.rfind(b"{", 0, at), data.find(b"}", at)
        if 0 <= start < end < start + _LARGEST_FOUND:
            # Where it is a key of a vocabulary, or beside braces in strings, this is no object.
            with contextlib.suppress(ValueError, RecursionError):
                found = json.loads(data[start : end + 1])
                if found.get(key) == text:
                    return dict(found)
        at = data.find(wanted, at + 1)
    return None


def unique_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object, as ``json.loads`` calls its hook; raises DuplicateKeyError when a key is there twice."""
    values = dict(pairs)
    if len(values) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise DuplicateKeyError(key)
            seen.add(key)
    return values


def _unambiguous_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        for key, value in pairs:
            if values[key] != value:
                raise DuplicateKeyError(key)
    return values


_DECODER = json.JSONDecoder(object_pairs_hook=_unambiguous_object)
_BLANKS = re.compile(r"[ \t\n\r]*")
_COLON = re.compile(r"[ \t\n\r]*:[ \t\n\r]*")
_COMMA_OR_NOT = re.compile(r"[ \t\n\r]*(,?)[ \t\n\r]*")


def _parse(text: str, emptied: Sequence[str]) -> Any:
    """Do what ``json.loads`` does, but empty the array to which keys lead."""
    if emptied:
        with contextlib.suppress(ValueError):  # What is wrong, and where, is for json to say.
            value, at = _parse_along(text, _match(_BLANKS, text, 0).end(), emptied)
            if _match(_BLANKS, text, at).end() == len(text):
                return value
    return _DECODER.decode(text)


def _parse_along(text: str, at: int, keys: Sequence[str]) -> tuple[Any, int]:
    """Parse what begins at a position as ``_parse`` does; return it and where it ends. ValueError: it is no JSON."""
    opening, closing = "{}" if keys else "[]"
    if not text.startswith(opening, at):
        return _DECODER.raw_decode(text, at)
    members: list[tuple[str, Any]] = []
    at = _match(_BLANKS, text, at + 1).end()
    is_last = text.startswith(closing, at)
    while not is_last:
        value, at = _DECODER.raw_decode(text, at)
        if keys:
            key, at = value, _match(_COLON, text, at).end()
            if not isinstance(key, str):
                raise ValueError("a key that is no string")
            value, at = _parse_along(text, at, keys[1:]) if key == keys[0] else _DECODER.raw_decode(text, at)
            members.append((key, value))
        comma = _match(_COMMA_OR_NOT, text, at)
        at, is_last = comma.end(), not comma[1]
    if not text.startswith(closing, at):
        raise ValueError("an end that is missing")
    return _unambiguous_object(members) if keys else [], at + 1


def _match(pattern: "re.Pattern[str]", text: str, at: int) -> "re.Match[str]":
    if (match := pattern.match(text, at)) is None:
        raise ValueError(f"no {pattern.pattern}")
    return match


def _read_bytes(file: File, *, most_values: int | None = MOST_IN_JSON) -> bytearray:
    try:
        with contextlib.closing(file.open()) as source:
            if source.size > LARGEST_JSON:
                raise ConfigError(f"{file}: has {source.size:,} bytes, should have {LARGEST_JSON:,} at most")
            data = bytearray(source.size)
            source.read(0, memoryview(data))
    except CheckpointError as e:
        raise ConfigError(*e.problems) from e
    # Every value but the whole comes after one of these.
    values = sum(map(data.count, (b",", b"[", b"{"))) if most_values is not None else 0
    if most_values is not None and values > most_values:
        raise ConfigError(f"{file}: has {values:,} values, should have {most_values:,} at most")
    return data
