"""LLaVA: a vision tower and a projector, from wherever they are, as the image encoder that llama.cpp calls an mmproj.

There are two layouts of whole checkpoints. The original one (LLaVA 1.5 and 1.6, BakLLaVA, Yi-VL, MobileVLM, ...) has a
flat config.json that only names the tower (``mm_vision_tower``), which may lie elsewhere; transformers' own (llava-hf)
has ``vision_config`` inside. Either is told by its tensors' names, and only the tower's and projector's are looked at.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipgguf.checkpoint import Checkpoint, SourceTensor
from clipgguf.checkpoint.not_weights import hub_advice
from clipgguf.config import (
    SiglipVisionConfig,
    VisionConfig,
    default_statistics,
    model_name,
    parse_tower,
    read_image_statistics,
    valid_text,
)
from clipgguf.errors import CheckpointError, ConfigError, shown
from clipgguf.families.clip import without_siglip_extras
from clipgguf.families.model import Content, Model, Projector, Request, found_text, refuse_or_warn, refuse_quantized
from clipgguf.families.projectors import is_projector_name, projector_prefix, recognise
from clipgguf.families.towers import (
    VISION_CONFIGS,
    canonical_tower,
    known_tower,
    read_vision_config,
    tower_prefix,
    unknown_rest,
)
from clipgguf.json_file import read_json_object
from clipgguf.names import VISION

# LlavaConfig's own default and LlavaOnevisionConfig's, which apply only where a config has no vision_config at all.
HF_DEFAULT_TOWERS = (VisionConfig(1024, 4096, 24, 16, 336, 14), SiglipVisionConfig(1152, 4304, 26, 16, 384, 14))

# LlavaNextConfig's image_grid_pinpoints, (height, width).
HF_DEFAULT_PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]

# The layer whose features the projector takes, as an index into the list of all hidden states (0: the embeddings).
DEFAULT_FEATURE_LAYER = -2
ONEVISION_FEATURE_LAYER = -1

# model_types of transformers' classes that are a vision tower, a projector and a language model.
HF_MODEL_TYPES = frozenset({"llava", "llava_next", "llava_onevision", "vipllava"})

# Names in the language models that LLaVA was built on (Llama, Mistral, Qwen, Phi, StableLM, GPT-NeoX, MPT).
_LANGUAGE_MODEL = re.compile(
    r"(?:model\.|language_model\.|transformer\.|gpt_neox\.)*"
    r"(?:layers|h|blocks|embed_tokens|embed_in|embed_out|wte|norm|norm_f|final_layernorm|final_layer_norm|ln_f|lm_head)\..*"
)
# MobileVLM's LDP downsamples a fixed grid in llama.cpp (``build_llava`` in tools/mtmd/models/llava.cpp).
LDP_GRID = 24


@dataclass(frozen=True, slots=True)
class _Config:
    """A LLaVA checkpoint's config.json, in either layout."""

    path: Path
    values: Mapping[str, Any]

    @property
    def is_original(self) -> bool:
        """Whether it is the original LLaVA code's and not transformers'."""
        return any(key.startswith("mm_") for key in self.values)

    @property
    def tower_name(self) -> str | None:
        """The vision tower that an original config asks for."""
        name = self.values.get("mm_vision_tower") or self.values.get("vision_tower")
        return name if isinstance(name, str) else None


@dataclass(frozen=True, slots=True)
class _TowerSource:
    """A vision tower: its configuration, its tensors by canonical name, where they are from, and lines about others."""

    config: VisionConfig
    tensors: dict[str, SourceTensor]
    checkpoint: Checkpoint
    prefix: str
    unknown: tuple[str, ...] = ()


def is_llava(config: Mapping[str, Any]) -> bool:
    """Return whether a config.json is a LLaVA checkpoint's, in either layout."""
    return _is_hf(config) or any(key in config for key in ("mm_vision_tower", "mm_projector_type", "mm_hidden_size"))


def _is_hf(config: Mapping[str, Any]) -> bool:
    """Return whether a config.json is of a class of transformers', as far as its model_type tells."""
    model_type = config.get("model_type")
    return isinstance(model_type, str) and model_type in HF_MODEL_TYPES


