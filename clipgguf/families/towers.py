"""Vision towers of CLIP, wherever they stand in a checkpoint and whether or not a config describes them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipgguf.checkpoint import SourceTensor
from clipgguf.config import SiglipVisionConfig, VisionConfig, parse_sub_config, parse_tower
from clipgguf.errors import CheckpointError, ConfigError, shown
from clipgguf.json_file import read_json_object
from clipgguf.names import NEVER_WRITTEN, TEXT, VISION, Tower

# By these tensors a tower is found, whatever stands in front of its names (a dozen spellings are in use).
_LANDMARKS = {VISION: "embeddings.patch_embedding.weight", TEXT: "embeddings.token_embedding.weight"}

# Towers that LLaVA configs only name, by the last part of the name: sizes from their own config.json. A projection_dim
# that readers ask for but do not use is that of the whole CLIP model.
KNOWN_TOWERS: Mapping[str, VisionConfig] = {
    "clip-vit-base-patch32": VisionConfig(),
    "clip-vit-base-patch16": VisionConfig(patch_size=16),
    "clip-vit-large-patch14": VisionConfig(1024, 4096, 24, 16, 224, 14, projection_dim=768),
    "clip-vit-large-patch14-336": VisionConfig(1024, 4096, 24, 16, 336, 14, projection_dim=768),
    "CLIP-ViT-H-14-laion2B-s32B-b79K": VisionConfig(
        1280, 5120, 32, 16, 224, 14, hidden_act="gelu", projection_dim=1024
    ),
    "CLIP-ViT-bigG-14-laion2B-39B-b160k": VisionConfig(
        1664, 8192, 48, 16, 224, 14, hidden_act="gelu", projection_dim=1280
    ),
}


# A vision tower's own model_type, and what its fields default to.
VISION_CONFIGS: Mapping[str, type[VisionConfig]] = {
    "clip_vision_model": VisionConfig,
    "siglip_vision_model": SiglipVisionConfig,
}


def tower_prefix(names: Mapping[str, Any], where: Path, tower: Tower = VISION) -> str | None:
    """Return what stands in front of the names of a checkpoint's tower, or None when it has no such tower.

    Raises CheckpointError when it has several.
    """
    landmark = _LANDMARKS[tower]
    prefixes = [name.removesuffix(landmark) for name in names if name.endswith(landmark)]
    if len(prefixes) > 1:
        raise CheckpointError(
            f"{where}: has {len(prefixes)} towers of one kind, {', '.join(map(repr, prefixes))}; one is supported"
        )
    return prefixes[0] if prefixes else None


def canonical_tower(tensors: Mapping[str, SourceTensor], prefix: str) -> dict[str, SourceTensor]:
    """Return a tower's tensors under canonical names ("vision_model."...)."""
    return {
        VISION.canonical_prefix + name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def unknown_rest(tensors: Mapping[str, SourceTensor], prefix: str) -> list[str]:
    """Return lines about tensors of a tower's directory that are neither the tower's nor CLIP's other parts."""
    return [
        f"{tensor.path}: tensor {name!r} is unknown, a CLIP model has no such tensor"
        for name, tensor in tensors.items()
        if not (
            name.startswith(prefix)
            or TEXT.owns(name)
            or name in (VISION.projection, "logit_bias")
            or name in NEVER_WRITTEN
        )
    ]


def read_vision_config(path: Path) -> VisionConfig:
    """Read the vision tower's part of a config.json: a whole model's or a tower's alone, CLIP's or SigLIP's.

    Raises ConfigError when it is none, or when a field is wrong.
    """
    config = read_json_object(path)
    model_type = config.get("model_type")
    if model_type == "clip" or (model_type is None and "vision_config" in config):
        return parse_sub_config(VisionConfig, config, "vision", path)
    if model_type == "siglip":
        return parse_sub_config(SiglipVisionConfig, config, "vision", path)
    if isinstance(model_type, str) and (vision_class := VISION_CONFIGS.get(model_type)):
        return parse_tower(vision_class, config, str(path))
    raise ConfigError(
        f"{path}: is of model_type {shown(model_type)}, a vision tower's is 'clip', 'siglip' or "
        f"{' or '.join(map(repr, VISION_CONFIGS))}"
    )


def known_tower(name: str, tensors: Mapping[str, SourceTensor], where: Path) -> VisionConfig:
    """Return the configuration of a tower that a LLaVA config only names, after comparing it with the tensors.

    Raises ConfigError when it is not known, CheckpointError when the tensors have other sizes.
    """
    config = KNOWN_TOWERS.get(name.replace("\\", "/").rstrip("/").rpartition("/")[2])
    if config is None:
        raise ConfigError(
            f"{where}: the vision tower is {shown(name)}, whose sizes are not known here (attention heads cannot be "
            "told from tensors); --vision-config takes its config.json"
        )
    found = _sizes(tensors)
    wrong = [
        f"{key} {value} instead of {getattr(config, key)}"
        for key, value in found.items()
        if value != getattr(config, key)
    ]
    if wrong:
        raise CheckpointError(
            f"{where}: the vision tower should be {name!r}, but its tensors have {', '.join(wrong)}; "
            "--vision-config takes its config.json"
        )
    return config


def _sizes(tensors: Mapping[str, SourceTensor]) -> dict[str, int]:
    """Return the sizes that can be told from a tower's tensors."""
    prefix = VISION.canonical_prefix
    sizes = {}
    if patch := tensors.get(f"{prefix}embeddings.patch_embedding.weight"):
        sizes["hidden_size"] = patch.shape[0] if patch.shape else 0
        sizes["patch_size"] = patch.shape[-1] if patch.shape else 0
    if fc1 := tensors.get(f"{prefix}encoder.layers.0.mlp.fc1.weight"):
        sizes["intermediate_size"] = fc1.shape[0] if fc1.shape else 0
    blocks = {name.removeprefix(f"{prefix}encoder.layers.").partition(".")[0] for name in tensors if ".layers." in name}
    sizes["num_hidden_layers"] = len(blocks)
    return sizes
