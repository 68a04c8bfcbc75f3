"""What a family is made from: a model's configuration by dotted path, where its files are, and what was asked for."""

import itertools
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from clipgguf.checkpoint import CONTAINERS, Checkpoint, Wanted
from clipgguf.config import (
    LARGEST_UINT32,
    ImageStatistics,
    image_processor,
    is_positive_float32,
    read_image_statistics,
    valid_text,
)
from clipgguf.errors import ConfigError, collect, shown
from clipgguf.family import Family
from clipgguf.json_file import read_json_object
from clipgguf.model_card import ModelCard, read_model_card
from clipgguf.options import Options
from clipgguf.sources import File, Folder
from clipgguf.sources.given import given_file
from clipgguf.table import INTEGERS, SIDE, Value
from clipgguf.tensor import View


@dataclass(frozen=True, slots=True)
class Config:
    """A JSON object, and the file that it is from; ``labels`` are what messages call some of its keys."""

    path: File
    values: Mapping[str, Any]
    labels: Mapping[str, str] = field(default_factory=dict)

    def find(self, source: str) -> tuple[str, Any]:
        """Return the label of the first of the dotted paths (separated by ``|``) that is not null, and its value.

        Without any, the first path's and None. Raises ConfigError where something on a path is no object.
        """
        return _first(self.values, source, self.label)

    def get(self, source: str, default: Any = None) -> Any:
        """Return the value at the first of the dotted paths that has any, else the default."""
        value = self.find(source)[1]
        return default if value is None else value

    def label(self, path: str) -> str:
        """Return what messages call a place: the file, the object, the key."""
        head, *rest = path.split(".")
        return ": ".join(filter(None, [str(self.path), self.labels.get(head, head), *rest]))


def _first(values: Mapping[str, Any], source: str, label: Callable[[str], str]) -> tuple[str, Any]:
    """Return what ``Config.find`` does of an object; ``label`` gives what messages call a place in it."""
    paths = source.split("|")
    for path in paths:
        value: Any = values
        keys = path.split(".")
        for depth, key in enumerate(keys):
            if not isinstance(value, dict):
                raise ConfigError(f"{label('.'.join(keys[:depth]))} is {shown(value)}, should be an object")
            value = value.get(key)
            if value is None:
                break
        else:
            return label(path), value
    return label(paths[0]), None


@dataclass(frozen=True, slots=True)
class Told:
    """What a GGUF file that is verified tells of LLaVA's tower: the features' layer, the blocks stored."""

    feature_layer: int | None
    stored_blocks: int


@dataclass(slots=True)
class Inputs:
    """All that a family's values come from.

    ``model`` is the model's directory, or a file of weights in it; ``places`` are where an image processor's file may
    be. ``told`` is what a file tells that is verified. ``labels`` are what messages call the values, once they are
    read. ``warnings``, ``notes`` and ``told_notes`` are lines for the user, which functions of values add to. ``card``
    is what the metadata ``general.*`` are made from, where the file shall have them all.
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
    card: ModelCard | None = None
    # The config.json of the folders inside that the family's parts are in, by their names.
    inner: dict[str, Config] = field(default_factory=dict)

    @property
    def directory(self) -> Folder:
        """The model's folder, also where ``model`` is a file of weights in it."""
        return self.model.folder if isinstance(self.model, File) else self.model

    @property
    def name(self) -> str:
        """The model's name: the one asked for, else the configuration's, else the directory's."""
        if self.options.name is not None:
            return valid_text(self.options.name)
        name = self.config.values.get("_name_or_path")
        return valid_text(name if isinstance(name, str) else self.directory.title)

    def open_checkpoint(self, wanted: Wanted = lambda name: True) -> Checkpoint:
        """Open the weights of the model: those of the file that was given, else those that its directory has."""
        if isinstance(self.model, File):
            return Checkpoint.open_file(self.model, wanted)
        return Checkpoint.open(self.model, wanted, self.options.variant)

    def open_inner(self, folder: str, wanted: Wanted) -> dict[str, View]:
        """Open the weights of a folder inside; their names, with the folder's before them, are given and returned."""
        opened = Checkpoint.open(self.inner[folder].path.folder, lambda name: wanted(f"{folder}/{name}"))
        views = (replace(view, name=f"{folder}/{name}") for name, view in opened.tensors.items())
        return {view.name: view for view in views}

    def find(self, source: str) -> tuple[str, Any]:
        """Return what messages call a value of config.json or, for ``processor.``, of the image processor, and it.

        Of several paths, separated by ``|``, the first counts that has one. A path that begins with ``processor.`` is
        of the image processor's file, one after ``FOLDER/`` of the config.json of a folder inside.
        """
        found = [self._find(path) for path in source.split("|")]
        return next((pair for pair in found if pair[1] is not None), found[0])

    def _find(self, path: str) -> tuple[str, Any]:
        folder, _, inside = path.rpartition("/")
        if folder:
            return self.inner[folder].find(inside)
        if not path.startswith("processor."):
            return self.config.find(path)
        path = path.removeprefix("processor.")
        file, values = image_processor(self.places or (self.directory,), (path.split(".")[0],))
        return _first(values, path, lambda path: ": ".join((str(file), *path.split("."))))

    def image_statistics(
        self, default: ImageStatistics, names: tuple[str, str] = ("image_mean", "image_std")
    ) -> ImageStatistics:
        """Return the image statistics: those asked for, else the image processor's, else the default; read once.

        ``names`` are what the image processor calls them, where it is not what it usually does.
        """
        if self.statistics is None:
            options, places = self.options, self.places or (self.directory,)
            self.statistics = read_image_statistics(places, options.image_mean, options.image_std, default, names)
            given = (options.image_mean, options.image_std)
            missing = [key for key, numbers in zip(("image_mean", "image_std"), given, strict=True) if numbers is None]
            if self.statistics.is_default:
                own = f"the family's own {'is' if len(missing) == 1 else 'are'} written"
                self.notes.append(f"no image processor's file gives {' and '.join(missing)}; {own}")
        return self.statistics


