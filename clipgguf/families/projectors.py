"""LLaVA's projectors: which kind a set of tensors is, and its names in a GGUF file.

A projector maps the vision tower's features to the language model's embeddings. llama.cpp builds its graph by
``clip.projector_type`` (``PROJECTOR_TYPE_NAMES`` in ``tools/mtmd/clip-impl.h``) and looks tensors up by these names
(``TN_MM_*`` there); the checkpoints' names are those of LLaVA, Yi-VL and MobileVLM
(``mobilevlm/model/vision_projector.py``).
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from clipgguf.checkpoint import SourceTensor
from clipgguf.errors import CheckpointError
from clipgguf.families.model import ProjectorTensor

# Each rule: name after the projector's prefix, GGUF name, and the shape without axes of length 1, by number or by name;
# axes of one name have one length. "vision" is the width of the tower.
Rule = tuple[str, str, tuple[int | str, ...]]


def _linear(tail: str, gguf: str, out: str, into: str) -> tuple[Rule, ...]:
    return (f"{tail}.weight", f"{gguf}.weight", (out, into)), (f"{tail}.bias", f"{gguf}.bias", (out,))


def _norm(tail: str, gguf: str) -> tuple[Rule, ...]:
    return (f"{tail}.weight", f"{gguf}.weight", ("hidden",)), (f"{tail}.bias", f"{gguf}.bias", ("hidden",))


def _ldp_block(n: int) -> tuple[Rule, ...]:
    """MobileNetV3's inverted residual: depthwise convolution, squeeze and excitation, 1x1 convolution."""
    tail, gguf = f"model.mb_block.{n}.block", f"mm.model.mb_block.{n}.block"
    return (
        (f"{tail}.0.0.weight", f"{gguf}.0.0.weight", ("hidden", 3, 3)),
        *_norm(f"{tail}.0.1", f"{gguf}.0.1"),
        *_linear(f"{tail}.1.fc1", f"{gguf}.1.fc1", "squeezed", "hidden"),
        *_linear(f"{tail}.1.fc2", f"{gguf}.1.fc2", "hidden", "squeezed"),
        (f"{tail}.2.0.weight", f"{gguf}.2.0.weight", ("hidden", "hidden")),
        *_norm(f"{tail}.2.1", f"{gguf}.2.1"),
    )


@dataclass(frozen=True, slots=True)
class Kind:
    """A projector that readers know: what it is called, its ``clip.projector_type``, and its tensors in order."""

    name: str
    projector_type: str
    rules: tuple[Rule, ...]

    @property
    def tails(self) -> frozenset[str]:
        """The names after the prefix."""
        return frozenset(tail for tail, _, _ in self.rules)

    @property
    def gguf_names(self) -> frozenset[str]:
        """The names in a GGUF file."""
        return frozenset(gguf for _, gguf, _ in self.rules)

    def misfits(self, shapes: Mapping[str, tuple[int, ...]], vision_width: int) -> Iterator[tuple[str, str]]:
        """Yield the tensors whose shapes do not fit each other or the tower, and what would fit, as text.

        ``shapes`` are those of all tensors, by the name after the prefix.
        """
        sizes: dict[str, int] = {"vision": vision_width}
        for tail, _, expected in self.rules:
            shape = tuple(axis for axis in shapes[tail] if axis != 1)
            fits = len(shape) == len(expected) and all(
                have > 0 and have == (sizes.setdefault(want, have) if isinstance(want, str) else want)
                for have, want in zip(shape, expected, strict=True)
            )
            if not fits:
                yield (
                    tail,
                    " x ".join(f"{sizes.get(a, 'any')} ({a})" if isinstance(a, str) else str(a) for a in expected),
                )


KINDS = (
    # Linear, GELU, Linear: LLaVA 1.5 and 1.6 ("mlp2x_gelu"), and transformers' LlavaMultiModalProjector.
    Kind("mlp", "mlp", (*_linear("0", "mm.0", "hidden", "vision"), *_linear("2", "mm.2", "embedding", "hidden"))),
    # Linear, LayerNorm, GELU, Linear, LayerNorm: Yi-VL. llama.cpp has no name for it and tells it by mm.3.
    Kind(
        "mlp with LayerNorm",
        "mlp",
        (
            *_linear("0", "mm.0", "hidden", "vision"),
            *_norm("1", "mm.1"),
            *_linear("3", "mm.3", "hidden", "hidden"),
            *_norm("4", "mm.4"),
        ),
    ),
    # MobileVLM's lightweight downsample projector.
    Kind(
        "ldp",
        "ldp",
        (
            *_linear("model.mlp.1", "mm.model.mlp.1", "hidden", "vision"),
            *_linear("model.mlp.3", "mm.model.mlp.3", "hidden", "hidden"),
            *_ldp_block(1),
            *_ldp_block(2),
        ),
    ),
    # MobileVLM V2's.
    Kind(
        "ldpv2",
        "ldpv2",
        (
            *_linear("mlp.mlp.0", "mm.model.mlp.0", "hidden", "vision"),
            *_linear("mlp.mlp.2", "mm.model.mlp.2", "hidden", "hidden"),
            ("peg.peg.0.weight", "mm.model.peg.0.weight", ("hidden", 3, 3)),
            ("peg.peg.0.bias", "mm.model.peg.0.bias", ("hidden",)),
        ),
    ),
)
PROJECTOR_TYPES = tuple(dict.fromkeys(kind.projector_type for kind in KINDS))

