"""The metadata ``general.*`` that say whose model it is, as llama.cpp's converter writes them.

They come from the model card (the YAML before the text of README.md), config.json, generation_config.json, and the
directory's name; gguf's own ``Metadata`` has the rules. What a card has of another type than the key wants is left out
with a warning, where the converter ends in a traceback.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped] # Which gguf needs and installs.
from gguf import GGUFValueType, GGUFWriter, Metadata, size_label

from clipgguf.checkpoint.gguf_file import MetadataItem
from clipgguf.config import valid_text
from clipgguf.errors import ConfigError, shown
from clipgguf.json_file import read_json_object
from clipgguf.sources import File, Folder

# The most of a README.md that is looked at for the end of its front matter.
LARGEST_CARD = 1 << 18
CARD, GENERATION = "README.md", "generation_config.json"


@dataclass(frozen=True, slots=True)
class General:
    """What the general metadata are made from, read and not yet judged.

    ``title`` is the directory's name, ``name`` what was asked for. ``card`` is the YAML text of the model card,
    ``config`` config.json, ``sampling`` generation_config.json, and ``given`` the values by GGUF key that override all,
    from the file ``given_by``.
    """

    title: str
    name: str | None = None
    card: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    sampling: Mapping[str, Any] = field(default_factory=dict)
    given: Mapping[str, Any] = field(default_factory=dict)
    given_by: File | None = None

    @classmethod
    def read(cls, folder: Folder, config: Mapping[str, Any], name: str | None, given: File | None) -> "General":
        """Read a model's files; ``given`` is the file of values that override. Raises ConfigError when it is malformed.

        What is wrong with generation_config.json matters to nobody here.
        """
        sampling: Mapping[str, Any] = {}
        if folder.file(GENERATION).is_present:
            try:
                sampling = read_json_object(folder.file(GENERATION))
            except ConfigError:
                sampling = {}
        values = read_json_object(given) if given is not None else {}
        if strange := [key for key in values if not hasattr(Metadata, _field(key))]:
            raise ConfigError(f"{given}: {shown(strange[0])} is no key of general metadata, such as 'general.author'")
        return cls(folder.title, name, _front_matter(folder.file(CARD)), config, sampling, values, given)

    def items(self, elements: int) -> tuple[list[MetadataItem], list[str]]:
        """Return the keys and values in the converter's order, and warnings about what is left out.

        ``elements`` is how many values the tensors of the file have, from which the size label follows. Raises
        ConfigError when a value that was given is not of its key's type.
        """
        warnings: list[str] = []
        card = self._card(warnings)
        path = self.config.get("_name_or_path")
        config = {"_name_or_path": path} if isinstance(path, str) and path else {}
        try:
            found = Metadata.apply_metadata_heuristic(Metadata(), card, config, Path(self.title), elements)
        except (AttributeError, TypeError, ValueError, IndexError) as e:
            warnings.append(f"{CARD}: the model card is not as it should be ({e}); general.* are written without it")
            found = Metadata.apply_metadata_heuristic(Metadata(), {}, config, Path(self.title), elements)
        for key, theirs in _SAMPLING.items():
            setattr(found, f"sampling_{key}", next((self.sampling[k] for k in theirs if k in self.sampling), None))
        for key, value in self.given.items():
            setattr(found, _field(key), value)
        found.name = self.name or _text(found.name) or self.title
        if found.size_label is None and elements:
            found.size_label = size_label(elements, 0, 0, 0)
        return list(self._written(found, warnings)), warnings

    def _card(self, warnings: list[str]) -> dict[str, Any]:
        """Return the card's values. As llama.cpp reads it: "no" is a language and not false, a tab two spaces."""
        text = self.card.replace("- no\n", '- "no"\n').replace("\t", "  ")
        try:
            values = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError, RecursionError) as e:
            line = str(e).splitlines()[0] if str(e) else type(e).__name__
            warnings.append(f"{CARD}: the model card's YAML cannot be read ({line}); general.* are written without it")
            return {}
        return {key: value for key, value in values.items() if isinstance(key, str)} if isinstance(values, dict) else {}

    def _written(self, found: Metadata, warnings: list[str]) -> Iterator[MetadataItem]:
        """Yield what gguf's writer would be told, each value checked."""
        for name, models in (("base_models", found.base_models), ("datasets", found.datasets)):
            if not (isinstance(models, list) and models and all(isinstance(model, dict) for model in models)):
                setattr(found, name, None)
        if isinstance(found.license, list):
            found.license = ",".join(filter(None, map(_text, found.license)))
        writer = GGUFWriter(None, "clip")
        found.set_gguf_meta_model(writer)
        for key, entry in writer.kv_data[0].items():
            if key == "general.architecture":
                continue
            is_array = entry.type == GGUFValueType.ARRAY
            kind = GGUFValueType.STRING if is_array else entry.type
            values = entry.value if is_array and isinstance(entry.value, list) else [entry.value]
            fitting = list(_fitting(kind, values))
            if len(fitting) < len(values):
                what = f"{key} is {shown(entry.value)}, should be {_WANTED[kind]}"
                if key in self.given:
                    raise ConfigError(f"{self.given_by}: {what}")
                warnings.append(f"general metadata: {what}; it is left out")
            if fitting:
                yield MetadataItem(key, kind, fitting if is_array else fitting[0])


def _field(key: str) -> str:
    """Return what gguf's record calls a key: general.source.url is source_url."""
    return key.removeprefix("general.").replace(".", "_") if key.startswith("general.") else ""


# What generation_config.json calls the values that are recommended for sampling.
_SAMPLING: Mapping[str, Sequence[str]] = {
    **{key: (key,) for key in ("sequence", "top_k", "top_p", "min_p", "xtc_probability", "xtc_threshold")},
    "temp": ("temperature",),
    "penalty_last_n": ("penalty_last_n",),
    "penalty_repeat": ("penalty_repeat", "repetition_penalty"),
    **{key: (key,) for key in ("mirostat", "mirostat_tau", "mirostat_eta")},
}


def _front_matter(file: File) -> str:
    """Return the YAML between the first line and the next of three hyphens; empty where there is none."""
    if not file.is_present:
        return ""
    source = file.open()
    data = bytearray(min(source.size, LARGEST_CARD))
    source.read(0, memoryview(data))
    source.close()
    first, *lines = bytes(data).decode("utf-8", "replace").splitlines() or [""]
    end = next((number for number, line in enumerate(lines) if line == "---"), None)
    return "\n".join([*lines[:end], ""]) if first == "---" and end is not None else ""


def _text(value: Any) -> str | None:
    """Return a value as text, a number as it is written; None for what is no text."""
    is_text = isinstance(value, str) or (isinstance(value, int | float) and not isinstance(value, bool))
    return valid_text(str(value)) if is_text and str(value) else None


_WANTED = {
    GGUFValueType.STRING: "text",
    GGUFValueType.UINT32: "a whole number",
    GGUFValueType.INT32: "a whole number",
    GGUFValueType.FLOAT32: "a number",
}


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
