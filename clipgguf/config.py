"""The towers' configuration: JSON in, frozen dataclasses out, omitted fields filled with transformers' defaults.

The defaults are those of transformers 5.23, ``configuration_clip.py`` (CLIPTextConfig, CLIPVisionConfig, CLIPConfig)
and ``image_processing_clip.py``; transformers 4 writes only the fields that differ from them.
"""

import dataclasses
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from clipgguf.errors import ConfigError, shown
from clipgguf.json_file import is_present, read_json_object

# CLIPImageProcessor's IMAGE_MEAN and IMAGE_STD, "OPENAI_CLIP_MEAN" and "OPENAI_CLIP_STD" in transformers.
CLIP_IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)
# SiglipImageProcessor's, for both.
SIGLIP_IMAGE_STATISTICS = (0.5, 0.5, 0.5)

# GGUF metadata holds sizes as 32-bit unsigned integers, and everything else that is a number as float32.
LARGEST_UINT32 = 2**32 - 1
LARGEST_FLOAT32 = (2 - 2**-23) * 2.0**127

# The activations that a CLIP GGUF file can tell its readers of, by the bool ``clip.use_gelu``. llama.cpp's own GELU is
# the tanh approximation that SigLIP was trained with.
KNOWN_ACTIVATIONS = {"gelu": True, "gelu_pytorch_tanh": True, "quick_gelu": False}


@dataclass(frozen=True, slots=True)
class TextConfig:
    """The text tower's sizes, under transformers' names (CLIPTextConfig)."""

    hidden_size: int = 512
    intermediate_size: int = 2048
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    vocab_size: int = 49408
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    projection_dim: int = 512


@dataclass(frozen=True, slots=True)
class VisionConfig:
    """The vision tower's sizes, under transformers' names (CLIPVisionConfig); image and patch sizes in pixels."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    image_size: int = 224
    patch_size: int = 32
    num_channels: int = 3
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    projection_dim: int = 512

    @property
    def positions(self) -> int:
        """The rows of the position embedding: one for each patch, and one for the class token."""
        return (self.image_size // self.patch_size) ** 2 + 1


@dataclass(frozen=True, slots=True)
class SiglipVisionConfig(VisionConfig):
    """The sizes of SigLIP's vision tower (SiglipVisionConfig): no class token, and other defaults than CLIP's."""

    patch_size: int = 16
    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6

    @property
    def positions(self) -> int:
        """The rows of the position embedding: one for each patch."""
        return (self.image_size // self.patch_size) ** 2


_Tower = TypeVar("_Tower", TextConfig, VisionConfig, SiglipVisionConfig)


def parse_tower(cls: type[_Tower], values: Any, where: str) -> _Tower:
    """Return a tower's configuration: the fields that a JSON object has, and the defaults for those that it omits.

    ``where`` names the object in messages. Raises ConfigError with every field that is wrong.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"{where} is {shown(values)}, should be an object")
    problems: list[str] = []
    checked: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        value = values.get(field.name)
        if value is None:
            continue
        if wanted := _wrong_type(field.type, value):
            problems.append(f"{where}: {field.name} is {shown(value)}, should be {wanted}")
        else:
            checked[field.name] = value
    ConfigError.raise_all(problems)
    tower = cls(**checked)
    if tower.hidden_size % tower.num_attention_heads:
        problems.append(
            f"{where}: hidden_size {tower.hidden_size} is no multiple of "
            f"num_attention_heads {tower.num_attention_heads}"
        )
    if isinstance(tower, VisionConfig) and tower.patch_size > tower.image_size:
        problems.append(f"{where}: patch_size {tower.patch_size} is larger than image_size {tower.image_size}")
    ConfigError.raise_all(problems)
    return tower


def parse_sub_config(cls: type[_Tower], config: Mapping[str, Any], tower: str, path: Path) -> _Tower:
    """Return the configuration of one tower ("text" or "vision") of a whole model's config.json.

    Raises ConfigError with every field that is wrong.
    """
    # A non-null ``*_config_dict`` wins completely: CLIPConfig writes the class's defaults overlaid with the
    # dict over every field of ``*_config``, so that even an empty dict resets all of them.
    keys = (f"{tower}_config_dict", f"{tower}_config")
    key = next((key for key in keys if config.get(key) is not None), keys[-1])
    values = config.get(key)
    if values is None or isinstance(values, dict):
        # CLIPModel makes its projections from the top level's projection_dim; a tower's own comes first all the
        # same, because that is what readers were given so far.
        own = {key: value for key, value in (values or {}).items() if value is not None}
        values = {"projection_dim": config.get("projection_dim"), **own}
    return parse_tower(cls, values, f"{path}: {key}")


def parse_flat_config(cls: type[_Tower], config: Mapping[str, Any], tower: str, path: Path) -> _Tower:
    """Return the configuration of a tower that a config.json describes alone; takes what parse_sub_config takes."""
    return parse_tower(cls, config, str(path))


