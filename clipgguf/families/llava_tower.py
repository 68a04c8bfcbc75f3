"""Where LLaVA's vision tower is: in the checkpoint or a folder of it, in a directory that was given, or on the hub.

The original LLaVA's config.json only names the tower (``mm_vision_tower``), which may lie elsewhere; transformers' has
``vision_config`` inside. A tower is found by its tensors, whatever stands in front of their names.
"""

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from clipgguf.blocks import the_prefix
from clipgguf.checkpoint import Checkpoint
from clipgguf.errors import CheckpointError, ConfigError, shown
from clipgguf.families.clip import standard_config
from clipgguf.families.llava_settings import Settings
from clipgguf.families.tower_tables import TOWER
from clipgguf.inputs import Config, Inputs
from clipgguf.json_file import read_json_object
from clipgguf.quantized import refuse_quantized
from clipgguf.sources import File, Folder
from clipgguf.sources.address import HubAddress
from clipgguf.sources.given import given_file, hub_advice, place
from clipgguf.tensor import View


def _tower(
    width: int, ffn: int, blocks: int, image: int, patch: int, projection: int, heads: int = 16, act: str = "quick_gelu"
) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": ffn,
        "num_hidden_layers": blocks,
        "num_attention_heads": heads,
        "image_size": image,
        "patch_size": patch,
        "projection_dim": projection,
        "hidden_act": act,
    }


# Towers that LLaVA configs only name, by the last part of the name: sizes from their own config.json. A projection_dim
# that readers ask for but do not use is that of the whole CLIP model.
KNOWN_TOWERS: Mapping[str, Mapping[str, Any]] = {
    "clip-vit-base-patch32": _tower(768, 3072, 12, 224, 32, 512, heads=12),
    "clip-vit-base-patch16": _tower(768, 3072, 12, 224, 16, 512, heads=12),
    "clip-vit-large-patch14": _tower(1024, 4096, 24, 224, 14, 768),
    "clip-vit-large-patch14-336": _tower(1024, 4096, 24, 336, 14, 768),
    "CLIP-ViT-H-14-laion2B-s32B-b79K": _tower(1280, 5120, 32, 224, 14, 1024, act="gelu"),
    "CLIP-ViT-bigG-14-laion2B-39B-b160k": _tower(1664, 8192, 48, 224, 14, 1280, act="gelu"),
}
# LlavaConfig's own default and LlavaOnevisionConfig's, which apply only where a config has no vision_config at all.
HF_DEFAULT_TOWERS: tuple[Mapping[str, Any], Mapping[str, Any]] = (
    _tower(1024, 4096, 24, 336, 14, 512),
    {**_tower(1152, 4304, 26, 384, 14, 512, act="gelu_pytorch_tanh"), "model_type": "siglip_vision_model"},
)
# A vision tower's own model_types.
VISION_TYPES = ("clip_vision_model", "siglip_vision_model")


def find_tower(inputs: Inputs, llava: Settings, checkpoint: Checkpoint | None) -> tuple[Config, Checkpoint]:
    """Return the vision tower's configuration and checkpoint, with what stands beside it.

    ``checkpoint`` is LLaVA's own, None for a CLIP directory that is given a projector.
    Raises ConfigError or CheckpointError when there is none, or when its sizes cannot be known.
    """
    options = inputs.options
    directory: Folder | File | None = inputs.directory
    if checkpoint is not None and options.vision_tower is not None:
        directory = place(options.vision_tower)
    elif checkpoint is not None:
        prefix = tower_prefix(checkpoint)
        if prefix is not None:
            return _inner_config(inputs, llava, checkpoint.tensors, prefix), checkpoint
        directory = _folder_inside(llava) or _folder_on_the_hub(inputs, llava)
    if directory is None:
        asked = f"; config.json asks for {shown(llava.tower_name)}" if llava.tower_name else ""
        gets = "--fetch-tower gets it from the Hugging Face hub, " if HubAddress.bare(llava.tower_name or "") else ""
        takes = f"{gets}--vision-tower takes the directory that has it"
        raise CheckpointError(f"{inputs.directory}: has no vision tower{asked}; {takes}")
    if isinstance(directory, File):
        should = f"should be the vision tower's, with config.json{hub_advice(directory)}"
        raise CheckpointError(f"{directory}: is no directory, {should}")
    opened = inputs.open_checkpoint() if checkpoint is None else Checkpoint.open(directory)
    if tower_prefix(opened) is None:
        raise CheckpointError(f"{directory}: has no vision tower (no tensor ...{TOWER.landmark})")
    path = directory.file("config.json")
    refuse_quantized(read_json_object(path) if path.is_present else {}, path, opened.tensors.values())
    return _vision_config(path if options.vision_config is None else given_file(options.vision_config)), opened


