"""PaddleOCR-VL: a SigLIP tower with rotary positions besides, whose patches go through a norm and are merged.

Names and defaults: transformers' PaddleOCRVLForConditionalGeneration, and the published ``mlp_AR``; llama.cpp's
``conversion/ernie.py`` and ``tools/mtmd/models/paddleocr.cpp``.
"""

import math

from clipgguf.config import CLIP_STATISTICS
from clipgguf.families.bases import LANGUAGE_MODEL, MTMD, activation, settled, statistics
from clipgguf.families.tower_tables import MODERN_BLOCK, POST_NORM, SIGLIP_EMBEDDINGS, SIGLIP_HEAD, TOWER
from clipgguf.family import Family
from clipgguf.layers import linear, norm
from clipgguf.table import Prefix, Section, Value

PROJECTOR = Prefix("pre_norm.weight", "mlp_AR.")

FAMILY = Family(
    title="PaddleOCR-VL",
    projector="paddleocr",
    base=MTMD,
    values=(
        Value("vision.projection", "text_config.hidden_size|hidden_size", 1024),
        Value("vision.min_pixels", "processor.min_pixels|processor.size.shortest_edge", 384**2),
        Value("vision.max_pixels", "processor.max_pixels|processor.size.longest_edge", 1536**2),
        # Images may have any size; so it stands in llama.cpp's files.
        Value("vision.image", of=lambda v: math.isqrt(v["vision.max_pixels"])),
        Value("vision.patch", "vision_config.patch_size", 14),
        Value("vision.channels", "vision_config.num_channels", 3),
        Value("vision.width", "vision_config.hidden_size", 1152),
        Value("vision.ffn", "vision_config.intermediate_size", 4304),
        Value("vision.blocks", "vision_config.num_hidden_layers", 27),
        Value("vision.heads", "vision_config.num_attention_heads", 16),
        Value("vision.epsilon", "vision_config.layer_norm_eps", 1e-6),
        *activation("vision_config.hidden_act", "gelu_pytorch_tanh"),
        *statistics(CLIP_STATISTICS),
        Value("table_image", "vision_config.image_size", 384),
        Value("vision.positions", of=lambda v: (v["table_image"] // v["vision.patch"]) ** 2),
        settled("vision_config.spatial_merge_size", 2),
        Value("vision.merged", of=lambda v: 4 * v["vision.width"]),
    ),
    sections=(
        Section(
            PROJECTOR,
            "mm.",
            (
                *norm("pre_norm", "input_norm"),
                *linear("linear_1", "1", "merged", "merged'"),
                *linear("linear_2", "2", "projection", "merged"),
            ),
        ),
        Section(TOWER, "v.", SIGLIP_EMBEDDINGS),
        Section(TOWER + "encoder.layers.{}.", "v.blk.{}.", MODERN_BLOCK, times="blocks"),
        Section(TOWER, "v.", POST_NORM),
    ),
    merge=2,
    # The last one is of the published model, whose code does not use it where images are of any size.
    left_out=(*LANGUAGE_MODEL, SIGLIP_HEAD, r".*\.packing_position_embedding\.weight$"),
)
