"""What was asked for, and what a checkpoint turned out to be: the two records on both sides of the families."""

import enum
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipgguf.checkpoint import Checkpoint, SourceTensor, Wanted
from clipgguf.config import ImageStatistics, TextConfig, VisionConfig
from clipgguf.errors import CheckpointError, ConfigError, UsageError
from clipgguf.names import TEXT, VISION, Tower


class Content(enum.Enum):
    """Which parts of a model go into a file: the prefix of the file's name, and general.description."""

    TWO_TOWER = ("", "two-tower CLIP model")
    TEXT_ONLY = ("text-", "text-only CLIP model")
    VISION_ONLY = ("vision-", "vision-only CLIP model")
    LLAVA = ("mmproj-", "image encoder for LLaVA")

    @property
    def towers(self) -> tuple[Tower, ...]:
        """The towers whose tensors go in."""
        return {Content.TWO_TOWER: (TEXT, VISION), Content.TEXT_ONLY: (TEXT,)}.get(self, (VISION,))


@dataclass(frozen=True, slots=True)
class Request:
    """Everything that a user can ask of a conversion but where the file goes; ``convert`` explains the fields.

    ``layers_stored`` is what no user asks for: how many blocks a file has that is verified.
    """

    model_dir: Path
    text_only: bool = False
    vision_only: bool = False
    outtype: str = "f16"
    image_mean: Sequence[float] | None = None
    image_std: Sequence[float] | None = None
    llava_projector: Path | None = None
    vision_tower: Path | None = None
    vision_config: Path | None = None
    feature_layer: int | None = None
    keep_last_layer: bool = False
    layers_stored: int | None = None
    projector_type: str | None = None
    variant: str | None = None
    vocab: Path | None = None
    ignore_unknown: bool = False
    name: str | None = None

    def __post_init__(self) -> None:
        """Raise UsageError when options contradict each other or make no sense."""
        chosen = [name for name in ("text_only", "vision_only", "llava_projector") if getattr(self, name)]
        if len(chosen) > 1:
            raise UsageError("exclude each other", *chosen)
        if self.variant is not None and not re.fullmatch(r"[\w-]+", self.variant):
            raise UsageError(f"is {self.variant!r}, should be a word such as 'fp16'", "variant")
        if self.name == "":
            raise UsageError("is empty, should be the model's name", "name")

    @property
    def directory(self) -> Path:
        """The model's directory, also where ``model_dir`` is a file of weights in it."""
        return self.model_dir if self.model_dir.is_dir() else self.model_dir.parent

    def content(self, towers: tuple[Tower, ...]) -> Content:
        """Return what goes into the file of a model with these towers: what was asked for, else everything."""
        if self.text_only or towers == (TEXT,):
            return Content.TEXT_ONLY
        return Content.VISION_ONLY if self.vision_only or towers == (VISION,) else Content.TWO_TOWER

    def open_checkpoint(self, wanted: Wanted = lambda name: True) -> Checkpoint:
        """Open the weights of the model: those of the file that was given, else those that its directory has."""
        if self.model_dir.is_dir():
            return Checkpoint.open(self.model_dir, wanted, self.variant)
        return Checkpoint.open_file(self.model_dir, wanted)


@dataclass(frozen=True, slots=True)
class ProjectorTensor:
    """A tensor of a projector under its GGUF name."""

    name: str
    source: SourceTensor


@dataclass(frozen=True, slots=True)
class Projector:
    """A LLaVA projector, and what it expects of the tower.

    ``projector_type`` is what readers know it by. It takes the features after ``layers_run`` of the tower's blocks;
    the file has ``layers_stored`` of them. ``grid_pinpoints`` are (width, height) pairs in pixels, one after the other.
    """

    projector_type: str
    tensors: tuple[ProjectorTensor, ...]
    layers_run: int
    layers_stored: int
    grid_pinpoints: tuple[int, ...] = ()
    patch_merge_type: str | None = None