def open_llava(request: Request, values: Mapping[str, Any]) -> Model:
    """Open what becomes an mmproj file: a LLaVA checkpoint, or a CLIP directory with a projector from elsewhere.

    ``values`` is the directory's config.json.
    Raises ConfigError or CheckpointError when a part is missing, or is of a kind that no reader can run.
    """
    directory = request.directory
    if request.text_only or request.vision_only:
        which = "--text-only" if request.text_only else "--vision-only"
        raise ConfigError(f"{directory}: is a LLaVA checkpoint, which gives an mmproj file; {which} is for CLIP models")
    config = _Config(directory / "config.json", values)
    if is_llava(config.values):
        llava: _Config | None = config
        checkpoint = request.open_checkpoint(_is_wanted)
        own = [t for name, t in checkpoint.tensors.items() if request.vision_tower is None or is_projector_name(name)]
        refuse_quantized(config.values, config.path, own)
        unknown = _unknown_names(checkpoint)
    else:
        llava, checkpoint, unknown = None, None, []
    projector_tensors, keep_order, projector_from = _projector_tensors(request, checkpoint)
    if llava is None and request.llava_projector is not None and request.llava_projector.is_dir():
        path = request.llava_projector / "config.json"
        llava = _Config(path, read_json_object(path)) if path.exists() else None
    source = _tower(request, llava, checkpoint)
    vision, tower = source.config, source.tensors
    warnings = refuse_or_warn([*unknown, *source.unknown], request.ignore_unknown)
    settings = llava if llava is not None else config
    run = _layers_to_run(request, settings, vision)
    stored, stored_warnings = _layers_to_store(request, run, vision)
    kind, tensors = recognise(
        projector_tensors,
        where=str(projector_from),
        vision_width=vision.hidden_size,
        projector_type=request.projector_type,
        keep_order=keep_order,
    )
    grid = vision.image_size // vision.patch_size
    if kind.projector_type != "mlp" and grid != LDP_GRID:
        raise CheckpointError(
            f"{projector_from}: the projector is of kind {kind.name}, which llama.cpp runs on {LDP_GRID} x {LDP_GRID} "
            f"patches only; this tower has {grid} x {grid}"
        )
    pinpoints, grid_warnings = _grid_pinpoints(settings, vision)
    notes: tuple[str, ...] = ()
    if isinstance(vision, SiglipVisionConfig):
        tower, notes = without_siglip_extras(tower)
    places, default = (directory, source.checkpoint.directory), default_statistics(vision)
    return Model(
        directory=directory,
        found=found_text(
            f"LLaVA ({kind.name} projector, {'SigLIP' if isinstance(vision, SiglipVisionConfig) else 'CLIP'} tower)",
            source.checkpoint,
            (source.prefix, *dict.fromkeys(projector_prefix(tensor.source.name) for tensor in tensors)),
        ),
        name=model_name(config.values, directory),
        content=Content.LLAVA,
        text=None,
        vision=vision,
        tensors=tower,
        vocabulary=None,
        statistics=read_image_statistics(places, request.image_mean, request.image_std, default),
        projector=Projector(
            projector_type=kind.projector_type,
            tensors=tensors,
            layers_run=run,
            layers_stored=stored,
            grid_pinpoints=pinpoints,
            patch_merge_type=_patch_merge_type(settings),
        ),
        is_llava_checkpoint=checkpoint is not None,
        ignore_unknown=request.ignore_unknown,
        warnings=warnings + grid_warnings + stored_warnings,
        notes=notes,
    )


def _is_wanted(name: str) -> bool:
    """Return whether a tensor of a LLaVA checkpoint is none of the language model's."""
    return not _LANGUAGE_MODEL.fullmatch(name)


def _unknown_names(checkpoint: Checkpoint) -> list[str]:
    """Return lines about tensors that are neither the tower's, the projector's nor the language model's."""
    prefix = tower_prefix(checkpoint.tensors, checkpoint.directory)
    # Beside the tower proper, its CLIP model may have left its projection and its final norm.
    root = prefix.removesuffix("vision_model.") if prefix is not None else None
    return [
        f"{tensor.path}: tensor {name!r} is unknown, it belongs neither to the vision tower, the projector nor the "
        "language model"
        for name, tensor in checkpoint.tensors.items()
        if not is_projector_name(name) and (root is None or not name.startswith(root))
    ]


