"""A layer of a Q-Former as tables: queries attend to each other and to features, as in Granite's projectors.

Names: transformers' Blip2QFormerModel; llama.cpp's ``conversion/granite.py`` and ``TN_QF_*`` in ``tools/mtmd``.
"""

from clipgguf.layers import linear, norm
from clipgguf.table import Rule


def _attention(theirs: str, ours: str, features: str) -> tuple[Rule, ...]:
    return (
        *linear(f"{theirs}.attention.query", f"{ours}_q", "width", "width'"),
        *linear(f"{theirs}.attention.key", f"{ours}_k", "width", features),
        *linear(f"{theirs}.attention.value", f"{ours}_v", "width", features),
        *linear(f"{theirs}.output.dense", f"{ours}_out", "width", "width'"),
        *norm(f"{theirs}.output.LayerNorm", f"{ours}_norm"),
    )


def q_former_layer(start: str = "", features: str = "width'") -> tuple[Rule, ...]:
    """Return the rules of a layer after the beginning of its names; ``features`` is the size of what it looks at."""
    return (
        *_attention(f"{start}attention", "self_attn", "width'"),
        *_attention(f"{start}crossattention", "cross_attn", features),
        *linear(f"{start}intermediate_query.dense", "ffn_up", "query_ffn", "width"),
        *linear(f"{start}output_query.dense", "ffn_down", "width", "query_ffn"),
        *norm(f"{start}output_query.LayerNorm", "ffn_norm"),
    )
