"""What was asked for, and what a checkpoint turned out to be: the two records on both sides of the families."""

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from clipgguf.checkpoint import SourceTensor
from clipgguf.config import ImageStatistics, TextConfig, VisionConfig
from clipgguf.names import TEXT, VISION, Tower


class Content(enum.Enum):
    """Which parts of a model go into a file: the prefix of the file's name, and general.description."""

    TWO_TOWER = ("", "two-tower CLIP model")
    TEXT_ONLY = ("text-", "text-only CLIP model")
    VISION_ONLY = ("vision-", "vision-only CLIP model")

    @property
    def towers(self) -> tuple[Tower, ...]:
        """The towers whose tensors go in."""
        return {Content.TEXT_ONLY: (TEXT,), Content.VISION_ONLY: (VISION,)}.get(self, (TEXT, VISION))


@dataclass(frozen=True, slots=True)
class Request:
    """Everything that a user can ask of a conversion but where the file goes; ``convert`` explains the fields."""

    model_dir: Path
    text_only: bool = False
    vision_only: bool = False
    outtype: str = "f16"
    image_mean: Sequence[float] | None = None
    image_std: Sequence[float] | None = None

    def __post_init__(self) -> None:
        """Raise ValueError when two options contradict each other."""
        if self.text_only and self.vision_only:
            raise ValueError("text_only and vision_only exclude each other")


@dataclass(frozen=True, slots=True)
class Model:
    """A checkpoint that is understood: what a plan is made of.

    ``tensors`` are by canonical name and may hold more than the content needs. The configurations are of the towers
    that the checkpoint has; ``vocabulary`` is there when the content has the text tower, ``statistics`` when it has the
    vision tower.
    """

    directory: Path
    name: str
    content: Content
    text: TextConfig
    vision: VisionConfig
    tensors: dict[str, SourceTensor]
    vocabulary: Sequence[str] | None
    statistics: ImageStatistics | None
