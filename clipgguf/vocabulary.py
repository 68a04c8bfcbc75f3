"""The text tower's vocabulary: token strings in the order of their ids."""

import itertools
import operator
import struct
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, overload

from clipgguf.errors import ConfigError, shown
from clipgguf.json_file import read_json_object
from clipgguf.options import PathLike
from clipgguf.sources import File, Folder
from clipgguf.sources.given import place

# What stands before a token in a GGUF file: how many bytes it has.
_LENGTH = struct.Struct("<Q")
# How many tokens are packed at once: all of them would take, for a moment, more memory than the rest of a conversion.
_AT_ONCE = 512


class Vocabulary(Sequence[str]):
    """Tokens, the one with id N at index N, in a tenth of the memory of a list of strings.

    CLIP's 49,408 tokens are 0.4 MB of text; as Python objects they would be a noticeable part of a conversion's memory.
    """

    def __init__(self, text: bytes, bounds: Sequence[int]) -> None:
        """Take UTF-8 text in which token N lies between the bounds N and N + 1."""
        self._text = text
        self._bounds = bounds

    @classmethod
    def pack(cls, tokens: Iterable[str]) -> "Vocabulary":
        """Pack tokens; UnicodeEncodeError for one that is no valid Unicode (it has a lone surrogate)."""
        text = bytearray()
        bounds = array("I", [0])
        rest = iter(tokens)
        while some := [token.encode() for token in itertools.islice(rest, _AT_ONCE)]:
            text += b"".join(some)
            ends = itertools.accumulate(map(len, some), initial=bounds[-1])
            bounds.extend(itertools.islice(ends, 1, None))
        return cls(bytes(text), memoryview(bounds))

    def __len__(self) -> int:
        """Return the number of tokens."""
        return len(self._bounds) - 1

    @property
    def nbytes(self) -> int:
        """The bytes of UTF-8 that all tokens together have."""
        return self._bounds[-1] - self._bounds[0]

    def as_strings(self) -> Iterator[bytes]:
        """Yield the tokens as a GGUF file has them, many at once: each one's length, 8 bytes, and its UTF-8."""
        for first in range(0, len(self), _AT_ONCE):
            bounds = self._bounds[first : first + _AT_ONCE + 1]
            some = [self._text[start:end] for start, end in itertools.pairwise(bounds)]
            lengths = map(_LENGTH.pack, map(len, some))
            yield b"".join(itertools.chain.from_iterable(zip(lengths, some, strict=True)))

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> "Vocabulary": ...
    def __getitem__(self, index: "int | slice") -> "str | Vocabulary":
        """Return the token with an id, or those of a range of ids, which shares the memory of the whole."""
        chosen = range(len(self))[index]
        if isinstance(chosen, range):
            if chosen.step != 1:
                raise ValueError("a vocabulary has slices of consecutive tokens only")
            return Vocabulary(self._text, self._bounds[chosen.start : chosen.stop + 1])
        return self._text[self._bounds[chosen] : self._bounds[chosen + 1]].decode()

    def __iter__(self) -> Iterator[str]:
        """Yield the tokens in the order of their ids."""
        text = self._text
        return (text[start:end].decode() for start, end in itertools.pairwise(self._bounds))


def read_vocabulary(directory: Folder, given: PathLike | None = None) -> Vocabulary:
    """Return the vocabulary of a model directory, or the one of a file or directory that is ``given``.

    It comes from vocab.json (an object, token to id), else from tokenizer.json, the only one that transformers 5
    writes: ``model.vocab`` and, with ids of their own, ``added_tokens``. A diffusers pipeline has them beside the text
    encoder: in tokenizer/ for text_encoder/, in tokenizer_2/ for text_encoder_2/.
    Raises ConfigError when there is neither, or when the ids are not exactly 0 to n - 1.
    """
    first = directory if given is None else place(given)
    if isinstance(first, File):
        return _read_file(first)
    places = [first]
    if given is None and "text_encoder" in directory.title:
        places.append(directory.folder("../" + directory.title.replace("text_encoder", "tokenizer")))
    for folder in places:
        for name in ("vocab.json", "tokenizer.json"):
            if name in folder:
                return _read_file(folder.file(name))
    needs = "the text tower needs its vocabulary (--vocab takes one, --vision-only converts without)"
    raise ConfigError(f"{' and '.join(map(str, places))}: no vocab.json and no tokenizer.json; {needs}")


def _tokenizer_items(tokenizer: dict[str, Any], path: File) -> dict[str, Any]:
    model, added = tokenizer.get("model"), tokenizer.get("added_tokens") or []
    tokens = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(tokens, dict):
        raise ConfigError(f"{path}: model.vocab is missing or no object (token to id)")
    if not isinstance(added, list) or not all(isinstance(t, dict) and isinstance(t.get("content"), str) for t in added):
        raise ConfigError(f"{path}: added_tokens should be a list of objects with 'content' and 'id'")
    # A special token usually stands in both lists, under the same id.
    return {**tokens, **{token["content"]: token.get("id") for token in added}}


def _read_file(path: File) -> Vocabulary:
    """Read a vocab.json or a tokenizer.json, which is told by its ``model``."""
    # Two thirds of a tokenizer.json are the merges, two strings for each token, and nobody needs them here.
    values = read_json_object(path, emptied=() if path.name == "vocab.json" else ("model", "merges"))
    if isinstance(values.get("model"), dict) or path.name == "tokenizer.json":
        values = _tokenizer_items(values, path)
    if not values:
        raise ConfigError(f"{path}: the vocabulary is empty")
    ids = values.values()
    if set(map(type, ids)) != {int} or not all(map(operator.eq, sorted(ids), range(len(ids)))):
        raise ConfigError(f"{path}: {_fault(values)}")
    try:
        return Vocabulary.pack(sorted(values, key=values.__getitem__))
    except UnicodeEncodeError as e:
        token = f"token {shown(e.object)} (id {values[e.object]})"
        raise ConfigError(f"{path}: {token} is no valid Unicode, GGUF strings are UTF-8") from e


def _fault(ids: Mapping[str, Any]) -> str:
    """Return what is wrong with tokens' ids that are not exactly 0 to n - 1."""
    tokens: dict[int, str] = {}
    for token, token_id in ids.items():
        if type(token_id) is not int or token_id < 0:
            return f"token {shown(token)} has id {shown(token_id)}, should be an integer from 0"
        if token_id in tokens:
            return f"id {token_id} belongs to two tokens, {shown(tokens[token_id])} and {shown(token)}"
        tokens[token_id] = token
    hole = next(number for number in range(len(tokens)) if number not in tokens)
    return f"no token has id {hole}, but the ids go up to {max(tokens)}; they should have no holes"
