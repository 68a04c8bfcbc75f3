"""What a family is made from: a model's configuration by dotted path, where its files are, and what was asked for."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from clipgguf.checkpoint import Checkpoint, Wanted
from clipgguf.config import (
    LARGEST_UINT32,
    ImageStatistics,
    image_processor,
    is_positive_float32,
    model_name,
    read_image_statistics,
    valid_text,
)
from clipgguf.errors import ConfigError, collect, shown
from clipgguf.family import INTEGERS, Family, Value
from clipgguf.options import Options
from clipgguf.sources import File, Folder


@dataclass(frozen=True, slots=True)
class Config:
    """A JSON object, and where it is from: a file, or a part of one with another name than ``source`` paths have.

    ``labels`` are what messages call the objects inside, where that is another name.
    """

    path: File
    values: Mapping[str, Any]
    labels: Mapping[str, str] = field(default_factory=dict)

    def find(self, source: str) -> tuple[str, Any]:
        """Return the first of the dotted paths (separated by ``|``) that is there and not null, and its value.

        Without any, that is the first path and None. Raises ConfigError where something on a path is no object.
        """
        paths = source.split("|")
        for path in paths:
            value: Any = self.values
            for depth, key in enumerate(path.split(".")):
                if not isinstance(value, dict):
                    where = self.label(".".join(path.split(".")[:depth]))
                    raise ConfigError(f"{where} is {shown(value)}, should be an object")
                value = value.get(key)
                if value is None:
                    break
            if value is not None:
                return path, value
        return paths[0], None

    def get(self, source: str, default: Any = None) -> Any:
        """Return the value at the first of the dotted paths that has any, else the default."""
        value = self.find(source)[1]
        return default if value is None else value

    def label(self, path: str) -> str:
        """Return what messages call a place: the file, the object, the key."""
        head, *rest = path.split(".")
        names = [self.labels.get(head, head), *rest]
        return ": ".join([str(self.path), *filter(None, names)])


@dataclass(frozen=True, slots=True)
class Told:
    """What a GGUF file that is verified tells of LLaVA's tower: the features' layer, the blocks stored."""

    feature_layer: int | None
    stored_blocks: int


@dataclass(slots=True)
class Inputs:
    """All that a family's values come from.

    ``model`` is the model's directory, or a file of weights in it; ``places`` are where an image processor's file may
    be. ``told`` is what a file tells that is verified, and ``told_notes`` lines about it. ``labels`` are what messages
    call the values, once they are read. ``warnings`` and ``notes`` are lines for the user, which functions of values
    add to.
    """

    model: Folder | File
    config: Config
    options: Options
    places: tuple[Folder, ...] = ()
    labels: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    statistics: ImageStatistics | None = None
    told: Told | None = None
    told_notes: list[str] = field(default_factory=list)

    @property
    def directory(self) -> Folder:
        """The model's folder, also where ``model`` is a file of weights in it."""
        return self.model.folder if isinstance(self.model, File) else self.model

    @property
    def name(self) -> str:
        """The model's name: the one asked for, else the configuration's, else the directory's."""
        if self.options.name is not None:
            return valid_text(self.options.name)
        return model_name(self.config.values, self.directory)

    def open_checkpoint(self, wanted: Wanted = lambda name: True) -> Checkpoint:
        """Open the weights of the model: those of the file that was given, else those that its directory has."""
        if isinstance(self.model, File):
            return Checkpoint.open_file(self.model, wanted)
        return Checkpoint.open(self.model, wanted, self.options.variant)

    def find(self, source: str) -> tuple[str, Any]:
        """Return what messages call a value of config.json, and the value; None when it is missing.

        A path that begins with ``processor.`` is of the image processor's file.
        """
        if source.startswith("processor."):
            key = source.removeprefix("processor.")
            file, values = image_processor(self.places or (self.directory,), (key,))
            return f"{file}: {key}", values.get(key)
        path, value = self.config.find(source)
        return self.config.label(path), value

    def image_statistics(self, default: ImageStatistics) -> ImageStatistics:
        """Return the image statistics: those asked for, else the image processor's, else the default; read once."""
        if self.statistics is None:
            options, places = self.options, self.places or (self.directory,)
            self.statistics = read_image_statistics(places, options.image_mean, options.image_std, default)
            if self.statistics.is_default:
                self.notes.append(
                    "no image processor's file gives image_mean and image_std; the family's own are written"
                )
        return self.statistics


