"""The text tower's vocabulary: token strings in the order of their ids."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from clipgguf.errors import ConfigError
from clipgguf.json_file import read_json_object


def read_vocabulary(directory: Path) -> list[str]:
    """Return the tokens of a model directory, the one with id N at index N.

    They come from vocab.json (an object, token to id), else from tokenizer.json, the only one that transformers 5
    writes: ``model.vocab`` and, with ids of their own, ``added_tokens``.
    Raises ConfigError when there is neither, or when the ids are not exactly 0 to n - 1.
    """
    vocab, tokenizer = directory / "vocab.json", directory / "tokenizer.json"
    if vocab.exists():
        return _by_id(read_json_object(vocab).items(), vocab)
    if tokenizer.exists():
        return _by_id(_tokenizer_items(read_json_object(tokenizer), tokenizer).items(), tokenizer)
    raise ConfigError(
        f"{directory}: has neither vocab.json nor tokenizer.json; the text tower needs its vocabulary "
        "(--vision-only converts without one)"
    )


def _tokenizer_items(tokenizer: dict[str, Any], path: Path) -> dict[str, Any]:
    model, added = tokenizer.get("model"), tokenizer.get("added_tokens") or []
    tokens = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(tokens, dict):
        raise ConfigError(f"{path}: model.vocab is missing or no object (token to id)")
    if not isinstance(added, list) or not all(isinstance(t, dict) and isinstance(t.get("content"), str) for t in added):
        raise ConfigError(f"{path}: added_tokens should be a list of objects with 'content' and 'id'")
    # A special token usually stands in both lists, under the same id.
    return {**tokens, **{token["content"]: token.get("id") for token in added}}


def _by_id(items: Iterable[tuple[str, Any]], path: Path) -> list[str]:
    tokens: dict[int, str] = {}
    for token, token_id in items:
        if type(token_id) is not int or token_id < 0:
            raise ConfigError(f"{path}: token {token!r} has id {token_id!r}, should be an integer from 0")
        if token_id in tokens:
            raise ConfigError(f"{path}: id {token_id} belongs to two tokens, {tokens[token_id]!r} and {token!r}")
        if not _is_encodable(token):
            raise ConfigError(f"{path}: token {token!r} (id {token_id}) is no valid Unicode, GGUF strings are UTF-8")
        tokens[token_id] = token
    if not tokens:
        raise ConfigError(f"{path}: the vocabulary is empty")
    try:
        return [tokens[i] for i in range(len(tokens))]
    except KeyError as e:
        raise ConfigError(
            f"{path}: no token has id {e.args[0]}, but the ids go up to {max(tokens)}; they should have no holes"
        ) from e


def _is_encodable(token: str) -> bool:
    try:
        token.encode()
    except UnicodeEncodeError:  # A lone surrogate, which JSON can spell and UTF-8 cannot.
        return False
    return True
