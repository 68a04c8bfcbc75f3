"""What a LLaVA checkpoint's config.json says of its projector: which layers' features it takes, of which images.

Mostly they are one layer's. Granite Vision's projector takes those of four, side by side (``vision_feature_layer`` is
[-24, -20, -12, -1]).
"""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from clipgguf.config import valid_text
from clipgguf.errors import ConfigError, shown
from clipgguf.families import MODULES
from clipgguf.inputs import Config, Inputs
from clipgguf.table import Value

# LlavaNextConfig's image_grid_pinpoints, (height, width).
HF_DEFAULT_PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]


@dataclass(frozen=True, slots=True)
class Settings(Config):
    """A LLaVA checkpoint's config.json, in either layout."""

    @property
    def is_original(self) -> bool:
        """Whether it is the original LLaVA code's and not transformers'."""
        return any(key.startswith("mm_") for key in self.values)

    @property
    def tower_name(self) -> str | None:
        """The vision tower that an original config asks for."""
        name = self.values.get("mm_vision_tower") or self.values.get("vision_tower")
        return name if isinstance(name, str) else None

    def is_of(self, *model_types: str) -> bool:
        """Return whether the model is of one of transformers' types."""
        return self.values.get("model_type") in model_types


def settings_values(inputs: Inputs, settings: Settings, features: int) -> tuple[Value, ...]:
    """Return the values that depend on LLaVA's own settings and on the tower's sizes.

    ``features`` are how many numbers of each patch the projector's first layer takes.
    """
    return (
        Value("vision.feature_layer", of=lambda v: _layers_to_run(inputs, settings, v, features)),
        Value("vision.blocks", of=lambda v: _layers_to_store(inputs, v["vision.feature_layer"], v["vision.layers"])),
        Value("vision.pinpoints", of=lambda values: _grid_pinpoints(inputs, settings, values["vision.image"])),
        Value("vision.merge_type", default=_patch_merge_type(settings)),
    )


def check_strategy(settings: Settings, is_siglip: bool) -> None:
    """Raise ConfigError when the language model was trained on other patches than readers give it."""
    config = settings.values
    strategy = config.get("vision_feature_select_strategy") or config.get("mm_vision_select_feature")
    if not is_siglip and strategy not in (None, "default", "patch"):
        takes = f"the projector takes the class token's features, too ({shown(strategy)})"
        supported = "supported is 'default' or 'patch'"
        raise ConfigError(f"{settings.path}: {takes}, which no reader of GGUF files can run; {supported}")
    # SigLIP has no class token; with "default" transformers drops the first patch in its place.
    if is_siglip and not settings.is_original and settings.is_of(*MODULES["llava"][0]):
        strategy = strategy or ("full" if settings.is_of("llava_onevision") else "default")
        if strategy != "full":
            raise ConfigError(
                f"{settings.path}: vision_feature_select_strategy is {shown(strategy)}, with which transformers drops "
                "the first patch of a SigLIP tower and no reader of GGUF files does; supported is 'full'"
            )


def _layers_to_run(inputs: Inputs, settings: Settings, values: Mapping[str, Any], features: int) -> list[int]:
    """Return how many blocks of the tower come before each of the layers whose features the projector takes.

    What a file tells that is verified comes first, if it is one layer and the tower has it; else it was no option of
    the conversion, and is a difference in the metadata.
    """
    told = inputs.told.feature_layer if inputs.told else None
    if told is None or told > values["vision.layers"]:
        return _own_layers_to_run(inputs, settings, values, features)
    with contextlib.suppress(ConfigError):
        # The configuration may ask for layers that no reader can use, in whose place another was chosen.
        own = _own_layers_to_run(inputs, settings, values, features)
        if len(own) > 1:
            # The projector takes them all, so that no option can have chosen one.
            return own
        if own != [told]:
            takes = f"the projector takes the features of layer {told}, as with --feature-layer {told}"
            inputs.told_notes.append(f"{takes}; the checkpoint's own configuration says {own[0]}")
    return [told]


