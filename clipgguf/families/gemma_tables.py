"""What Gemma's encoders have in common: linear layers that may clip, and the parts of a conformer, which hears.

Names: transformers' Gemma4ClippableLinear, Gemma4AudioModel and Gemma3nAudioEncoder; llama.cpp's
``conversion/gemma.py`` and ``tools/mtmd/models/gemma4a.cpp``.
"""

from collections.abc import Mapping

from clipgguf.layers import norm
from clipgguf.table import Rule

# Linear layers by their names in the checkpoint: their names in the file, and their shapes.
Linears = Mapping[str, tuple[str, str]]
# The bounds of what goes into a linear layer, and of what comes out of it: scalars, which a file has as vectors.
_BOUNDS = ("input_max", "input_min", "output_max", "output_min")


def weights(linears: Linears, *, clips: bool = True) -> tuple[Rule, ...]:
    """Return the rules of linear layers, each inside a module that ``clips`` or may, or none."""
    layers = "{0}.linear.weight|{0}.weight" if clips else "{0}.weight"
    return tuple(Rule(layers.format(theirs), f"{ours}.weight", shape) for theirs, (ours, shape) in linears.items())


def bounds(linears: Linears) -> tuple[Rule, ...]:
    """Return the rules of the bounds of linear layers that clip."""
    return tuple(
        Rule(f"{theirs}.{bound}", f"{ours}.{bound}", "-> 1")
        for theirs, (ours, _) in linears.items()
        for bound in _BOUNDS
    )


def feed_forward(theirs: str, end: str = "", ffn: str = "ffn") -> Linears:
    """Return the linear layers of one of a conformer block's two feed-forwards, whose names in the file end so.

    ``ffn`` is the axis that is widened.
    """
    return {
        f"{theirs}.ffw_layer_1": (f"ffn_up{end}", f"{ffn} width"),
        f"{theirs}.ffw_layer_2": (f"ffn_down{end}", f"width {ffn}"),
    }


def feed_forward_norms(theirs: str, end: str = "") -> tuple[Rule, ...]:
    """Return the rules of the norms before and after a feed-forward."""
    return (
        *norm(f"{theirs}.pre_layer_norm", f"ffn_norm{end}", bias=False),
        *norm(f"{theirs}.post_layer_norm", f"ffn_post_norm{end}", bias=False),
    )


# A conformer block's convolution along time: its halves gate each other. The file has the names of its norms crossed,
# and llama.cpp takes them so.
CONVOLUTION: Linears = {
    "lconv1d.linear_start": ("conv_pw1", "(2 width) width'"),
    "lconv1d.linear_end": ("conv_pw2", "width width'"),
}
CONVOLUTION_NORMS = (
    *norm("lconv1d.pre_layer_norm", "conv_norm", bias=False),
    *norm("lconv1d.conv_norm", "norm_conv", bias=False),
)


def subsampling(layer: str, *, optional_norms: bool = False) -> tuple[Rule, ...]:
    """Return the rules of two convolutions, each of which halves times and frequencies; ``{}`` is their number."""
    rules: list[Rule] = []
    for number, (into, out) in enumerate((("1", "first"), ("first", "second"))):
        theirs = layer.replace("{}", str(number))
        rules.append(Rule(f"{theirs}.conv.weight", f"conv1d.{number}.weight", f"{out} {into} 3 3'"))
        rules += norm(f"{theirs}.norm", f"conv1d.{number}.norm", out, bias=False, optional=optional_norms)
    return tuple(rules)
