"""SAM's image encoder as tables, as it stands before another encoder in DeepSeek's models of documents.

Names: ``deepencoder.py`` of deepseek-ai/DeepSeek-OCR; llama.cpp's ``conversion/deepseek.py`` and ``tools/mtmd``.
"""

from clipgguf.layers import linear, norm
from clipgguf.table import F32, Prefix, Rule, Section, Types, Value

SAM = Prefix("patch_embed.proj.weight", "model.sam_model.")

SAM_VALUES = (
    Value("vision.window", "vision_config.window_size|vision_config.sam_config.window_size", 14),
    Value("vision.sam_blocks", "vision_config.width.sam_vit_b.layers|vision_config.sam_config.num_hidden_layers", 12),
    Value("vision.sam_width", "vision_config.width.sam_vit_b.width|vision_config.sam_config.hidden_size", 768),
    Value("vision.sam_heads", "vision_config.width.sam_vit_b.heads|vision_config.sam_config.num_attention_heads", 12),
    Value("vision.sam_head", of=lambda v: v["vision.sam_width"] // v["vision.sam_heads"]),
)

# Two convolutions after the neck make 16 by 16 patches of 64 by 64, of the width of the encoder that follows.
SAM_SECTIONS = (
    Section(
        SAM,
        "v.sam.",
        (
            *linear("patch_embed.proj", "patch_embd", "sam_width", "3 16 16'"),
            Rule("pos_embed", "pos_embd.weight", "1 sam_side sam_side' sam_width"),
        ),
    ),
    Section(
        SAM + "blocks.{}.",
        "v.sam.blk.{}.",
        (
            *norm("norm1", "pre_ln", "sam_width"),
            *linear("attn.qkv", "attn.qkv", "(3 sam_width')", "sam_width"),
            *linear("attn.proj", "attn.out", "sam_width", "sam_width'"),
            # As many as are needed for a window, or for the whole image.
            Rule("attn.rel_pos_h", "attn.pos_h.weight", "any sam_head"),
            Rule("attn.rel_pos_w", "attn.pos_w.weight", "any sam_head"),
            *norm("norm2", "post_ln", "sam_width"),
            *linear("mlp.lin1", "mlp.lin1", "sam_ffn", "sam_width"),
            *linear("mlp.lin2", "mlp.lin2", "sam_width", "sam_ffn"),
        ),
        times="sam_blocks",
    ),
    Section(
        SAM,
        "v.sam.",
        (
            *linear("neck.0", "neck.0", "neck", "sam_width 1 1", bias=False),
            *norm("neck.1", "neck.1", "neck"),
            *linear("neck.2", "neck.2", "neck", "neck' 3 3'", bias=False),
            *norm("neck.3", "neck.3", "neck"),
            *linear("net_2", "net_2", "sam_middle", "neck 3 3'", bias=False),
            *linear("net_3", "net_3", "width", "sam_middle 3 3'", bias=False),
        ),
    ),
)
SAM_TYPES = (
    Types("v.sam.pos_embd.weight", F32),
    Types("v.sam.blk.*.attn.pos_?.weight", F32),
    Types("v.sam.neck.*", F32),
    Types("v.sam.net_*", F32),
)
