"""LLaVA's projectors: which kind a set of tensors is, and its names in a GGUF file.

They map the vision tower's features to the language model's embeddings. llama.cpp builds its graph by
``clip.projector_type`` (``PROJECTOR_TYPE_NAMES`` in ``tools/mtmd/clip-impl.h``) and looks tensors up by these names
(``TN_MM_*`` there); the checkpoints' names are those of LLaVA, Yi-VL and MobileVLM
(``mobilevlm/model/vision_projector.py``).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from clipgguf.errors import CheckpointError
from clipgguf.layers import linear, norm
from clipgguf.table import Rule
from clipgguf.tensor import View

# What the names of a projector's tensors begin with, in a file.
PROJECTOR_PREFIX = "mm."


@dataclass(frozen=True, slots=True)
class Kind:
    """A projector that readers know: what it is called, its ``clip.projector_type``, and its tensors in order."""

    name: str
    projector_type: str
    rules: tuple[Rule, ...]

    @property
    def tails(self) -> frozenset[str]:
        """The names in the checkpoint after the prefix."""
        return frozenset(rule.theirs for rule in self.rules)

    @property
    def names(self) -> frozenset[str]:
        """The names in a GGUF file."""
        return frozenset(name for rule in self.rules for name in rule.names)


def _ldp_block(n: int) -> tuple[Rule, ...]:
    """MobileNetV3's inverted residual: depthwise convolution, squeeze and excitation, 1x1 convolution."""
    block = f"model.mb_block.{n}.block"
    return (
        *linear(f"{block}.0.0", f"mm.{block}.0.0", "hidden", "1 3 3'", bias=False),
        *norm(f"{block}.0.1", f"mm.{block}.0.1", "hidden"),
        *linear(f"{block}.1.fc1", f"mm.{block}.1.fc1", "squeezed", "hidden 1 1"),
        *linear(f"{block}.1.fc2", f"mm.{block}.1.fc2", "hidden", "squeezed 1 1"),
        *linear(f"{block}.2.0", f"mm.{block}.2.0", "hidden", "hidden' 1 1", bias=False),
        *norm(f"{block}.2.1", f"mm.{block}.2.1", "hidden"),
    )


# Linear, GELU, Linear: LLaVA 1.5 and 1.6 ("mlp2x_gelu"), and transformers' LlavaMultiModalProjector.
_MLP = (*linear("0", "mm.0", "hidden", "features"), *linear("2", "mm.2", "embedding", "hidden"))
# Linear, LayerNorm, GELU, Linear, LayerNorm: Yi-VL. llama.cpp has no name for it and tells it by mm.3.
_MLP_WITH_NORMS = (
    *linear("0", "mm.0", "hidden", "features"),
    *norm("1", "mm.1", "hidden"),
    *linear("3", "mm.3", "hidden", "hidden'"),
    *norm("4", "mm.4", "hidden"),
)
# MobileVLM's lightweight downsample projector, and MobileVLM V2's.
_LDP = (
    *linear("model.mlp.1", "mm.model.mlp.1", "hidden", "features"),
    *linear("model.mlp.3", "mm.model.mlp.3", "hidden", "hidden'"),
    *_ldp_block(1),
    *_ldp_block(2),
)
_LDPV2 = (
    *linear("mlp.mlp.0", "mm.model.mlp.0", "hidden", "features"),
    *linear("mlp.mlp.2", "mm.model.mlp.2", "hidden", "hidden'"),
    *linear("peg.peg.0", "mm.model.peg.0", "hidden", "1 3 3'"),
)
KINDS = (
    Kind("mlp", "mlp", _MLP),
    Kind("mlp with LayerNorm", "mlp", _MLP_WITH_NORMS),
    Kind("ldp", "ldp", _LDP),
    Kind("ldpv2", "ldpv2", _LDPV2),
)
# LLaVA 1.6's, which no reader uses; the scripts write it after the projector.
NEWLINE = Rule("image_newline", "model.image_newline", "newline", optional=True)

