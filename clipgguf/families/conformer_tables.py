"""NeMo's conformer as tables, FastConformer: what LFM2-Audio's encoder and Parakeet share.

Names: NeMo's ConformerEncoder and transformers' ParakeetEncoder, which agree but in the attention; llama.cpp's
``conversion/tensor_mapping.py`` and ``tools/mtmd/models/conformer.cpp``, ``parakeet.cpp``.
"""

from clipgguf.layers import linear, norm
from clipgguf.table import F32, Rule, Types

# ggml's convolutions want it.
TYPES = (Types("a.conv1d.*.weight", F32), Types("a.blk.*.conv_*.weight", F32))


def subsampling(theirs: str, bias: str) -> tuple[Rule, ...]:
    """Return the rules of the convolutions before the blocks; ``bias`` is the shape of their biases in the file."""
    # Where there is one channel to look at, they are depthwise, or the first.
    kernels = {0: "1 3 3'", 2: "1 3 3'", 3: "channels' 1 1", 5: "1 3 3'", 6: "channels' 1 1"}
    return tuple(
        rule
        for number, kernel in kernels.items()
        for rule in (
            Rule(f"{theirs}.{number}.weight", f"conv1d.{number}.weight", f"channels {kernel}"),
            Rule(f"{theirs}.{number}.bias", f"conv1d.{number}.bias", f"channels -> {bias}"),
        )
    )


def block(attention: tuple[Rule, ...], convolution: tuple[Rule, ...], *, bias: bool) -> tuple[Rule, ...]:
    """Return the rules of a block around those of its attention, and of what is between its pointwise convolutions.

    ``bias`` says whether its linear layers have one.
    """
    pointwise = Rule("conv.pointwise_conv1.weight", "conv_pw1.weight", "(2 width') width 1 -> (2 width') width")
    return (
        *norm("norm_feed_forward1", "ffn_norm"),
        *linear("feed_forward1.linear1", "ffn_up", "inner", "width", bias=bias),
        *linear("feed_forward1.linear2", "ffn_down", "width", "inner", bias=bias),
        *norm("norm_self_att", "ln1"),
        *attention,
        *norm("norm_conv", "norm_conv"),
        pointwise,
        *convolution,
        Rule("conv.pointwise_conv2.weight", "conv_pw2.weight", "width width' 1 -> width width'"),
        *norm("norm_feed_forward2", "ffn_norm_1"),
        *linear("feed_forward2.linear1", "ffn_up_1", "inner", "width", bias=bias),
        *linear("feed_forward2.linear2", "ffn_down_1", "width", "inner", bias=bias),
        *norm("norm_out", "ln2"),
    )
