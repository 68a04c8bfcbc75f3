"""What tells whose model it is, read and not yet judged: the model card, the configuration, a file that is given."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from clipgguf.errors import ConfigError
from clipgguf.json_file import read_json_object
from clipgguf.sources import File, Folder

# The most of a README.md that is looked at for the end of its front matter.
LARGEST_CARD = 1 << 18
CARD, GENERATION = "README.md", "generation_config.json"


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What the metadata ``general.*`` are made from.

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


def read_model_card(folder: Folder, config: Mapping[str, Any], name: str | None, given: File | None) -> ModelCard:
    """Read the files that are there; ``given`` is the one of values that override. ConfigError when it is malformed.

    What is wrong with generation_config.json matters to nobody here.
    """
    sampling: Mapping[str, Any] = {}
    if folder.file(GENERATION).is_present:
        try:
            sampling = read_json_object(folder.file(GENERATION))
        except ConfigError:
            sampling = {}
    values = {} if given is None else read_json_object(given)
    return ModelCard(folder.title, name, _front_matter(folder.file(CARD)), config, sampling, values, given)


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
