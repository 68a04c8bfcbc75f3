"""Rules of layers that stand in many families: a linear layer or a convolution, a norm, a fused qkv."""

from typing import Literal

from clipgguf.table import Rule

# Whether a layer has a bias; "optional" where some models of the family have one.
Bias = Literal[True, False, "optional"]


def linear(
    theirs: str, ours: str, out: str, into: str, *, bias: Bias = True, optional: bool = False
) -> tuple[Rule, ...]:
    """A linear layer or a convolution: the weight's shape is ``out``, then ``into``; the bias's is ``out``."""
    weight = Rule(with_tail(theirs, "weight"), f"{ours}.weight", f"{out} {into}".rstrip(), optional=optional)
    is_optional = optional or bias == "optional"
    return (weight, Rule(with_tail(theirs, "bias"), f"{ours}.bias", out, optional=is_optional)) if bias else (weight,)


def norm(
    theirs: str, ours: str, width: str = "width", *, bias: Bias = True, optional: bool = False
) -> tuple[Rule, ...]:
    """A norm's weight and, but for an RMS norm, bias."""
    return linear(theirs, ours, width, "", bias=bias, optional=optional)


def fused_qkv(theirs: str = "attn.qkv", *, bias: Bias = True) -> tuple[Rule, ...]:
    """A linear layer of queries, keys and values, one after the other, cut in three."""
    weights, biases = (tuple(f"attn_{name}.{tail}" for name in "qkv") for tail in ("weight", "bias"))
    weight = Rule(f"{theirs}.weight", weights, "(3 width') width -> 3 width' width")
    added = Rule(f"{theirs}.bias", biases, "(3 width) -> 3 width", optional=bias == "optional")
    return (weight, added) if bias else (weight,)


def separate_qkv(theirs: str, *, bias: Bias = True) -> tuple[Rule, ...]:
    """Linear layers of queries, keys and values; ``{}`` in the module's name is the letter."""
    layers = (linear(theirs.replace("{}", x), f"attn_{x}", "width", "width'", bias=bias) for x in "qkv")
    return tuple(rule for rules in layers for rule in rules)


def with_tail(theirs: str, tail: str) -> str:
    """Return every spelling of a module's name with a parameter's name after it."""
    return "|".join(f"{name}.{tail}" for name in theirs.split("|"))
