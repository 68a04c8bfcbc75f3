"""The families of models that can be converted."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass

from clipgguf.families import MODULES, PARAMS, POCKET_TTS


@dataclass(frozen=True, slots=True)
class SupportedFamily:
    """A family: its name, what it is met by, the projectors of its files, and who runs these.

    ``met_by`` are model_types of config.json, of which "llava+pixtral" is llava with a vision_config of model_type
    pixtral, and classes in its ``architectures``; without a config.json another file, or what names of tensors begin
    with. ``projector_types`` are what ``clip.projector_type`` is.
    """

    title: str
    met_by: tuple[str, ...]
    projector_types: tuple[str, ...]
    readers: tuple[str, ...]


# Those that are more than a table.
_OTHERS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "clip": ("CLIP, SigLIP, OpenCLIP", ("clip.cpp",)),
    "llava": ("LLaVA", ("llama.cpp", "PowerInfer")),
}
# Those whose checkpoints have no config.json: by what else they are met.
_NO_CONFIG: Mapping[str, tuple[str, ...]] = {"mistral": (PARAMS,), "pocket_tts": (f"{POCKET_TTS}*",)}


def supported_families() -> tuple[SupportedFamily, ...]:
    """Return all families, by their names."""
    found = []
    for module, (names, projector_types) in MODULES.items():
        title, readers = _OTHERS.get(module) or (_title(module), ("llama.cpp",))
        met_by = names or _NO_CONFIG[module]
        found.append(SupportedFamily(title, met_by, projector_types, readers))
    return tuple(sorted(found, key=lambda family: family.title.lower()))


def _title(module: str) -> str:
    title: str = importlib.import_module(f"clipgguf.families.{module}").FAMILY.title
    return title
