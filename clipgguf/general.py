"""The metadata ``general.*`` that say whose model it is, as llama.cpp's converter writes them.

gguf's own ``Metadata`` has the rules. What a model card has of another type than the key wants is left out with a
warning, where the converter ends in a traceback.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped] # Which gguf needs and installs.
from gguf import GGUFValueType, GGUFWriter, Metadata, size_label

from clipgguf.checkpoint.gguf_file import ARCHITECTURE, MetadataItem
from clipgguf.config import valid_text
from clipgguf.errors import ConfigError, shown
from clipgguf.model_card import CARD, ModelCard

# What generation_config.json calls the values that are recommended for sampling.
_SAMPLING: Mapping[str, Sequence[str]] = {
    **{key: (key,) for key in ("sequence", "top_k", "top_p", "min_p", "xtc_probability", "xtc_threshold")},
    "temp": ("temperature",),
    "penalty_last_n": ("penalty_last_n",),
    "penalty_repeat": ("penalty_repeat", "repetition_penalty"),
    **{key: (key,) for key in ("mirostat", "mirostat_tau", "mirostat_eta")},
}
_WANTED = {
    GGUFValueType.STRING: "text",
    GGUFValueType.UINT32: "a whole number",
    GGUFValueType.INT32: "a whole number",
    GGUFValueType.FLOAT32: "a number",
}


def experts_in(tensors: Iterable[tuple[str, tuple[int, ...]]]) -> tuple[int, int, int]:
    """Return how many values tensors, by name and shape, have beside experts, and in one; and how many experts.

    Experts are stacked along the first of three axes or more, and counted as gguf does for the size label, "8x7B":
    where blocks have different numbers of them, that is the mean.
    """
    counted = [(math.prod(shape), shape[0] if "_exps." in name and len(shape) > 2 else 0) for name, shape in tensors]
    stacks = [count for _, count in counted if count]
    in_one = sum(elements // count for elements, count in counted if count)
    return sum(elements for elements, count in counted if not count), in_one, sum(stacks) // max(1, len(stacks))


def general_metadata(
    model: ModelCard, elements: int, experts: tuple[int, int, int] = (0, 0, 0)
) -> tuple[list[MetadataItem], list[str]]:
    """Return the keys and values in the converter's order, and warnings about what is left out.

    ``elements`` is how many values the tensors of the file have, from which the size label follows, and ``experts``
    what ``experts_in`` gives. Raises ConfigError when what is given is no key, or not of its key's type.
    """
    for key in model.given:
        if not hasattr(Metadata, _field(key)):
            raise ConfigError(f"{model.given_by}: {shown(key)} is no key of general metadata, such as 'general.author'")
    warnings: list[str] = []
    card = _card(model.card, warnings)
    path = model.config.get("_name_or_path")
    config = {"_name_or_path": path} if isinstance(path, str) and path else {}
    try:
        found = Metadata.apply_metadata_heuristic(Metadata(), card, config, Path(model.title), elements)
    except (AttributeError, TypeError, ValueError, IndexError) as e:
        warnings.append(f"{CARD}: the model card is not as it should be ({e}); general.* are written without it")
        found = Metadata.apply_metadata_heuristic(Metadata(), {}, config, Path(model.title), elements)
    for name, theirs in _SAMPLING.items():
        setattr(found, f"sampling_{name}", next((model.sampling[key] for key in theirs if key in model.sampling), None))
    for key, value in model.given.items():
        setattr(found, _field(key), value)
    found.name = model.name or _text(found.name) or model.title
    if found.size_label is None and elements:
        found.size_label = size_label(elements, *experts)
    return list(_written(found, model, warnings)), warnings


def _field(key: str) -> str:
    """Return what gguf's record calls a key: general.source.url is source_url."""
    return key.removeprefix("general.").replace(".", "_") if key.startswith("general.") else ""


def _card(text: str, warnings: list[str]) -> dict[str, Any]:
    """Return a model card's values. As llama.cpp reads it: "no" is a language and not false, a tab two spaces."""
    try:
        values = yaml.safe_load(text.replace("- no\n", '- "no"\n').replace("\t", "  "))
    except (yaml.YAMLError, ValueError, RecursionError) as e:
        line = str(e).splitlines()[0] if str(e) else type(e).__name__
        warnings.append(f"{CARD}: the model card's YAML cannot be read ({line}); general.* are written without it")
        return {}
    return {key: value for key, value in values.items() if isinstance(key, str)} if isinstance(values, dict) else {}


def _written(found: Metadata, model: ModelCard, warnings: list[str]) -> Iterator[MetadataItem]:
    """Yield what gguf's writer would be told, each value checked."""
    for name, models in (("base_models", found.base_models), ("datasets", found.datasets)):
        if not (isinstance(models, list) and models and all(isinstance(model, dict) for model in models)):
            setattr(found, name, None)
    if isinstance(found.license, list):
        found.license = ",".join(filter(None, map(_text, found.license)))
    writer = GGUFWriter(None, "clip")
    found.set_gguf_meta_model(writer)
    for key, entry in writer.kv_data[0].items():
        if key == ARCHITECTURE:
            continue
        is_array = entry.type == GGUFValueType.ARRAY
        kind = GGUFValueType.STRING if is_array else entry.type
        values = entry.value if is_array and isinstance(entry.value, list) else [entry.value]
        fitting = list(_fitting(kind, values))
        if len(fitting) < len(values):
            what = f"{key} is {shown(entry.value)}, should be {_WANTED[kind]}"
            if key in model.given:
                raise ConfigError(f"{model.given_by}: {what}")
            warnings.append(f"{CARD}: {what}; it is left out")
        if fitting:
            yield MetadataItem(key, kind, fitting if is_array else fitting[0])


def _text(value: Any) -> str | None:
    """Return a value as text, a number as it is written; None for what is no text."""
    is_text = isinstance(value, str) or (isinstance(value, int | float) and not isinstance(value, bool))
    return valid_text(str(value)) if is_text and str(value) else None


def _fitting(kind: GGUFValueType, values: Iterable[Any]) -> Iterator[Any]:
    """Yield the values that are of a type; of text, numbers become it."""
    for value in values:
        if kind == GGUFValueType.STRING:
            if (text := _text(value)) is not None:
                yield text
        elif kind == GGUFValueType.FLOAT32:
            if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 3.4e38:
                yield float(value)
        elif type(value) is int and (0 if kind == GGUFValueType.UINT32 else -(2**31)) <= value < 2**31:
            yield value
