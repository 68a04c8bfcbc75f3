"""MoonViT's tower as tables, as it stands in Kimi-VL, and with time added in Kimi-K2.5 and GLM-5.2-Vision.

Names: Moonshot's ``modeling_kimi_vl.py`` and ``modeling_kimi_k25.py`` on the hub; llama.cpp's ``conversion/kimivl.py``.
"""

from clipgguf.layers import linear, norm
from clipgguf.table import Prefix, Rule, Value

TOWER = Prefix("patch_embed.proj.weight", "vision_tower.")

# Kimi-K2.5's configuration calls some of them vt_*: the vision tower's.
SIZES = (
    Value("vision.patch", "vision_config.patch_size", 14),
    Value("vision.width", "vision_config.vt_hidden_size|vision_config.hidden_size", 1152),
    Value("vision.ffn", "vision_config.vt_intermediate_size|vision_config.intermediate_size", 4304),
    Value("vision.blocks", "vision_config.vt_num_hidden_layers|vision_config.num_hidden_layers", 27),
    Value("vision.heads", "vision_config.vt_num_attention_heads|vision_config.num_attention_heads", 16),
)
PATCHES = linear("patch_embed.proj", "patch_embd", "width", "3 patch patch'")
POST_NORM = norm("final_layernorm", "post_ln")
MERGER = (
    *norm("pre_norm", "input_norm"),
    *linear("linear_1|proj.0|in_proj", "1", "merged", "merged'"),
    *linear("linear_2|proj.2|out_proj", "2", "projection", "merged"),
)


def block(attention: tuple[Rule, ...]) -> tuple[Rule, ...]:
    """Return a block's rules, with those of queries, keys and values."""
    return (
        *norm("norm0", "ln1"),
        *attention,
        *linear("wo", "attn_out", "width", "width'"),
        *norm("norm1", "ln2"),
        *linear("mlp.fc0", "ffn_up", "ffn", "width"),
        *linear("mlp.fc1", "ffn_down", "width", "ffn"),
    )
