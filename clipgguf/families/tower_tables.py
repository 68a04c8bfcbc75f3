"""The vision towers of CLIP and SigLIP as tables, as they stand in many models under many prefixes.

Names: transformers' CLIPVisionModel and SiglipVisionModel. The order is the model's own.
"""

from clipgguf.layers import linear, norm
from clipgguf.table import Prefix, Rule

TOWER = Prefix("embeddings.patch_embedding.weight", "vision_model.")

POSITIONS = Rule("embeddings.position_embedding.weight", "position_embd.weight", "positions width")

CLIP_EMBEDDINGS = (
    Rule("embeddings.class_embedding", "class_embd", "width"),
    Rule("embeddings.patch_embedding.weight", "patch_embd.weight", "width channels patch patch'"),
    POSITIONS,
    *norm("pre_layrnorm", "pre_ln"),  # "layrnorm": so it stands in every checkpoint.
)
# SigLIP has no class token and no norm before the blocks, and its patch convolution has a bias.
SIGLIP_EMBEDDINGS = (*linear("embeddings.patch_embedding", "patch_embd", "width", "channels patch patch'"), POSITIONS)
POST_NORM = norm("post_layernorm", "post_ln")

# A convolution over two frames, which llama.cpp takes as two kernels.
TWO_FRAMES = Rule(
    "patch_embed.proj.weight",
    ("patch_embd.weight", "patch_embd.weight.1"),
    "width 3 2 patch patch' -> 2 width 3 patch patch'",
)

# Of SigLIP: its attention pooling, which no reader of GGUF files can run.
SIGLIP_HEAD = r"(.*\.)?head\."


def block(fc1: str, fc2: str, out: str = "self_attn.out_proj") -> tuple[Rule, ...]:
    """Return a block's rules. ``fc1`` widens; CLIP's and LLaVA's files call it ``ffn_down``, all others ``ffn_up``.

    ``out`` is the checkpoint's name of the layer after attention.
    """
    return (
        *linear("self_attn.k_proj", "attn_k", "width", "width'"),
        *linear("self_attn.v_proj", "attn_v", "width", "width'"),
        *linear("self_attn.q_proj", "attn_q", "width", "width'"),
        *linear(out, "attn_out", "width", "width'"),
        *norm("layer_norm1", "ln1"),
        *linear("mlp.fc1", fc1, "ffn", "width"),
        *linear("mlp.fc2", fc2, "width", "ffn"),
        *norm("layer_norm2", "ln2"),
    )


# Every reader of CLIP's and LLaVA's files expects the two the wrong way round.
SCRIPT_BLOCK = block(fc1="ffn_down", fc2="ffn_up")
MODERN_BLOCK = block(fc1="ffn_up", fc2="ffn_down")


def rotated(theirs: str, ours: str, *, bias: bool = False) -> tuple[Rule, ...]:
    """A linear layer of queries or keys that readers rotate by pairs of neighbours, transformers by a head's halves."""
    weight = Rule(f"{theirs}.weight", f"{ours}.weight", "(heads 2 half) width -> (heads half 2) width")
    return (weight, *([Rule(f"{theirs}.bias", f"{ours}.bias", "(heads 2 half) -> (heads half 2)")] if bias else ()))
