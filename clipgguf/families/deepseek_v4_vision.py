"""DeepSeek-V4 with vision: a tower of rotary positions and gated layers; the picture's tokens have others among them.

Names: deepseek-ai/DeepSeek-V4-Flash-Vision-Exp; llama.cpp's ``conversion/deepseek.py`` and ``tools/mtmd``.
"""

from collections.abc import Mapping
from typing import Any

from clipgguf.config import SIGLIP_STATISTICS
from clipgguf.families.bases import MTMD, statistics
from clipgguf.family import Family
from clipgguf.layers import linear, norm
from clipgguf.table import Prefix, Rule, Section, Value

TOWER = Prefix("patch_embed.proj.weight", "vision.")
# What readers have built in.
TOKENS, ASPECT = 384, 8


def image_size(values: Mapping[str, Any]) -> int:
    """Return the side of an image of 16 by 16 tokens; a picture may have any size."""
    for name, known in (("vision_max_n_token", TOKENS), ("vision_max_wh_ratio", ASPECT)):
        if values[name] != known:
            raise ValueError(f"{name} is {values[name]}, readers know {known} only")
    return int(values["vision.patch"] * values["vision.scale"] * 16)


FAMILY = Family(
    title="DeepSeek-V4 Vision",
    projector="deepseek4v",
    base=MTMD,
    values=(
        Value("vision.projection", "hidden_size", 4096),
        Value("vision.patch", "vision_patch_size", kind=int),
        Value("vision.width", "vision_dim", kind=int),
        Value("vision.ffn", "vision_inter_dim", kind=int),
        Value("vision.blocks", "vision_n_layers", kind=int),
        Value("vision.heads", "vision_n_heads", kind=int),
        Value("vision.epsilon", default=1e-6),
        *statistics(SIGLIP_STATISTICS),
        Value("silu", default=True),
        Value("vision.scale", "vision_downsample_ratio", kind=int),
        Value("vision.merged", of=lambda v: v["vision.scale"] ** 2 * v["vision.width"]),
        Value("vision.min_pixels", "vision_min_pixels", kind=int),
        Value("vision_max_n_token", "vision_max_n_token", TOKENS),
        Value("vision_max_wh_ratio", "vision_max_wh_ratio", ASPECT),
        Value("vision.image", of=image_size),
    ),
    sections=(
        Section(
            TOWER,
            "v.",
            (Rule("patch_embed.proj.weight", "patch_embd.weight", "width (3 patch patch') -> width 3 patch patch'"),),
        ),
        Section(
            TOWER + "blocks.{}.",
            "v.blk.{}.",
            (
                *norm("norm1", "ln1", bias=False),
                *linear("attn.wqkv", "attn_qkv", "(3 width')", "width", bias=False),
                *linear("attn.wo", "attn_out", "width", "width'", bias=False),
                *norm("norm2", "ln2", bias=False),
                Rule("mlp.w1.weight", ("ffn_gate.weight", "ffn_up.weight"), "(2 ffn) width -> 2 ffn width"),
                *linear("mlp.w2", "ffn_down", "width", "ffn", bias=False),
            ),
            times="blocks",
        ),
        Section(TOWER, "v.", norm("norm", "post_ln", bias=False)),
        Section(
            "aligner.",
            "mm.",
            (*linear("w1", "1", "hidden", "merged"), *linear("w2", "2", "projection", "hidden")),
        ),
        Section(
            "",
            "v.",
            (
                Rule("image_newline", "image_newline", "projection"),
                Rule("image_start", "token_embd.img_start", "projection"),
                Rule("image_end", "token_embd.img_end", "projection"),
                Rule("image_pad", "token_embd.img_pad", "projection"),
            ),
        ),
    ),
    merge="vision.scale",
    # Others stand among them, of which some depend on what is before the picture in the prompt.
    tokens=lambda *_: 0,
    left_out=(r"(model\.)?(layers|mtp|embed|embed_tokens|norm|head|lm_head|hc_head)[._]",),
)