def _projector_tensors(request: Request, checkpoint: Checkpoint | None) -> tuple[list[SourceTensor], bool, Path]:
    """Return the projector's tensors, whether their order is the file's to keep, and where they are from."""
    source = request.llava_projector
    if source is None:
        assert checkpoint is not None
        tensors = [tensor for name, tensor in checkpoint.tensors.items() if is_projector_name(name)]
        return tensors, False, checkpoint.directory
    if source.is_dir():
        opened = Checkpoint.open(source, wanted=is_projector_name)
        return list(opened.tensors.values()), False, source
    opened = Checkpoint.open_file(source)
    CheckpointError.raise_all(
        f"{source}: tensor {name!r} is unknown, a projector's are model.mm_projector.* or multi_modal_projector.*"
        for name in opened.tensors
        if not is_projector_name(name)
    )
    # The torch reference takes a file of torch's as it comes; a safetensors file's order means nothing.
    return list(opened.tensors.values()), not opened.is_safetensors, source


def _tower(request: Request, llava: _Config | None, checkpoint: Checkpoint | None) -> _TowerSource:
    """Find the vision tower: in the checkpoint, in a directory that was given, or in a folder of config.json's."""
    directory = request.directory if checkpoint is None else request.vision_tower
    if checkpoint is not None and directory is None:
        prefix = tower_prefix(checkpoint.tensors, checkpoint.directory)
        if prefix is not None:
            tensors = canonical_tower(checkpoint.tensors, prefix)
            assert llava is not None
            return _TowerSource(_inner_tower_config(request, llava, tensors), tensors, checkpoint, prefix)
        assert llava is not None
        directory = _tower_inside(llava)
    if directory is None:
        assert llava is not None
        asked = f"; config.json asks for {shown(llava.tower_name)}" if llava.tower_name else ""
        raise CheckpointError(
            f"{request.directory}: has no vision tower{asked}; --vision-tower takes the directory that has it"
        )
    if not directory.is_dir():
        raise CheckpointError(
            f"{directory}: is no directory, should be the vision tower's, with config.json{hub_advice(directory)}"
        )
    opened = request.open_checkpoint() if checkpoint is None else Checkpoint.open(directory)
    prefix = tower_prefix(opened.tensors, directory)
    if prefix is None:
        raise CheckpointError(f"{directory}: has no vision tower (no tensor ...embeddings.patch_embedding.weight)")
    vision = read_vision_config(request.vision_config or directory / "config.json")
    unknown = unknown_rest(opened.tensors, prefix)
    tensors = canonical_tower(opened.tensors, prefix)
    path = directory / "config.json"
    refuse_quantized(read_json_object(path) if path.exists() else {}, path, tensors.values())
    if projection := opened.tensors.get(VISION.projection):
        tensors[VISION.projection] = projection
    return _TowerSource(vision, tensors, opened, prefix, tuple(unknown))


def _tower_inside(llava: _Config) -> Path | None:
    """Return the folder of the checkpoint itself that a relative ``mm_vision_tower`` means (Yi-VL has one), if any."""
    name = llava.tower_name
    if name is None:
        return None
    inside = llava.path.parent / name
    is_relative = not Path(name).is_absolute() and ".." not in Path(name).parts
    return inside if is_relative and (inside / "config.json").is_file() else None


def _inner_tower_config(request: Request, llava: _Config, tensors: Mapping[str, SourceTensor]) -> VisionConfig:
    """Return the configuration of a tower that is part of the LLaVA checkpoint."""
    if request.vision_config is not None:
        return read_vision_config(request.vision_config)
    values = llava.values.get("vision_config")
    if values is not None:
        # It takes CLIPVisionConfig's defaults for what it omits, not LlavaConfig's.
        model_type = values.get("model_type") if isinstance(values, dict) else None
        if model_type not in (None, *VISION_CONFIGS):
            raise ConfigError(
                f"{llava.path}: vision_config is of model_type {shown(model_type)}, "
                f"supported are {', '.join(map(repr, VISION_CONFIGS))}"
            )
        return parse_tower(VISION_CONFIGS.get(str(model_type), VisionConfig), values, f"{llava.path}: vision_config")
    if not llava.is_original:
        return HF_DEFAULT_TOWERS[llava.values.get("model_type") == "llava_onevision"]
    if llava.tower_name is None:
        raise ConfigError(
            f"{llava.path}: names no mm_vision_tower whose sizes could be known; --vision-config takes its config.json"
        )
    return known_tower(llava.tower_name, tensors, llava.path)


