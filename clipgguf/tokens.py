"""The ids of single tokens, from whatever file of a tokenizer a model has."""

from clipgguf.config import LARGEST_UINT32
from clipgguf.errors import ConfigError, shown
from clipgguf.json_file import find_object, read_json_object
from clipgguf.sources import File, Folder

# Files of a whole vocabulary, the key of a special token's text and that of its id: of tokenizers, and of Mistral's.
_FILES = (("tokenizer.json", "content", "id"), ("tekken.json", "token_str", "rank"))


def token_id(folder: Folder, token: str) -> int:
    """Return the id of a special token: of tokenizer_config.json, else of tokenizer.json or Mistral's tekken.json.

    Raises ConfigError when no file has it, or when its id is no integer from 0.
    """
    path = folder.file("tokenizer_config.json")
    tokens = read_json_object(path).get("added_tokens_decoder") if path.is_present else None
    for number, value in (tokens if isinstance(tokens, dict) else {}).items():
        if isinstance(value, dict) and value.get("content") == token:
            return _checked(path, token, int(number) if number.isdecimal() else number)
    for name, text, number in _FILES:
        path = folder.file(name)
        if path.is_present and (found := find_object(path, text, token)) is not None:
            return _checked(path, token, found.get(number))
    names = ", ".join(["tokenizer_config.json", *(name for name, _, _ in _FILES)])
    raise ConfigError(f"{folder}: no file has the token {shown(token)}, should be in one of {names}")


def _checked(path: File, token: str, number: object) -> int:
    if type(number) is not int or not 0 <= number <= LARGEST_UINT32:
        raise ConfigError(f"{path}: token {shown(token)} has id {shown(number)}, should be an integer from 0")
    return number
