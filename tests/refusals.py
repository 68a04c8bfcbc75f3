"""What is refused: in a few short lines, soon, and with the disk as it was."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clipgguf import ClipGGUFError, Options, convert, plan
from clipgguf.json_file import LARGEST_JSON
from tests.processes import peak_of, taking_at_most


def refusal(read: Callable[[], object]) -> str:
    """Return the lines that refuse something, after making sure that they come soon and are short."""
    with taking_at_most(2), pytest.raises(ClipGGUFError) as caught:
        read()
    assert caught.value.problems
    assert all(0 < len(line) < 2000 for line in caught.value.problems)
    return str(caught.value)


def refused_plan(model: Path, **options: Any) -> str:
    """Return the lines that refuse a model when it is planned, which writes nothing."""
    return refusal(lambda: plan(model, options=Options(**options)))


def refused(model: Path, **options: Any) -> str:
    """Return the lines that refuse a conversion, after making sure that nothing was written."""
    before = sorted(model.parent.rglob("*"))
    message = refusal(lambda: convert(model, options=Options(**options)))
    assert sorted(model.parent.rglob("*")) == before
    return message


def assert_refused_without_reading(read: Callable[[], object], words: str) -> None:
    """Hold a refusal to these words, and what it takes to the memory that a JSON file may take."""
    messages: list[str] = []
    assert peak_of(lambda: messages.append(refusal(read))) < LARGEST_JSON + (1 << 20)
    assert words in messages[0]