@dataclass(frozen=True, slots=True)
class Model:
    """A checkpoint that is understood: what a plan is made of.

    ``tensors`` are by canonical name and may hold more than the content needs. The configurations are of the towers
    that the checkpoint has; ``vocabulary`` is there when the content has the text tower, ``statistics`` when it has the
    vision tower, and ``projector`` when it is LLaVA's. A single tower may have no projection. ``found`` says for
    people what the checkpoint was taken for. ``is_llava_checkpoint`` is whether the directory itself is LLaVA's, and
    not that of a tower whose projector lies elsewhere.
    """

    directory: Path
    found: str
    name: str
    content: Content
    text: TextConfig | None
    vision: VisionConfig | None
    tensors: dict[str, SourceTensor]
    vocabulary: Sequence[str] | None
    statistics: ImageStatistics | None
    projector: Projector | None = None
    has_projection: bool = True
    is_llava_checkpoint: bool = False
    config_file: str = "config.json"
    ignore_unknown: bool = False
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def hidden_act(self) -> str:
        """The activation that the file tells its readers: the vision tower's, and without one the text tower's."""
        tower = self.vision or self.text
        assert tower is not None
        return tower.hidden_act


@dataclass(frozen=True, slots=True)
class Scope:
    """Options that apply to some models only: to which in words, how to tell, and what another one is instead."""

    options: tuple[str, ...]
    what: str
    includes: Callable[[Request, Model], bool]
    otherwise: str = "{model_dir} gives {content}"


# Which options apply to what. Those that stand in no row apply to every model.
SCOPES: tuple[Scope, ...] = (
    Scope(
        ("llava_projector",),
        "models in transformers' layout",
        lambda _, model: model.content is Content.LLAVA,
        "{model_dir} is in another one",
    ),
    Scope(
        ("feature_layer", "keep_last_layer", "projector_type", "vision_config"),
        "mmproj files (of a LLaVA checkpoint, or of a CLIP model with --llava-projector)",
        lambda _, model: model.content is Content.LLAVA,
    ),
    Scope(
        ("vision_tower",),
        "LLaVA checkpoints",
        lambda _, model: model.is_llava_checkpoint,
        "{model_dir} is none, and has the tower itself",
    ),
    Scope(("image_mean", "image_std"), "files with a vision tower", lambda _, model: VISION in model.content.towers),
    Scope(("vocab",), "files with a text tower", lambda _, model: TEXT in model.content.towers),
    Scope(
        ("variant",),
        "directories with several weights",
        lambda request, _: request.model_dir.is_dir(),
        "{model_dir} is a file",
    ),
)


def refuse_unused(request: Request, model: Model) -> None:
    """Raise UsageError for options of a request that do not apply to what the model turned out to be."""
    description = model.content.value[1]
    content = f"{'an' if description[0] in 'aeiou' else 'a'} {description}"
    for scope in SCOPES:
        given = [option for option in scope.options if getattr(request, option) not in (None, False)]
        if given and not scope.includes(request, model):
            is_or_are = "is" if len(given) == 1 else "are"
            instead = scope.otherwise.format(model_dir=request.model_dir, content=content)
            raise UsageError(f"{is_or_are} for {scope.what}; {instead}", *given)


def refuse_or_warn(unknown: Iterable[str], ignore_unknown: bool) -> tuple[str, ...]:
    """Raise CheckpointError for lines about unknown tensors, or return them as warnings where they shall be ignored."""
    lines = tuple(unknown)
    if not ignore_unknown:
        CheckpointError.raise_all(f"{line}; --ignore-unknown leaves it out" for line in lines)
    return tuple(f"{line}; it is left out" for line in lines)


def refuse_quantized(config: Mapping[str, Any], path: Path, tensors: Iterable[SourceTensor]) -> None:
    """Raise ConfigError when a config.json says that the checkpoint is quantized, and one of the wanted tensors is.

    Often the language model alone is: its tower and its projector can be converted.
    """
    quantization = config.get("quantization_config")
    if not quantization:
        return
    # Not before there are tensors, and only for this: it imports numpy.
    from clipgguf.encode import SOURCE_DTYPES

    tensor = next((t for t in tensors if t.dtype not in (*SOURCE_DTYPES, "I64")), None)
    if tensor is not None:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else None
        by = method if isinstance(method, str) and method else "quantization_config"
        raise ConfigError(
            f"{path}: the checkpoint is quantized ({by}; {tensor.name!r} is of type {tensor.dtype}), supported are "
            f"weights in {', '.join(SOURCE_DTYPES)}"
        )


def found_text(family: str, checkpoint: Checkpoint, prefixes: Iterable[str]) -> str:
    """Return what a checkpoint was taken for: family, container and the spelling of its names."""
    spelling = " and ".join(f"{prefix}*" for prefix in prefixes)
    others = Checkpoint.others(checkpoint.container)
    beside = f" ({' and '.join(others)} beside it not read)" if others else ""
    return f"{family} in {checkpoint.container.name}{beside}, tensors {spelling}"