# The spellings of the prefix: LLaVA's own (with whatever wraps the model), and transformers'.
_PREFIX = re.compile(r"(?:.*\.)?(?:mm_projector|multi_modal_projector|vision_proj)\.(?P<tail>.+)")
_HF_TAILS = {"linear_1": "0", "linear_2": "2"}
_NEWLINE = re.compile(r"(?:.*\.)?image_newline")
NEWLINE_NAME = "model.image_newline"
_PHI3 = re.compile(r".*\.(?:img_projection\..*|glb_GN|sub_GN)")


def is_projector_name(name: str) -> bool:
    """Return whether a checkpoint's tensor belongs to a projector, of a kind that we know or not."""
    return any(pattern.fullmatch(name) for pattern in (_PREFIX, _NEWLINE, _PHI3))


def projector_prefix(name: str) -> str:
    """Return what stands in front of the names of a projector, by one of them; a newline's name whole."""
    match = _PREFIX.fullmatch(name)
    return name.removesuffix(match["tail"]) if match else name


def recognise(
    tensors: Sequence[SourceTensor], *, where: str, vision_width: int, projector_type: str | None, keep_order: bool
) -> tuple[Kind, tuple[ProjectorTensor, ...]]:
    """Return which kind of projector a checkpoint's tensors are, and the tensors in the order of the file.

    That is the kind's own order, the image newline last, or with ``keep_order`` the order in which they come.
    ``projector_type`` restricts the kinds to those that readers know by it. Raises CheckpointError for a kind that no
    reader can run, and for shapes that do not fit each other or the tower.
    """
    by_tail: dict[str, SourceTensor] = {}
    newline = None
    for tensor in tensors:
        if _NEWLINE.fullmatch(tensor.name):
            newline = tensor
        elif match := _PREFIX.fullmatch(tensor.name):
            head, _, rest = match["tail"].partition(".")
            by_tail[f"{_HF_TAILS.get(head, head)}.{rest}" if rest else head] = tensor
        else:
            raise CheckpointError(
                f"{tensor.path}: tensor {tensor.name!r} is of Phi-3's HD projector, which merges patches two by two; "
                "no reader of GGUF files can run it as a LLaVA projector"
            )
    kinds = [kind for kind in KINDS if projector_type in (None, kind.projector_type)]
    kind = next((kind for kind in kinds if kind.tails == by_tail.keys()), None)
    if kind is None:
        raise CheckpointError(f"{where}: {_why_not(by_tail, projector_type)}")
    _check_shapes(kind, by_tail, vision_width, newline)
    names = {by_tail[tail].name: gguf for tail, gguf, _ in kind.rules}
    ordered = [by_tail[tail] for tail, _, _ in kind.rules]
    if newline is not None:
        names[newline.name] = NEWLINE_NAME
        ordered.append(newline)
    if keep_order:
        ordered = list(tensors)
    return kind, tuple(ProjectorTensor(names[tensor.name], tensor) for tensor in ordered)


def _why_not(by_tail: Mapping[str, SourceTensor], projector_type: str | None) -> str:
    """Return why no reader can run a projector with these tensors."""
    tails = set(by_tail)
    supported = f"supported are {', '.join(kind.name for kind in KINDS)}"
    weights = {tail.removesuffix(".weight") for tail in tails if tail.endswith(".weight")}
    biases = {tail.removesuffix(".bias") for tail in tails if tail.endswith(".bias")}
    if not tails:
        return f"has no projector tensor (model.mm_projector.*, multi_modal_projector.*); {supported}"
    if any(tail.startswith("projector_layernorm") for tail in tails):
        return f"the projector is VIP-LLaVA's, which joins the features of several layers; {supported}"
    if tails <= {"weight", "bias"} or weights == {"0"}:
        return f"the projector is a single linear layer, which makes llama.cpp crash; {supported}"
    if all(weight.isdecimal() for weight in weights):
        if not biases:
            return f"the projector has no biases, which makes llama.cpp crash; {supported}"
        if {"0", "2", "4"} <= weights:
            return f"the projector has {len(weights)} linear layers, of which llama.cpp runs only two; {supported}"
    asked = f"as {projector_type!r} " if projector_type else ""
    kinds = [kind for kind in KINDS if projector_type in (None, kind.projector_type)]
    nearest = max(kinds, key=lambda kind: len(kind.tails & tails) - len(kind.tails ^ tails))
    parts = [
        f"{what} {', '.join(map(repr, sorted(names)))}"
        for what, names in (("lacks", nearest.tails - tails), ("has", tails - nearest.tails))
        if names
    ]
    return f"the projector is none {asked}that readers know: compared with {nearest.name}, it {' and '.join(parts)}"


def _check_shapes(
    kind: Kind, by_tail: Mapping[str, SourceTensor], vision_width: int, newline: SourceTensor | None
) -> None:
    shapes = {tail: tensor.shape for tail, tensor in by_tail.items()}
    problems = [
        f"{by_tail[tail].path}: tensor {by_tail[tail].name!r} has shape {by_tail[tail].shape}, a projector of kind "
        f"{kind.name} wants {wanted}"
        for tail, wanted in kind.misfits(shapes, vision_width)
    ]
    if newline is not None and (len(newline.shape) != 1 or not newline.shape[0]):
        problems.append(
            f"{newline.path}: tensor {newline.name!r} has shape {newline.shape}, should have one axis of at least 1"
        )
    CheckpointError.raise_all(problems)
