"""What a LLaVA checkpoint's config.json says of its projector: which layer's features it takes, of which images."""

import contextlib
from dataclasses import dataclass
from typing import Any

from clipgguf.config import valid_text
from clipgguf.errors import ConfigError, shown
from clipgguf.families import MODULES
from clipgguf.family import Value
from clipgguf.inputs import Config, Inputs

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


def settings_values(inputs: Inputs, settings: Settings) -> tuple[Value, ...]:
    """Return the values that depend on LLaVA's own settings and on the tower's sizes."""
    return (
        Value("run", of=lambda v: _layers_to_run(inputs, settings, v["vision.layers"])),
        Value("vision.feature_layer", of=lambda v: [v["run"]]),
        Value("vision.blocks", of=lambda v: _layers_to_store(inputs, v["run"], v["vision.layers"])),
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


def _layers_to_run(inputs: Inputs, settings: Settings, blocks: int) -> int:
    """Return how many blocks of the tower come before the features that the projector takes.

    What a file tells that is verified comes first, if the tower has such a layer; else it was no option of the
    conversion, and is a difference in the metadata.
    """
    told = inputs.told.feature_layer if inputs.told else None
    if told is None or told > blocks:
        return _own_layers_to_run(inputs, settings, blocks)
    with contextlib.suppress(ConfigError):
        # The configuration may ask for layers that no reader can use, in whose place another was chosen.
        own = _own_layers_to_run(inputs, settings, blocks)
        if own != told:
            takes = f"the projector takes the features of layer {told}, as with --feature-layer {told}"
            inputs.told_notes.append(f"{takes}; the checkpoint's own configuration says {own}")
    return told


def _own_layers_to_run(inputs: Inputs, settings: Settings, blocks: int) -> int:
    """Return how many blocks shall run by the options, the configuration, or LLaVA's default.

    All three say it as an index into the list of all hidden states, of which number 0 are the embeddings.
    """
    layer, where = inputs.options.feature_layer, "--feature-layer"
    if layer is None:
        where, layer = settings.find("vision_feature_layer|mm_vision_select_layer")
        if layer is None:
            layer = -1 if settings.is_of("llava_onevision") else -2
            where = f"{settings.path}: the layer where none is given"
        if isinstance(layer, list) and len(layer) == 1:
            layer = layer[0]
        if isinstance(layer, list):
            joins = "the projector joins the features of several layers (VIP-LLaVA)"
            raise ConfigError(f"{where} is {shown(layer)}: {joins}, which no reader of GGUF files can run")
    if type(layer) is not int or not -blocks <= layer <= blocks or layer == 0:
        should = f"should be 1 to {blocks}, or -1 to {-blocks} counted from the last"
        raise ConfigError(f"{where} is {shown(layer)}, {should}")
    return layer if layer > 0 else blocks + 1 + layer


def _layers_to_store(inputs: Inputs, run: int, blocks: int) -> int:
    """Return how many blocks of the tower the file has; one that is verified may have more than are needed.

    Readers that leave out the last of the blocks that are stored want one more than shall run.
    """
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
