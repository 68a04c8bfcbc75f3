"""dots.ocr: RMS norms, rotary positions, and images of any size, whose patches are merged two by two.

Names: the model's own modeling_dots_vision.py; llama.cpp's ``conversion/dotsocr.py`` and ``tools/mtmd``.
"""

from clipgguf.config import CLIP_STATISTICS
from clipgguf.families.bases import LANGUAGE_MODEL, MTMD, settled, statistics
from clipgguf.family import Family
from clipgguf.layers import linear, norm
from clipgguf.table import Prefix, Section, Value

TOWER = Prefix("patch_embed.patchifier.proj.weight", "vision_tower.")

FAMILY = Family(
    title="dots.ocr",
    projector="dots_ocr",
    base=MTMD,
    values=(
        Value("vision.projection", "hidden_size|text_config.hidden_size", 1536),
        # Any size.
        Value("vision.image", default=0),
        Value("vision.patch", "vision_config.patch_size", 14),
        Value("vision.width", "vision_config.embed_dim|vision_config.hidden_size", 1536),
        Value("vision.ffn", "vision_config.intermediate_size", 4224),
        Value("vision.blocks", "vision_config.num_hidden_layers", 42),
        Value("vision.heads", "vision_config.num_attention_heads", 12),
        Value("vision.epsilon", "vision_config.rms_norm_eps", 1e-5),
        Value("vision.scale", "vision_config.spatial_merge_size", 2),
        Value("vision.merged", of=lambda v: v["vision.scale"] ** 2 * v["vision.width"]),
        *statistics(CLIP_STATISTICS),
        Value("vision.min_pixels", "processor.min_pixels|processor.size.shortest_edge", kind=int),
        Value("vision.max_pixels", "processor.max_pixels|processor.size.longest_edge", kind=int),
        settled("vision_config.temporal_patch_size", 1),
        Value("silu", default=True),
    ),
    sections=(
        Section(
            TOWER + "patch_embed.patchifier.",
            "v.",
            (
                *linear("proj", "patch_embd", "width", "channels patch patch'"),
                *norm("norm", "pre_ln", bias=False),
            ),
        ),
        Section(
            TOWER + "blocks.{}.",
            "v.blk.{}.",
            (
                *norm("norm1", "ln1", bias=False),
                *linear("attn.qkv", "attn_qkv", "(3 width')", "width", bias="optional"),
                *linear("attn.proj", "attn_out", "width", "width'", bias="optional"),
                *norm("norm2", "ln2", bias=False),
                *linear("mlp.fc1", "ffn_gate", "ffn", "width", bias="optional"),
                *linear("mlp.fc3", "ffn_up", "ffn", "width", bias="optional"),
                *linear("mlp.fc2", "ffn_down", "width", "ffn", bias="optional"),
            ),
            times="blocks",
        ),
        Section(
            TOWER,
            "mm.",
            (
                *norm("post_trunk_norm", "post_norm", bias=False),
                *norm("merger.ln_q", "input_norm"),
                *linear("merger.mlp.0", "0", "merged", "merged'"),
                *linear("merger.mlp.2", "2", "projection", "merged"),
            ),
        ),
    ),
    merge="vision.scale",
    left_out=LANGUAGE_MODEL,
)
