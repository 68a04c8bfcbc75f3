"""Qwen2-VL: a tower with rotary positions, whose patches are merged two by two. Sarashina2-Vision has the same.

Names: transformers' Qwen2VLForConditionalGeneration, Sarashina2VisionForCausalLM of sbintuitions; llama.cpp's
``conversion/qwenvl.py`` and ``sarashina2.py``, and ``tools/mtmd``.
"""

from clipgguf.config import CLIP_STATISTICS
from clipgguf.families.bases import LANGUAGE_MODEL, MTMD, statistics
from clipgguf.families.tower_tables import TWO_FRAMES
from clipgguf.family import Family
from clipgguf.layers import fused_qkv, linear, norm
from clipgguf.table import Prefix, Section, Value

TOWER = Prefix("patch_embed.proj.weight", "visual.")

FAMILY = Family(
    title="Qwen2-VL",
    projector="qwen2vl_merger",
    base=MTMD,
    values=(
        Value("vision.projection", "text_config.hidden_size|hidden_size", 8192),
        Value("vision.image", "vision_config.image_size", 560),
        Value("vision.patch", "vision_config.patch_size", 14),
        Value("vision.width", "vision_config.embed_dim", 1280),
        # So it stands in llama.cpp's files. It is the width of the output; no reader uses it.
        Value("vision.ffn", "vision_config.hidden_size", 3584),
        Value("vision.blocks", "vision_config.depth", 32),
        Value("vision.heads", "vision_config.num_heads", 16),
        Value("vision.epsilon", "rms_norm_eps", 1e-6),
        # llama.cpp's graph merges two by two patches, whatever the configuration says.
        Value("vision.merged", of=lambda v: 4 * v["vision.width"]),
        *statistics(CLIP_STATISTICS),
    ),
    sections=(
        Section(TOWER, "v.", (TWO_FRAMES,)),
        Section(
            TOWER + "blocks.{}.",
            "v.blk.{}.",
            (
                *norm("norm1", "ln1"),
                *fused_qkv(),
                *linear("attn.proj", "attn_out", "width", "width'"),
                *norm("norm2", "ln2"),
                *linear("mlp.fc1", "ffn_up", "hidden", "width"),
                *linear("mlp.fc2", "ffn_down", "width", "hidden"),
            ),
            times="blocks",
        ),
        Section(TOWER, "v.", norm("merger.ln_q", "post_ln")),
        Section(
            TOWER + "merger.mlp.",
            "mm.",
            (*linear("0", "0", "merged", "merged'"), *linear("2", "2", "projection", "merged")),
        ),
    ),
    merge=2,
    left_out=(*LANGUAGE_MODEL, r"llm\."),
    noted=((r"norm\.", "Sarashina2-Vision's norm after the projector is left out: no reader applies it"),),
)