def _layers_to_run(request: Request, config: _Config, vision: VisionConfig) -> int:
    """Return how many blocks of the tower come before the features that the projector takes."""
    _check_strategy(config, vision)
    layer, where = request.feature_layer, "--feature-layer"
    if layer is None:
        key = next(
            (k for k in ("vision_feature_layer", "mm_vision_select_layer") if config.values.get(k) is not None), None
        )
        layer, where = (config.values[key], f"{config.path}: {key}") if key else (_default_layer(config), "")
        if isinstance(layer, list) and len(layer) == 1:
            layer = layer[0]
        if isinstance(layer, list):
            raise ConfigError(
                f"{where} is {shown(layer)}: the projector joins the features of several layers (VIP-LLaVA), which no "
                "reader of GGUF files can run"
            )
    blocks = vision.num_hidden_layers
    if type(layer) is not int or not -blocks <= layer <= blocks or layer == 0:
        raise ConfigError(
            f"{where} is {shown(layer)}, should be 1 to {blocks}, or -1 to {-blocks} counted from the last"
        )
    return layer if layer > 0 else blocks + 1 + layer


def _layers_to_store(request: Request, run: int, vision: VisionConfig) -> tuple[int, tuple[str, ...]]:
    """Return how many blocks of the tower the file has, and warnings about that.

    Readers that leave out the last of the blocks that are stored want one more than shall run.
    """
    blocks = vision.num_hidden_layers
    if request.layers_stored is not None:
        return min(max(run, request.layers_stored), blocks), ()
    if not request.keep_last_layer:
        return run, ()
    if run == blocks:
        return run, (
            f"--keep-last-layer changes nothing: the projector takes the features of layer {run}, the tower's last; "
            "readers that leave out the last block of a file cannot run it",
        )
    return run + 1, ()


def _check_strategy(config: _Config, vision: VisionConfig) -> None:
    """Raise ConfigError when the language model was trained on other patches than readers give it."""
    strategy = config.values.get("vision_feature_select_strategy") or config.values.get("mm_vision_select_feature")
    if not isinstance(vision, SiglipVisionConfig):
        if strategy not in (None, "default", "patch"):
            raise ConfigError(
                f"{config.path}: the projector takes the class token's features, too ({shown(strategy)}), which no "
                "reader of GGUF files can run; supported is 'default' or 'patch'"
            )
        return
    # SigLIP has no class token; with "default" transformers drops the first patch in its place.
    model_type = config.values.get("model_type")
    if _is_hf(config.values) and not config.is_original:
        strategy = strategy or ("full" if model_type == "llava_onevision" else "default")
        if strategy != "full":
            raise ConfigError(
                f"{config.path}: vision_feature_select_strategy is {shown(strategy)}, with which transformers drops "
                "the first patch of a SigLIP tower and no reader of GGUF files does; supported is 'full'"
            )


def _default_layer(config: _Config) -> int:
    is_onevision = config.values.get("model_type") == "llava_onevision"
    return ONEVISION_FEATURE_LAYER if is_onevision else DEFAULT_FEATURE_LAYER


def _grid_pinpoints(config: _Config, vision: VisionConfig) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Return LLaVA 1.6's image sizes as (width, height) pairs one after the other, and warnings about them."""
    pairs = config.values.get("image_grid_pinpoints")
    if pairs is None and config.values.get("model_type") == "llava_next":
        pairs = HF_DEFAULT_PINPOINTS
    aspect = config.values.get("image_aspect_ratio")
    # LLaVA 1.5's code knows the key, too, and pads to a square all the same.
    if pairs is None or (config.is_original and not (isinstance(aspect, str) and aspect.startswith("anyres"))):
        return (), ()
    is_pairs = isinstance(pairs, list) and all(
        isinstance(pair, list) and len(pair) == 2 and all(type(n) is int and 0 < n < 2**31 for n in pair)
        for pair in pairs
    )
    where = f"{config.path}: image_grid_pinpoints"
    if not is_pairs:
        return (), (
            f"{where} is {shown(pairs)}, should be pairs of pixels; left out, images will be padded to a square",
        )
    if any(n % vision.image_size for pair in pairs for n in pair):
        return (), (
            f"{where} has sizes that are no multiples of {vision.image_size}, on which llama.cpp aborts; left out, "
            "images will be padded to a square",
        )
    # transformers has (height, width), LLaVA and llama.cpp (width, height).
    return tuple(n for pair in pairs for n in (pair if config.is_original else reversed(pair))), ()


def _patch_merge_type(config: _Config) -> str | None:
    merge = config.values.get("mm_patch_merge_type")
    if isinstance(merge, str):
        return valid_text(merge)
    # transformers' LlavaNext and LlavaOnevision know no other and therefore do not say it.
    return "spatial_unpad" if config.values.get("model_type") in ("llava_next", "llava_onevision") else None