def _own_layers_to_run(inputs: Inputs, settings: Settings, values: Mapping[str, Any], features: int) -> list[int]:
    """Return how many blocks shall run by the options, the configuration, or LLaVA's default; several increase.

    All three say it as an index into the list of all hidden states, of which number 0 are the embeddings. Only the
    configuration can say several.
    """
    blocks, width = values["vision.layers"], values["vision.width"]
    layer, where = inputs.options.feature_layer, "--feature-layer"
    if layer is None:
        where, layer = settings.find("vision_feature_layer|mm_vision_select_layer")
        if layer is None:
            layer = -1 if settings.is_of("llava_onevision") else -2
            where = f"{settings.path}: the layer where none is given"
        if isinstance(layer, list) and len(layer) == 1:
            layer = layer[0]
    layers = layer if isinstance(layer, list) and layer else [layer]
    if any(type(number) is not int or not -blocks <= number <= blocks or number == 0 for number in layers):
        should = f"should be 1 to {blocks}, or -1 to {-blocks} counted from the last"
        raise ConfigError(f"{where} is {shown(layer)}, {should}")
    run = [number if number > 0 else blocks + 1 + number for number in layers]
    if any(following <= number for number, following in pairwise(run)):
        # llama.cpp collects them while it runs the blocks (embedding_stack in tools/mtmd/models/llava.cpp).
        joins = "the projector takes the features of several layers in this order"
        cannot = "llama.cpp joins them from the first block to the last, each once"
        raise ConfigError(f"{where} is {shown(layer)}: {joins}, and {cannot}; supported are layers that increase")
    if len(run) > 1 and features != width * len(run):
        joined = f"the features of {len(run)} layers side by side are {width * len(run):,} numbers"
        raise ConfigError(f"{where} is {shown(layer)}: {joined}, but the projector takes {features:,}")
    return run


def _layers_to_store(inputs: Inputs, layers: Sequence[int], blocks: int) -> int:
    """Return how many blocks of the tower the file has; one that is verified may have more than are needed.

    Readers that leave out the last of the blocks that are stored want one more than shall run.
    """
    run = max(layers)
    if inputs.told is not None:
        return min(max(run, inputs.told.stored_blocks), blocks)
    if not inputs.options.keep_last_layer:
        return run
    if run == blocks:
        takes = f"the projector takes the features of layer {run}, the tower's last"
        cannot = "readers that leave out the last block of a file cannot run it"
        inputs.warnings.append(f"--keep-last-layer changes nothing: {takes}; {cannot}")
    return min(run + 1, blocks)


def _grid_pinpoints(inputs: Inputs, settings: Settings, image_size: int) -> list[int] | None:
    """Return LLaVA 1.6's image sizes as (width, height) pairs one after the other."""
    default = HF_DEFAULT_PINPOINTS if settings.is_of("llava_next") else None
    pairs, aspect = settings.get("image_grid_pinpoints", default), settings.get("image_aspect_ratio")
    # LLaVA 1.5's code knows the key, too, and pads to a square all the same.
    if pairs is None or (settings.is_original and not (isinstance(aspect, str) and aspect.startswith("anyres"))):
        return None
    problem = ""
    if not isinstance(pairs, list) or not all(map(_is_pair, pairs)):
        problem = f"is {shown(pairs)}, should be pairs of pixels"
    elif any(n % image_size for pair in pairs for n in pair):
        problem = f"has sizes that are no multiples of {image_size}, on which llama.cpp aborts"
    if problem:
        padded = "left out, images will be padded to a square"
        inputs.warnings.append(f"{settings.path}: image_grid_pinpoints {problem}; {padded}")
        return None
    # transformers has (height, width), LLaVA and llama.cpp (width, height).
    return [n for pair in pairs for n in (pair if settings.is_original else reversed(pair))] or None


def _is_pair(pair: Any) -> bool:
    return isinstance(pair, list) and len(pair) == 2 and all(type(n) is int and 0 < n < 2**31 for n in pair)


def _patch_merge_type(settings: Settings) -> str | None:
    merge = settings.values.get("mm_patch_merge_type")
    if isinstance(merge, str):
        return valid_text(merge)
    # transformers' LlavaNext and LlavaOnevision know no other and therefore do not say it.
    return "spatial_unpad" if settings.is_of("llava_next", "llava_onevision") else None
