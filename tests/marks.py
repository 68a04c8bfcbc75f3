"""Parameters of tests of which only some run by default."""

from collections.abc import Iterable
from typing import Any

import pytest


def slow_but_for(values: Iterable[object], *fast: object) -> list[Any]:
    """Return values as parameters of a test that is slow but for some of them."""
    return [pytest.param(value, marks=() if value in fast else pytest.mark.slow) for value in values]