def model_name(config: Mapping[str, Any], directory: Path) -> str:
    """Return what goes into a file as general.name: ``_name_or_path``, else the base name of the model's directory.

    What is no valid Unicode in it is replaced, and a directory's name is read as UTF-8 whatever the locale.
    """
    name = config.get("_name_or_path")
    return valid_text(name if isinstance(name, str) else directory_name(directory))


def directory_name(directory: Path) -> str:
    """Return the base name of a directory, whatever way it is spelled; ".." is the parent's name.

    It is read as UTF-8 whatever the locale.
    """
    path = directory.absolute()
    if path.name in ("", ".."):
        path = path.resolve()
    return os.fsencode(path.name).decode("utf-8", "replace")


def valid_text(text: str) -> str:
    """Return text with lone surrogates replaced, which JSON can spell and a GGUF file's UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode()


def _wrong_type(field_type: Any, value: Any) -> str | None:
    """Return what a field should hold when the value is no such thing, else None."""
    if field_type is int:
        fits = type(value) is int and 0 < value <= LARGEST_UINT32
        return None if fits else "a positive integer of 32 bits"
    if field_type is float:
        return None if _is_float32(value) and _is_positive(value) else "a positive number in float32"
    return None if isinstance(value, str) else "a string"


def _is_float32(value: Any) -> bool:
    """Return whether a JSON value is a number that float32 holds without becoming infinite."""
    return type(value) in (int, float) and abs(value) <= LARGEST_FLOAT32


def _is_positive(number: float) -> bool:
    """Return whether a number is positive as float32, which what is too small for it is not."""
    return bool(struct.unpack("<f", struct.pack("<f", number))[0] > 0)


@dataclass(frozen=True, slots=True)
class ImageStatistics:
    """The mean and standard deviation, one value for each of R, G and B, that normalize pixels in [0, 1]."""

    mean: tuple[float, ...] = CLIP_IMAGE_MEAN
    std: tuple[float, ...] = CLIP_IMAGE_STD
    is_default: bool = False


def default_statistics(vision: VisionConfig) -> ImageStatistics:
    """Return the statistics of a tower's family, for a checkpoint that has no image processor's file."""
    if isinstance(vision, SiglipVisionConfig):
        return ImageStatistics(SIGLIP_IMAGE_STATISTICS, SIGLIP_IMAGE_STATISTICS, is_default=True)
    return ImageStatistics(is_default=True)


def read_image_statistics(
    directories: Sequence[Path],
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    default: ImageStatistics,
) -> ImageStatistics:
    """Return the image statistics: those given, else those of the first directory that has any, else the default.

    A directory has them at the top level of preprocessor_config.json; a processor that transformers 5 saved has them in
    processor_config.json under ``image_processor`` instead. Raises ConfigError when they are malformed.
    """
    if mean is not None and std is not None:
        return ImageStatistics(_rgb("image_mean", mean), _rgb("image_std", std))
    path, values = _image_processor(directories)
    given = {"image_mean": mean, "image_std": std}
    found = {
        key: _rgb(key, given[key]) if given[key] is not None else _rgb(f"{path}: {key}", values.get(key), fallback)
        for key, fallback in (("image_mean", default.mean), ("image_std", default.std))
    }
    return ImageStatistics(found["image_mean"], found["image_std"], is_default=not values and default.is_default)


def rgb_statistics(values: Any, where: str) -> ImageStatistics:
    """Return the statistics of an object with ``mean`` and ``std``, as OpenCLIP's preprocess_cfg; else CLIP's own.

    Raises ConfigError when they are malformed.
    """
    values = values if isinstance(values, dict) else {}
    return ImageStatistics(
        _rgb(f"{where}: mean", values.get("mean"), CLIP_IMAGE_MEAN),
        _rgb(f"{where}: std", values.get("std"), CLIP_IMAGE_STD),
        is_default=not ("mean" in values or "std" in values),
    )


def _image_processor(directories: Sequence[Path]) -> tuple[Path, Mapping[str, Any]]:
    """Return the first file that has image statistics, and the object in it that has them; empty without any."""
    for directory in directories:
        for name, key in (("preprocessor_config.json", None), ("processor_config.json", "image_processor")):
            path = directory / name
            values = read_json_object(path) if is_present(path) else {}
            if key is not None:
                values = values.get(key) or {}
            if not isinstance(values, dict):
                raise ConfigError(f"{path}: {key} is {shown(values)}, should be an object")
            if "image_mean" in values or "image_std" in values:
                return path, values
    return directories[0], {}


def _rgb(where: str, values: Any, default: tuple[float, ...] | None = None) -> tuple[float, ...]:
    if values is None and default is not None:
        return default
    # A mean may be anything; a pixel is divided by the standard deviation.
    is_std = where.endswith("std")
    is_sequence = isinstance(values, (list, tuple)) and len(values) == 3
    if not is_sequence or not all(_is_float32(v) and (not is_std or _is_positive(v)) for v in values):
        wanted = "3 positive numbers in float32" if is_std else "3 numbers"
        raise ConfigError(f"{where} is {shown(values)}, should be {wanted}, one for each of R, G and B")
    return tuple(map(float, values))