def refuse_towers(inputs: Inputs, title: str) -> None:
    """Raise ConfigError where one tower is asked for of a checkpoint that gives an mmproj file."""
    options = inputs.options
    for asked, option in ((options.text_only, "--text-only"), (options.vision_only, "--vision-only")):
        if asked:
            raise ConfigError(
                f"{inputs.directory}: is a {title} checkpoint, which gives an mmproj file; {option} is for CLIP models"
            )


def read_values(family: Family, inputs: Inputs) -> dict[str, Any]:
    """Return a family's values by short name, from config, files and options.

    Raises ConfigError with all that is wrong.
    """
    values: dict[str, Any] = {}
    problems: list[str] = []
    model_type = inputs.config.values.get("model_type")
    for value in family.all_values:
        default = value.default_for(model_type if isinstance(model_type, str) else None)
        with collect(problems):
            if value.of is not None:
                if not problems:
                    values[value.name] = _made(value, values, inputs.config.path)
            elif isinstance(value.source, str):
                inputs.labels[value.name], found = inputs.find(value.source)
                values[value.name] = _checked(value.kind, default, inputs.labels[value.name], found)
            else:
                values[value.name] = default if value.source is None else value.source(inputs)
    ConfigError.raise_all(dict.fromkeys(problems))
    ConfigError.raise_all(_contradictions(values, inputs.labels))
    return values


def _made(value: Value, values: Mapping[str, Any], path: File) -> Any:
    assert value.of is not None
    try:
        made = value.of(values)
    except ValueError as e:
        raise ConfigError(f"{path}: {e}") from e
    if type(made) is int and made > LARGEST_UINT32:
        raise ConfigError(f"{path}: the sizes make {value.name} {made:,}, should be at most {LARGEST_UINT32:,}")
    return made


def _checked(kind: Any, default: Any, where: str, found: Any) -> Any:
    if found is None:
        if default is None and kind is not None:
            raise ConfigError(f"{where} is missing, should be {_WANTED[kind]}")
        return default
    return checked(kind or type(default), where, found)


def checked(kind: Any, where: str, found: Any) -> Any:
    """Return what a file has where it is of a kind, as ``Value`` has it; ConfigError where it is not."""
    if not _fits(kind, found):
        raise ConfigError(f"{where} is {shown(found)}, should be {_WANTED[kind]}")
    return found


_WANTED: Mapping[Any, str] = {
    int: "a positive integer of 32 bits",
    float: "a positive number in float32",
    str: "a string",
    bool: "true or false",
    list: "a list",
    dict: "an object",
    INTEGERS: "a list of integers of 32 bits",
}


def _fits(kind: Any, found: Any) -> bool:
    if kind is int:
        return type(found) is int and 0 < found <= LARGEST_UINT32
    if kind is float:
        return is_positive_float32(found)
    if kind is INTEGERS:
        return isinstance(found, list) and all(type(n) is int and -(2**31) <= n < 2**31 for n in found)
    return isinstance(found, kind)


# Sizes that must divide each other, and sizes that must not be larger, in every tower.
_MULTIPLES, _AT_MOST = (("width", "heads"),), (("patch", "image"),)


def _contradictions(values: Mapping[str, Any], labels: Mapping[str, str]) -> Iterator[str]:
    """Yield what is wrong with values that are right by themselves."""

    def pairs(names: tuple[tuple[str, str], ...]) -> Iterator[tuple[str, str, str]]:
        for part in dict.fromkeys(name.rpartition(".")[0] for name in values):
            for one, other in ((f"{part}.{a}", f"{part}.{b}") for a, b in names):
                if one in labels and other in labels:
                    yield labels[one].rpartition(": ")[0], one, other

    def text(name: str) -> str:
        return f"{labels[name].rpartition(': ')[2]} {values[name]}"

    for where, size, divisor in pairs(_MULTIPLES):
        if values[size] % values[divisor]:
            yield f"{where}: {text(size)} is no multiple of {text(divisor)}"
    for where, size, most in pairs(_AT_MOST):
        if values[size] > values[most]:
            yield f"{where}: {text(size)} is larger than {text(most)}"
