"""The public names: all that the functions take and return is exported, typed and documented."""

import dataclasses
import inspect
import sys
import typing
from collections.abc import Iterator
from typing import Any

from numpy.typing import NDArray

import clipgguf
from clipgguf import Options

FUNCTIONS = ("convert", "inspect", "plan", "upgrade", "verify")
PUBLIC: dict[str, Any] = {name: getattr(clipgguf, name) for name in clipgguf.__all__}


def hints(of: Any) -> dict[str, Any]:
    """Return the types of parameters or fields, also where they are imported for the type checker only."""
    return typing.get_type_hints(of, vars(sys.modules[of.__module__]), {**PUBLIC, "NDArray": NDArray})


def classes(kind: Any) -> Iterator[type]:
    """Yield the project's own classes in a type."""
    for part in typing.get_args(kind):
        yield from classes(part)
    if isinstance(kind, type) and kind.__module__.startswith("clipgguf"):
        yield kind


def test_all_that_is_returned_is_exported() -> None:
    seen: set[type] = set()
    left = [kind for name in FUNCTIONS for hint in hints(PUBLIC[name]).values() for kind in classes(hint)]
    while left:
        kind = left.pop()
        if kind not in seen:
            seen.add(kind)
            assert PUBLIC.get(kind.__name__) is kind, kind
            left += [inner for hint in hints(kind).values() for inner in classes(hint)]
    assert len(seen) >= 15


def test_everything_public_is_documented() -> None:
    for name, thing in PUBLIC.items():
        if isinstance(thing, type) or inspect.isfunction(thing):
            assert inspect.getdoc(thing), name


def test_functions_take_the_same() -> None:
    for name in ("convert", "verify", "plan"):
        assert hints(PUBLIC[name])["options"] is Options
    for name in ("convert", "verify"):
        keywords = [p.name for p in inspect.signature(PUBLIC[name]).parameters.values() if p.kind == p.KEYWORD_ONLY]
        assert keywords == ["threads", "progress"]


def test_options_are_a_value() -> None:
    options = Options(outtype="q8_0", image_mean=(0.5, 0.5, 0.5))
    assert options == Options(outtype="q8_0", image_mean=(0.5, 0.5, 0.5))
    assert dataclasses.replace(options, outtype="f16").image_mean == options.image_mean
    assert all(field.metadata["text"] for field in dataclasses.fields(options))
