"""Youtu-VL: SigLIP 2's tower with rotary positions and windows, whose patches are merged two by two.

Names: tencent/Youtu-VL-4B-Instruct; llama.cpp's ``conversion/youtuvl.py`` and ``tools/mtmd``.
"""

from clipgguf.config import SIGLIP_STATISTICS
from clipgguf.families.bases import LANGUAGE_MODEL, MTMD, activation, statistics
from clipgguf.families.tower_tables import MODERN_BLOCK, POST_NORM, SIGLIP_HEAD
from clipgguf.family import Family
from clipgguf.layers import linear, norm
from clipgguf.table import INTEGERS, Prefix, Section, Value

TOWER = Prefix("embeddings.patch_embedding.weight", "siglip2.vision_model.")
MERGER = Prefix("merger.ln_q.weight")

FAMILY = Family(
    title="Youtu-VL",
    projector="youtuvl",
    base=MTMD,
    values=(
        Value("vision.projection", "text_config.hidden_size|hidden_size", kind=int),
        Value("vision.image", "vision_config.image_size", 560),
        Value("vision.patch", "vision_config.patch_size", 16),
        Value("vision.channels", "vision_config.num_channels", 3),
        Value("vision.width", "vision_config.hidden_size", 1152),
        Value("vision.ffn", "vision_config.intermediate_size", 4304),
        Value("vision.blocks", "vision_config.num_hidden_layers", 27),
        Value("vision.heads", "vision_config.num_attention_heads", 16),
        Value("vision.epsilon", "vision_config.layer_norm_eps", 1e-6),
        *statistics(SIGLIP_STATISTICS),
        *activation("vision_config.hidden_act", "gelu_pytorch_tanh"),
        Value("vision.merge", "vision_config.spatial_merge_size", 2),
        Value("vision.merged", of=lambda v: v["vision.merge"] ** 2 * v["vision.width"]),
        Value("vision.window", "vision_config.window_size", kind=int),
        Value("vision.whole_blocks", "vision_config.fullatt_block_indexes", kind=INTEGERS),
    ),
    sections=(
        # A matrix of whole patches, which llama.cpp takes as it is.
        Section(TOWER, "v.", linear("embeddings.patch_embedding", "patch_embd", "width", "(channels patch patch')")),
        Section(TOWER + "encoder.layers.{}.", "v.blk.{}.", MODERN_BLOCK, times="blocks"),
        Section(TOWER, "v.", POST_NORM),
        Section(
            MERGER + "merger.",
            "mm.",
            (
                *norm("ln_q", "input_norm", bias=False),
                *linear("mlp.0", "0", "merged", "merged'"),
                *linear("mlp.2", "2", "projection", "merged"),
            ),
        ),
    ),
    merge="vision.merge",
    # Of SigLIP 2 nothing but the tower.
    left_out=(*LANGUAGE_MODEL, SIGLIP_HEAD, r"siglip2\.(?!vision_model\.)"),
)
