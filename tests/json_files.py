"""JSON files of a model: written, and changed in place."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_json(path: Path, value: object) -> None:
    """Write a JSON file as UTF-8."""
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")


def edit_json(path: Path, edit: Callable[[Any], object]) -> None:
    """Change a JSON file in place by a function that changes what it holds."""
    value = json.loads(path.read_text(encoding="utf-8"))
    edit(value)
    write_json(path, value)


def change(key: str, part: str | None = None, **values: Any) -> Callable[[Any], None]:
    """Return what sets values of an object under a key, or of a part of that object."""

    def edit(config: Any) -> None:
        where = config[key] if part is None else config[key][part]
        where.update(values)

    return edit
