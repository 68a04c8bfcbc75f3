"""The tensors of LLaVA's projectors, by kind and widths."""

from collections.abc import Callable

from tests.weights import Shapes


def _linear(tail: str, out: int, into: int) -> Shapes:
    return {f"{tail}.weight": (out, into), f"{tail}.bias": (out,)}


def _norm(tail: str, width: int) -> Shapes:
    return {f"{tail}.weight": (width,), f"{tail}.bias": (width,)}


def _mlp_norm(v: int, t: int) -> Shapes:
    return _linear("0", t, v) | _norm("1", t) | _linear("3", t, t) | _norm("4", t)


def _ldp(v: int, t: int) -> Shapes:
    """MobileVLM's LDPNetProjector; the 1x1 convolutions of its blocks have four axes."""
    shapes = _linear("model.mlp.1", t, v) | _linear("model.mlp.3", t, t)
    squeezed = t // 4
    for n in (1, 2):
        block = f"model.mb_block.{n}.block"
        shapes |= {f"{block}.0.0.weight": (t, 1, 3, 3)} | _norm(f"{block}.0.1", t)
        shapes |= {f"{block}.1.fc1.weight": (squeezed, t, 1, 1), f"{block}.1.fc1.bias": (squeezed,)}
        shapes |= {f"{block}.1.fc2.weight": (t, squeezed, 1, 1), f"{block}.1.fc2.bias": (t,)}
        shapes |= {f"{block}.2.0.weight": (t, t, 1, 1)} | _norm(f"{block}.2.1", t)
    return shapes


def _ldpv2(v: int, t: int) -> Shapes:
    """MobileVLM V2's LDPNetV2Projector."""
    mlp = _linear("mlp.mlp.0", t, v) | _linear("mlp.mlp.2", t, t)
    return mlp | {"peg.peg.0.weight": (t, 1, 3, 3), "peg.peg.0.bias": (t,)}


# The tensors after "model.mm_projector.", by the widths of the tower and of the language model.
PROJECTORS: dict[str, Callable[[int, int], Shapes]] = {
    "mlp": lambda v, t: _linear("0", t, v) | _linear("2", t, t),
    "mlp_norm": _mlp_norm,
    "ldp": _ldp,
    "ldpv2": _ldpv2,
    # These no reader of GGUF files can run.
    "linear": lambda v, t: {"weight": (t, v), "bias": (t,)},
    "mlp1x": lambda v, t: _linear("0", t, v),
    "mlp3x": lambda v, t: _linear("0", t, v) | _linear("2", t, t) | _linear("4", t, t),
    "mlp without biases": lambda v, t: {"0.weight": (t, v), "2.weight": (t, t)},
    "VIP-LLaVA": lambda v, t: _norm("projector_layernorm", v) | _linear("0", t, v) | _linear("2", t, t),
}
ORIGINAL_PROJECTOR_TYPES = {
    "mlp_norm": "mlp2x_gelu_Norm",
    "ldp": "ldpnet",
    "ldpv2": "ldpnetv2",
    "linear": "linear",
    "mlp3x": "mlp3x_gelu",
}
