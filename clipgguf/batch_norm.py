"""Batch norms folded into a factor and a summand for each channel, which is all that readers compute of one.

A norm of running statistics is ``(x - mean) / sqrt(variance + epsilon) * weight + bias``, as torch's BatchNorm1d.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from clipgguf.table import Rule
from clipgguf.tensor import Computed, Read, View

if TYPE_CHECKING:
    from numpy.typing import NDArray

# The default of torch's class, which all models have: no configuration names it.
EPSILON = 1e-5
# Square roots of other programs are off by one in the last place; so much that is in factors and summands.
WITHIN = 1e-6, 1e-5


def folded(theirs: str, ours: str, width: str = "width") -> tuple[Rule, Rule]:
    """Return the rules of a batch norm whose weight and bias in the file have the running statistics in them."""
    weight, bias, mean, variance = (f"{theirs}.{name}" for name in ("weight", "bias", "running_mean", "running_var"))
    return (
        Rule(weight, f"{ours}.weight", width, then=_factors, beside=(variance,)),
        Rule(bias, f"{ours}.bias", width, then=_summands, beside=(weight, mean, variance)),
    )


def _factors(weight: View, shape: tuple[int, ...], values: Mapping[str, Any], variance: View) -> Computed:
    def rows(read: Read, start: int, stop: int) -> "NDArray[Any]":
        return _scaled(*(read(view.rows(start, stop)) for view in (weight, variance)))

    return Computed(weight.name, shape, (weight, variance), rows, WITHIN[0])


def _summands(
    bias: View, shape: tuple[int, ...], values: Mapping[str, Any], weight: View, mean: View, variance: View
) -> Computed:
    def rows(read: Read, start: int, stop: int) -> "NDArray[Any]":
        import numpy as np

        added, scale, middle, spread = (read(view.rows(start, stop)) for view in (bias, weight, mean, variance))
        with np.errstate(all="ignore"):
            made: NDArray[Any] = added - middle * _scaled(scale, spread)
        return made

    return Computed(bias.name, shape, (bias, weight, mean, variance), rows, WITHIN[1])


def _scaled(weight: "NDArray[Any]", variance: "NDArray[Any]") -> "NDArray[Any]":
    """Return the weight over the standard deviation, in the tensors' own type, as torch computes it.

    Only that its square roots of single precision are off by one in the last place here and there (17 % with MKL).
    """
    import numpy as np

    with np.errstate(all="ignore"):
        made: NDArray[Any] = weight / np.sqrt(variance + variance.dtype.type(EPSILON))
    return made
