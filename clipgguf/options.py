"""What can be asked of a conversion, besides where the file goes: one record for Python, the command line and docs."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

from clipgguf.errors import UsageError

PathLike = str | os.PathLike[str]
Outtype = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "auto"]
ProjectorType = Literal["mlp", "ldp", "ldpv2"]


def _option(text: str, only_for: str = "", *, told: bool = False) -> Mapping[str, Any]:
    """Return a field's metadata: what it does, to which models it applies if not to all, and whether files tell it."""
    return {"text": text, "only_for": only_for, "told": told}


_SEES, _READS = "files with a vision tower", "files with a text tower"
_LLAVA = "LLaVA's mmproj files (of a LLaVA checkpoint, or of a CLIP model with --llava-projector)"


# fmt: off
@dataclass(frozen=True, slots=True)
class Options:
    """What can be asked of a conversion; each field's ``metadata["text"]`` says what it does.

    Raises UsageError, a ValueError, when options contradict each other or make no sense. Those that do not apply to the
    model are refused when it is opened.
    """

    name: str | None = field(default=None, metadata=_option(
        "The model's name: general.name in the file, and {name} in --output. "
        "[default: the config's; in --output the directory's]", told=True))
    metadata: PathLike | None = field(default=None, metadata=_option(
        'A JSON file of metadata that override the model card\'s, such as {"general.author": "Me"}.', told=True))
    model_card: bool = field(default=False, metadata=_option(
        "Write all general.* metadata that the model card and the directory's name give. CLIP's and LLaVA's files have "
        "them only so.", told=True))
    text_only: bool = field(default=False, metadata=_option("Convert the text tower alone.", told=True))
    vision_only: bool = field(default=False, metadata=_option("Convert the vision tower alone.", told=True))
    audio_only: bool = field(default=False, metadata=_option(
        "Convert the audio encoder alone, of a model that hears as well.", told=True))
    outtype: Outtype = field(default="f16", metadata=_option(
        "Element type of the matrices; auto: bf16 for bf16, else f16. [default: f16]", told=True))
    image_mean: Sequence[float] | None = field(default=None, metadata=_option(
        "Mean of the pixels, for pixels from 0 to 1. [default: the image processor's]", _SEES))
    image_std: Sequence[float] | None = field(default=None, metadata=_option(
        "Standard deviation of the pixels. [default: the image processor's]", _SEES))
    llava_projector: PathLike | None = field(default=None, metadata=_option(
        "The projector that makes an mmproj file of the CLIP model: llava.projector, mm_projector.bin, a safetensors "
        "file, or a LLaVA checkpoint's directory.", "CLIP models in transformers' layout"))
    vision_tower: PathLike | None = field(default=None, metadata=_option(
        "The directory of the vision tower of a LLaVA checkpoint that has none.", "LLaVA checkpoints"))
    fetch_tower: bool = field(default=False, metadata=_option(
        "Get the vision tower that a LLaVA checkpoint names and has not from the Hugging Face hub.",
        "LLaVA checkpoints"))
    vision_config: PathLike | None = field(default=None, metadata=_option(
        "The vision tower's config.json where none is beside it.", _LLAVA))
    feature_layer: int | None = field(default=None, metadata=_option(
        "The layer whose features the projector takes; -2 is after all blocks but the last. "
        "[default: the config's, else -2]", _LLAVA, told=True))
    keep_last_layer: bool = field(default=False, metadata=_option(
        "Store one block more than is run: for PowerInfer and older llama.cpp, which leave out the last one "
        "themselves. Today's llama.cpp runs the right ones either way.", _LLAVA, told=True))
    projector_type: ProjectorType | None = field(default=None, metadata=_option(
        "The projector's kind. [default: told from its tensors]", _LLAVA))
    variant: str | None = field(default=None, metadata=_option(
        "Which of several weights: fp16 for model.fp16.safetensors.", "directories with several weights"))
    vocab: PathLike | None = field(default=None, metadata=_option(
        "vocab.json or tokenizer.json, or their directory, if not beside the model.", _READS))
    revision: str | None = field(default=None, metadata=_option(
        "The branch, tag or commit. [default: the model's main branch]", "models of the Hugging Face hub"))
    ignore_unknown: bool = field(default=False, metadata=_option(
        "Leave out tensors that are not known, with a warning."))
    # fmt: on

    def __post_init__(self) -> None:
        """Check what can be checked without the model, and take outtypes in any case."""
        chosen = [name for name in ("text_only", "vision_only", "audio_only", "llava_projector") if getattr(self, name)]
        if len(chosen) > 1:
            raise UsageError("exclude each other", *chosen)
        if self.fetch_tower and self.vision_tower is not None:
            raise UsageError("exclude each other", "vision_tower", "fetch_tower")
        for name, kinds in (("outtype", Outtype), ("projector_type", ProjectorType)):
            given = getattr(self, name)
            word = given.lower() if isinstance(given, str) else given
            if word not in get_args(kinds) and (word is not None or name == "outtype"):
                raise UsageError(f"is {given!r}, should be one of {', '.join(get_args(kinds))}", name)
            object.__setattr__(self, name, word)
        for name in ("image_mean", "image_std"):
            given = getattr(self, name)
            if given is not None:
                try:
                    object.__setattr__(self, name, tuple(map(float, given)))
                except (TypeError, ValueError):
                    raise UsageError(f"is {given!r}, should be 3 numbers, one for each of R, G and B", name) from None
        if self.variant is not None and not re.fullmatch(r"[\w-]+", self.variant):
            raise UsageError(f"is {self.variant!r}, should be a word such as 'fp16'", "variant")
        if self.name == "":
            raise UsageError("is empty, should be the model's name", "name")

    @property
    def only(self) -> str | None:
        """The one part that is asked for: "text", "vision" or "audio"; None for all."""
        return next((part for part in ("text", "vision", "audio") if getattr(self, f"{part}_only")), None)

    def refuse_unused(self, uses: frozenset[str], found: str) -> None:
        """Raise UsageError for options that are given and not among a model's uses; ``found`` says what it is."""
        given = [option for option in fields(self) if getattr(self, option.name) is not option.default]
        unused = [(o.metadata["only_for"], o.name) for o in given if o.metadata["only_for"] and o.name not in uses]
        if unused:
            only_for = unused[0][0]
            names = [name for other, name in unused if other == only_for]
            raise UsageError(f"{'is' if len(names) == 1 else 'are'} for {only_for}; {found}", *names)


DEFAULTS = Options()