def parts_of(family: Family, inputs: Inputs) -> Family:
    """Return a family with the parts that a model has by its configuration, or the one of them that is asked for.

    Reads the config.json of the folders that these are in, and notes which of them no reader runs. Raises ConfigError
    where a config.json is missing, or the one part that is asked for is none of those that can be written alone.
    """
    there = [
        part for part in family.parts if part not in family.told_by or inputs.find(family.told_by[part])[1] is not None
    ]
    asked = inputs.options.only
    if asked is None:
        inputs.notes += [line for part, line in family.unread.items() if part in there]
    elif asked in family.unread:
        raise ConfigError(f"{inputs.directory}: {family.unread[asked]}; --{asked}-only does not apply")
    elif asked not in there:
        what = f"which gives an mmproj file for {' and '.join(_MEDIA[part] for part in there)}"
        raise ConfigError(f"{inputs.directory}: is a {family.title} checkpoint, {what}; --{asked}-only does not apply")
    chosen = family.of(there if asked is None else (asked,))
    for part, name in chosen.folders.items():
        folder = inputs.directory.folder(name)
        folder.expect(("config.json",), CONTAINERS)
        if not (file := folder.file("config.json")).is_present:
            others = " or ".join(f"--{other}-only" for other in there if other != part)
            raise ConfigError(
                f"{file}: is missing, the {family.title} checkpoint's part for {_MEDIA[part]} should be in that folder"
                + (f"; {others} does without" if others else "")
            )
        inputs.inner[name] = Config(file, read_json_object(file))
    return chosen


_MEDIA: Mapping[str, str] = {"vision": "images", "audio": "sound"}


def read_values(family: Family, inputs: Inputs) -> dict[str, Any]:
    """Return a family's values by short name, from config, files and options; ConfigError with all that is wrong."""
    values: dict[str, Any] = {}
    problems: list[str] = []
    model_type = inputs.config.values.get("model_type")
    for value in family.all_values:
        default = value.default_for(model_type if isinstance(model_type, str) else None)
        with collect(problems):
            if value.of is not None:
                # What is computed from sizes may rely on them.
                ConfigError.raise_all(_contradictions(family, values, inputs.labels))
                values[value.name] = None if problems else _made(value, values, inputs.config.path)
            elif isinstance(value.source, str):
                inputs.labels[value.name], found = inputs.find(value.source)
                values[value.name] = _checked(value.kind, default, inputs.labels[value.name], found)
            else:
                values[value.name] = default if value.source is None else value.source(inputs)
    options = inputs.options
    if family.base.has_card or options.model_card or options.metadata is not None:
        given = None if options.metadata is None else given_file(options.metadata)
        with collect(problems):
            inputs.card = read_model_card(inputs.directory, inputs.config.values, options.name, given)
    ConfigError.raise_all(dict.fromkeys(problems))
    ConfigError.raise_all(_contradictions(family, values, inputs.labels))
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
    made = checked(kind or type(default), where, found)
    return made[0] if kind is SIDE and isinstance(made, list) else made


def checked(kind: Any, where: str, found: Any) -> Any:
    """Return what a file has where it is of a kind, as ``Value`` has it; ConfigError where it is not."""
    if kind is int:
        fits = type(found) is int and 0 < found <= LARGEST_UINT32
    elif kind is INTEGERS:
        fits = isinstance(found, list) and all(type(n) is int and -(2**31) <= n < 2**31 for n in found)
    elif kind is SIDE:
        sides = found if isinstance(found, list) and len(found) == 2 else [found]
        fits = all(type(side) is int and 0 < side <= LARGEST_UINT32 and side == sides[0] for side in sides)
    else:
        fits = is_positive_float32(found) if kind is float else isinstance(found, kind)
    if not fits:
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
    SIDE: "a positive integer of 32 bits, or a list of two that are the same",
}


# Two sizes of a tower, what must not be true of them, and how that is said.
_CONTRADICTIONS = (
    ("width", "heads", operator.mod, "is no multiple of"),
    ("patch", "image", operator.gt, "is larger than"),
)


def _contradictions(family: Family, values: Mapping[str, Any], labels: Mapping[str, str]) -> Iterator[str]:
    """Yield what is wrong with values that are right by themselves."""
    parts = dict.fromkeys(value.part for value in family.all_values)
    for (one, other, is_wrong, what), part in itertools.product(_CONTRADICTIONS, parts):
        size, limit = f"{part}.{one}", f"{part}.{other}"
        sizes = values.get(size), values.get(limit)
        if size in labels and limit in labels and None not in sizes and is_wrong(*sizes):
            limit_key = labels[limit].rpartition(": ")[2]
            yield f"{labels[size]} {sizes[0]} {what} {limit_key} {sizes[1]}"