# The spellings of the prefix: LLaVA's own (with whatever wraps the model), and transformers'.
_PREFIX = re.compile(r"(?:.*\.)?(?:mm_projector|multi_modal_projector|vision_proj)\.(?P<tail>.+)")
_HF_TAILS = {"linear_1": "0", "linear_2": "2"}
_NEWLINE = re.compile(r"(?:.*\.)?image_newline")
_PHI3 = re.compile(r".*\.(?:img_projection\..*|glb_GN|sub_GN)")


def is_projector_name(name: str) -> bool:
    """Return whether a checkpoint's tensor belongs to a projector, of a kind that we know or not."""
    return any(pattern.fullmatch(name) for pattern in (_PREFIX, _NEWLINE, _PHI3))


def projector_prefix(name: str) -> str:
    """Return what stands in front of the names of a projector, by one of them; a newline's name whole."""
    match = _PREFIX.fullmatch(name)
    return name.removesuffix(match["tail"]) if match else name


def by_tail(tensors: Sequence[View]) -> dict[str, View]:
    """Return a projector's tensors by their names in the tables.

    Raises CheckpointError for Phi-3's, which is no LLaVA projector, and for two of one name after several prefixes.
    """
    found: dict[str, View] = {}
    for tensor in tensors:
        if _NEWLINE.fullmatch(tensor.name):
            tail = NEWLINE.theirs
        elif match := _PREFIX.fullmatch(tensor.name):
            head, _, rest = match["tail"].partition(".")
            tail = f"{_HF_TAILS.get(head, head)}.{rest}" if rest else head
        else:
            what = "is of Phi-3's HD projector, which merges patches two by two"
            no_reader = "no reader of GGUF files can run it as a LLaVA projector"
            raise CheckpointError(f"{tensor.file}: tensor {tensor.name!r} {what}; {no_reader}")
        if other := found.get(tail):
            both = f"tensors {other.name!r} and {tensor.name!r} are both {tail!r} of a projector"
            raise CheckpointError(f"{tensor.file}: {both}; supported is one")
        found[tail] = tensor
    return found


def recognise(tensors: Mapping[str, View], projector_type: str | None, where: str) -> Kind:
    """Return which kind of projector tensors are, by their names in the tables, of those of a ``projector_type``.

    Raises CheckpointError for a kind that no reader can run.
    """
    tails = tensors.keys() - {NEWLINE.theirs}
    kinds = [kind for kind in KINDS if projector_type in (None, kind.projector_type)]
    for kind in kinds:
        if kind.tails == tails:
            return kind
    supported = f"supported are {', '.join(kind.name for kind in KINDS)}"
    if known := _why_not(tails):
        raise CheckpointError(f"{where}: {known}; {supported}")
    asked = f" as {projector_type!r}" if projector_type else ""
    nearest = max(kinds, key=lambda kind: len(kind.tails & tails) - len(kind.tails ^ tails))
    others = (("lacks", nearest.tails - tails), ("has", tails - nearest.tails))
    differs = " and ".join(f"{what} {', '.join(map(repr, sorted(names)))}" for what, names in others if names)
    compared = f"compared with {nearest.name}, it {differs}"
    raise CheckpointError(f"{where}: readers do not know the projector{asked}: {compared}; {supported}")


def _why_not(tails: set[str]) -> str | None:
    """Return what a projector is that is known to be none that readers can run; None for an unknown one."""
    weights = {tail.removesuffix(".weight") for tail in tails if tail.endswith(".weight")}
    if not tails:
        return "has no projector tensor (model.mm_projector.*, multi_modal_projector.*)"
    if any(tail.startswith("projector_layernorm") for tail in tails):
        return "the projector is VIP-LLaVA's, which joins the features of several layers"
    if tails <= {"weight", "bias"} or weights == {"0"}:
        return "the projector is a single linear layer, which makes llama.cpp crash"
    if all(weight.isdecimal() for weight in weights):
        if not any(tail.endswith(".bias") for tail in tails):
            return "the projector has no biases, which makes llama.cpp crash"
        if {"0", "2", "4"} <= weights:
            return f"the projector has {len(weights)} linear layers, of which llama.cpp runs only two"
    return None
