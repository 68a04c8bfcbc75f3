"""CLIP and SigLIP as transformers 4 and 5 save them: CLIPModel, its towers alone, and SigLIP's vision tower."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipgguf.checkpoint import SourceTensor
from clipgguf.config import (
    SiglipVisionConfig,
    TextConfig,
    VisionConfig,
    default_statistics,
    model_name,
    parse_flat_config,
    parse_sub_config,
    read_image_statistics,
)
from clipgguf.errors import CheckpointError, ConfigError, collect, shown
from clipgguf.families.model import Content, Model, Request, found_text, refuse_quantized
from clipgguf.families.towers import tower_prefix
from clipgguf.names import NEVER_WRITTEN, SIGLIP_HEAD, TEXT, VISION, Tower
from clipgguf.vocabulary import read_vocabulary


@dataclass(frozen=True, slots=True)
class _Layout:
    """What a model_type is: the towers that its checkpoints have, and whether config.json is a tower's own, flat."""

    name: str
    towers: tuple[Tower, ...]
    is_flat: bool = False
    is_siglip: bool = False


LAYOUTS: Mapping[str, _Layout] = {
    "clip": _Layout("CLIPModel", (TEXT, VISION)),
    "clip_text_model": _Layout("CLIPTextModel", (TEXT,), is_flat=True),
    "clip_vision_model": _Layout("CLIPVisionModel", (VISION,), is_flat=True),
    "siglip": _Layout("SigLIP (SiglipModel)", (VISION,), is_siglip=True),
    "siglip_vision_model": _Layout("SigLIP (SiglipVisionModel)", (VISION,), is_flat=True, is_siglip=True),
}
# A tower that was saved with the config.json of the whole model tells by its class.
_SINGLE_TOWERS: Mapping[str, Tower] = {
    "CLIPTextModel": TEXT,
    "CLIPTextModelWithProjection": TEXT,
    "CLIPVisionModel": VISION,
    "CLIPVisionModelWithProjection": VISION,
}
SUPPORTED = f"supported are {', '.join(map(repr, LAYOUTS))}, LLaVA's and OpenCLIP's"


def open_transformers(request: Request, config: Mapping[str, Any]) -> Model:
    """Open a directory of CLIP's or SigLIP's whose config.json is already read.

    Raises ConfigError or CheckpointError when it is none, or lacks a part of what was asked for.
    """
    directory = request.directory
    path = directory / "config.json"
    layout, towers = _layout(config, path)
    content = _content(request, layout, towers, path)
    problems: list[str] = []
    text: TextConfig | None = None
    vision: VisionConfig | None = None
    vision_class = SiglipVisionConfig if layout.is_siglip else VisionConfig
    parse = parse_flat_config if layout.is_flat else parse_sub_config
    with collect(problems):
        text = parse(TextConfig, config, "text", path) if TEXT in towers else None
    with collect(problems):
        vision = parse(vision_class, config, "vision", path) if VISION in towers else None
    ConfigError.raise_all(problems)
    # Before the headers, whose validation imports numpy: what parsing a vocabulary needs is then free again.
    vocabulary = read_vocabulary(directory, request.vocab) if TEXT in content.towers else None
    statistics = None
    if vision is not None and VISION in content.towers:
        default = default_statistics(vision)
        statistics = read_image_statistics((directory,), request.image_mean, request.image_std, default)
    checkpoint = request.open_checkpoint()
    refuse_quantized(config, path, checkpoint.tensors.values())
    tensors, prefixes = _canonical(checkpoint.tensors, towers, directory)
    notes: tuple[str, ...] = ()
    if layout.is_siglip:
        tensors, notes = without_siglip_extras(tensors)
    single = towers[0] if len(towers) == 1 else None
    return Model(
        directory=directory,
        found=found_text(layout.name, checkpoint, prefixes),
        name=model_name(config, directory),
        content=content,
        text=text,
        vision=vision,
        tensors=tensors,
        vocabulary=vocabulary,
        statistics=statistics,
        has_projection=single is None or single.projection in tensors,
        ignore_unknown=request.ignore_unknown,
        notes=notes,
    )


def _layout(config: Mapping[str, Any], path: Path) -> tuple[_Layout, tuple[Tower, ...]]:
    """Return what config.json describes, and which towers the checkpoint has."""
    model_type = config.get("model_type")
    if model_type is None and any(key in config for key in ("text_config", "vision_config")):
        model_type = "clip"
    layout = LAYOUTS.get(model_type) if isinstance(model_type, str) else None
    if layout is None:
        is_what = "has no model_type" if model_type is None else f"is of model_type {shown(model_type)}"
        raise ConfigError(f"{path}: {is_what}, {SUPPORTED}")
    architectures = config.get("architectures")
    if model_type == "clip" and isinstance(architectures, list) and len(architectures) == 1:
        name = architectures[0]
        tower = _SINGLE_TOWERS.get(name) if isinstance(name, str) else None
        if tower is not None:
            return _Layout(name, (tower,)), (tower,)
    return layout, layout.towers


def _content(request: Request, layout: _Layout, towers: tuple[Tower, ...], path: Path) -> Content:
    """Return what goes into the file: what was asked for, else everything that is there."""
    if layout.is_siglip and not layout.is_flat and not request.vision_only:
        raise ConfigError(
            f"{path}: is a SigLIP model of two towers, which no reader of GGUF files can run (clip.cpp knows neither "
            "its text tower nor its attention pooling); --vision-only converts the vision tower"
        )
    for asked, option, tower, kind in (
        (request.text_only, "--text-only", TEXT, "vision"),
        (request.vision_only, "--vision-only", VISION, "text"),
    ):
        if asked and tower not in towers:
            raise CheckpointError(
                f"{path.parent}: has only a {kind} tower ({layout.name}); {option} asks for the one that is not there"
            )
    return request.content(towers)


def _canonical(
    tensors: Mapping[str, SourceTensor], towers: tuple[Tower, ...], directory: Path
) -> tuple[dict[str, SourceTensor], list[str]]:
    """Return the tensors under canonical names, and the prefixes that the towers had.

    A tower alone may have another prefix than "vision_model." or "text_model.", or none (as transformers 5 saves it).
    """
    canonical = dict(tensors)
    prefixes = []
    for tower in towers:
        prefix = tower_prefix(tensors, directory, tower)
        prefixes.append(tower.canonical_prefix if prefix is None else prefix)
        if prefix is None or prefix == tower.canonical_prefix:
            continue
        beside = {tower.projection, *NEVER_WRITTEN, "logit_bias"}
        canonical = {
            tower.canonical_prefix + name.removeprefix(prefix)
            if name.startswith(prefix) and name not in beside
            else name: t
            for name, t in canonical.items()
        }
    return canonical, prefixes


def without_siglip_extras(
    tensors: Mapping[str, SourceTensor],
) -> tuple[dict[str, SourceTensor], tuple[str, ...]]:
    """Return SigLIP's tensors without those that no reader can run, and a note that says so."""
    kept = {
        name: tensor
        for name, tensor in tensors.items()
        if not (name.startswith(SIGLIP_HEAD) or TEXT.owns(name) or name in ("logit_scale", "logit_bias"))
    }
    head = sum(name.startswith(SIGLIP_HEAD) for name in tensors)
    note = f"{SIGLIP_HEAD}* is left out ({head} tensors): no reader of GGUF files runs SigLIP's attention pooling"
    return kept, (note,) if head else ()
