"""What a model's JSON files say besides its configuration: its name, and its image processor's statistics."""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clipgguf.errors import ConfigError, shown
from clipgguf.json_file import read_json_object
from clipgguf.sources import File, Folder

# GGUF metadata holds sizes as 32-bit unsigned integers, and everything else that is a number as float32.
LARGEST_UINT32 = 2**32 - 1
LARGEST_FLOAT32 = (2 - 2**-23) * 2.0**127


def valid_text(text: str) -> str:
    """Return text with lone surrogates replaced, which JSON can spell and a GGUF file's UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode()


def is_float32(value: Any) -> bool:
    """Return whether a JSON value is a number that float32 holds without becoming infinite."""
    return type(value) in (int, float) and abs(value) <= LARGEST_FLOAT32


def is_positive_float32(value: Any) -> bool:
    """Return whether a JSON value is a number that is positive as float32, which what is too small for it is not."""
    return is_float32(value) and struct.unpack("<f", struct.pack("<f", value))[0] > 0


@dataclass(frozen=True, slots=True)
class ImageStatistics:
    """The mean and standard deviation, one value for each of R, G and B, that normalize pixels in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    is_default: bool = False


# CLIPImageProcessor's ("OPENAI_CLIP_MEAN" and "OPENAI_CLIP_STD" in transformers), and SiglipImageProcessor's.
CLIP_STATISTICS = ImageStatistics(
    (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711), is_default=True
)
SIGLIP_STATISTICS = ImageStatistics((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), is_default=True)


def read_image_statistics(
    directories: Sequence[Folder],
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    default: ImageStatistics,
    names: tuple[str, str] = ("image_mean", "image_std"),
) -> ImageStatistics:
    """Return the image statistics: those given, else those of the first directory that has any, else the default.

    ``names`` are what some processors call them; the usual names are preferred. Raises ConfigError when they are
    malformed.
    """
    if mean is not None and std is not None:
        return ImageStatistics(_rgb("image_mean", mean), _rgb("image_std", std))
    path, values = image_processor(directories, ("image_mean", "image_std", *names))

    def one(key: str, other: str, given: Sequence[float] | None, fallback: tuple[float, ...]) -> tuple[float, ...]:
        name = key if key in values else other
        return _rgb(f"{path}: {name}", values.get(name), fallback) if given is None else _rgb(key, given)

    mean = one("image_mean", names[0], mean, default.mean)
    std = one("image_std", names[1], std, default.std)
    return ImageStatistics(mean, std, is_default=not values and default.is_default)


def rgb_statistics(values: Any, where: str) -> ImageStatistics:
    """Return the statistics of an object with ``mean`` and ``std``, as OpenCLIP's preprocess_cfg; else CLIP's own.

    Raises ConfigError when they are malformed.
    """
    values = values if isinstance(values, dict) else {}
    return ImageStatistics(
        _rgb(f"{where}: mean", values.get("mean"), CLIP_STATISTICS.mean),
        _rgb(f"{where}: std", values.get("std"), CLIP_STATISTICS.std),
        is_default=not ("mean" in values or "std" in values),
    )


# Where an image processor's values are; Kimi-K2.5's and dots3-note's are in an object of their own.
_PROCESSORS = (
    ("preprocessor_config.json", "media_proc_cfg"),
    ("preprocessor_config.json", None),
    ("preprocessor_config.json", "vision_config"),
    ("processor_config.json", "image_processor"),
)


def image_processor(directories: Sequence[Folder], keys: Sequence[str]) -> tuple[File | Folder, Mapping[str, Any]]:
    """Return the first file of an image processor that has any of some keys, and the object that has it.

    It is preprocessor_config.json, or ``image_processor`` in the processor_config.json that transformers 5 saves.
    Without any, that is the first directory and an empty object. Raises ConfigError where a file is malformed.
    """
    for directory in directories:
        for name, key in _PROCESSORS:
            path = directory.file(name)
            values = read_json_object(path) if path.is_present else {}
            if key is not None:
                values = values.get(key) or {}
            if not isinstance(values, dict):
                raise ConfigError(f"{path}: {key} is {shown(values)}, should be an object")
            if any(key in values for key in keys):
                return path, values
    return directories[0], {}


def _rgb(where: str, values: Any, default: tuple[float, ...] = ()) -> tuple[float, ...]:
    if values is None:
        return default
    # A mean may be anything; a pixel is divided by the standard deviation.
    fits, wanted = is_float32, "3 numbers"
    if where.endswith("std"):
        fits, wanted = is_positive_float32, "3 positive numbers in float32"
    if not isinstance(values, (list, tuple)) or len(values) != 3 or not all(map(fits, values)):
        raise ConfigError(f"{where} is {shown(values)}, should be {wanted}, one for each of R, G and B")
    return tuple(map(float, values))