def tower_prefix(checkpoint: Checkpoint) -> str | None:
    """Return what stands in front of the names of a checkpoint's tower, or None when it has none.

    Raises CheckpointError when it has several.
    """
    return the_prefix(TOWER, checkpoint.tensors, checkpoint.folder)


def _folder_inside(llava: Settings) -> Folder | None:
    """Return the folder of the checkpoint itself that a relative ``mm_vision_tower`` means (Yi-VL has one), if any."""
    name = llava.tower_name
    if name is None or PurePath(name).is_absolute() or ".." in PurePath(name).parts:
        return None
    inside = llava.path.folder.folder(name)
    return inside if "config.json" in inside else None


def _folder_on_the_hub(inputs: Inputs, llava: Settings) -> Folder | File | None:
    """Return the model of the hub that ``mm_vision_tower`` names, if it may be fetched and could be one.

    Raises CheckpointError when the hub has no such model, or cannot be read.
    """
    address = HubAddress.bare(llava.tower_name or "")
    if address is None or not inputs.options.fetch_tower:
        return None
    found = place(str(address))
    inputs.notes.append(f"the vision tower is that of {found}, which {llava.path} names")
    return found


def _inner_config(inputs: Inputs, llava: Settings, tensors: Mapping[str, View], prefix: str) -> Config:
    """Return the configuration of a tower that is part of the LLaVA checkpoint."""
    if inputs.options.vision_config is not None:
        return _vision_config(given_file(inputs.options.vision_config))
    values = llava.values.get("vision_config")
    if values is None and not llava.is_original:
        values = HF_DEFAULT_TOWERS[llava.is_of("llava_onevision")]
    if values is None:
        values = _known_tower(llava, tensors, prefix)
    # One that is there takes CLIPVisionConfig's defaults for what it omits, not LlavaConfig's.
    if not isinstance(values, Mapping):
        raise ConfigError(f"{llava.label('vision_config')} is {shown(values)}, should be an object")
    model_type = values.get("model_type")
    if model_type not in (None, *VISION_TYPES):
        wrong = f"vision_config is of model_type {shown(model_type)}"
        raise ConfigError(f"{llava.path}: {wrong}, supported are {', '.join(map(repr, VISION_TYPES))}")
    return Config(llava.path, {"vision_config": values, "model_type": model_type})


def _vision_config(path: File) -> Config:
    """Read the vision tower's part of a config.json, a whole model's or a tower's alone.

    Raises ConfigError when it is of another kind.
    """
    config = Config(path, read_json_object(path))
    model_type = config.values.get("model_type")
    if model_type in ("clip", "siglip") or (model_type is None and "vision_config" in config.values):
        return standard_config(config)
    if model_type in VISION_TYPES:
        return standard_config(config, "vision")
    supported = " or ".join(map(repr, ("siglip", *VISION_TYPES)))
    raise ConfigError(f"{path}: is of model_type {shown(model_type)}, a vision tower's is 'clip', {supported}")


def _known_tower(llava: Settings, tensors: Mapping[str, View], prefix: str) -> Mapping[str, Any]:
    """Return the configuration of a tower that a LLaVA config only names, after comparing it with the tensors.

    Raises ConfigError when it is not known, CheckpointError when the tensors have other sizes.
    """
    where, name, advice = llava.path, llava.tower_name, "--vision-config takes its config.json"
    if name is None:
        raise ConfigError(f"{where}: names no mm_vision_tower whose sizes could be known; {advice}")
    config = KNOWN_TOWERS.get(name.replace("\\", "/").rstrip("/").rpartition("/")[2])
    if config is None:
        unknown = "whose sizes are not known here (attention heads cannot be told from tensors)"
        raise ConfigError(f"{where}: the vision tower is {shown(name)}, {unknown}; {advice}")
    patch = tensors[prefix + TOWER.landmark].shape or (0,)
    found = {"hidden_size": patch[0], "patch_size": patch[-1]}
    layers = f"{prefix}encoder.layers."
    if fc1 := tensors.get(f"{layers}0.mlp.fc1.weight"):
        found["intermediate_size"] = fc1.shape[0] if fc1.shape else 0
    numbers = {tensor.removeprefix(layers).partition(".")[0] for tensor in tensors if tensor.startswith(layers)}
    found["num_hidden_layers"] = len(numbers)
    wrong = [f"{key} {value} instead of {config[key]}" for key, value in found.items() if value != config[key]]
    if wrong:
        have = f"its tensors have {', '.join(wrong)}"
        raise CheckpointError(f"{where}: the vision tower should be {name!r}, but {have}; {advice}")
    return config
