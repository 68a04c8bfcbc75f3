"""JSON files of a model directory: read whole, checked, and never trusted."""

import json
from pathlib import Path
from typing import Any

from clipgguf.errors import ConfigError, os_reason, why_no_file


def is_present(path: Path) -> bool:
    """Return whether there is something of this name; a broken symbolic link does not pass for nothing."""
    return path.is_symlink() or path.exists()


def read_json_object(path: Path) -> dict[str, Any]:
    """Return the object that a UTF-8 JSON file holds.

    Raises ConfigError when the file is missing, unreadable, no JSON, or JSON whose top level is no object.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: {why_no_file(path)}")
    try:
        # A byte order mark is no JSON, but editors on Windows leave one and transformers' files survive it.
        text = path.read_text(encoding="utf-8-sig")
    except OSError as e:
        raise ConfigError(f"{path}: cannot be read: {os_reason(e)}") from e
    except UnicodeDecodeError as e:
        raise ConfigError(f"{path}: is not UTF-8 text: byte {e.object[e.start]:#04x} at offset {e.start}") from e
    try:
        value = json.loads(text)
    except RecursionError as e:
        raise ConfigError(f"{path}: is JSON nested too deeply to be read") from e
    except ValueError as e:  # JSONDecodeError, or an integer with more digits than Python converts.
        raise ConfigError(f"{path}: is not valid JSON: {e}") from e
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: holds a JSON {type(value).__name__}, should hold an object ({{...}})")
    return value
