"""Kimi-VL: MoonViT with a grid of positions, whose patches are merged two by two.

Names: Moonshot's ``configuration_kimi_vl.py`` and ``modeling_kimi_vl.py`` on the hub; llama.cpp's
``conversion/kimivl.py`` and ``tools/mtmd``.
"""

from clipgguf.config import SIGLIP_STATISTICS
from clipgguf.families.bases import LANGUAGE_MODEL, MTMD, settled, statistics
from clipgguf.families.moonvit_tables import MERGER, PATCHES, POST_NORM, SIZES, TOWER, block
from clipgguf.family import Family
from clipgguf.layers import fused_qkv
from clipgguf.table import Rule, Section, Value

# Readers take the square root of their number as the grid's side.
POSITIONS = Rule(
    "patch_embed.pos_emb.weight",
    "position_embd.weight",
    "side side' width -> (side side') width",
    becomes="positions width",
)

FAMILY = Family(
    title="Kimi-VL",
    projector="kimivl",
    base=MTMD,
    values=(
        Value("vision.projection", "text_config.hidden_size|hidden_size", 7168),
        *SIZES,
        Value("vision.epsilon", "vision_config.layer_norm_eps", 1e-5),
        Value("vision.side", "vision_config.init_pos_emb_height", 64),
        settled("vision_config.merge_kernel_size", [2, 2]),
        # llama.cpp's converter writes these two whatever the configuration says.
        Value("vision.image", default=64 * 14),
        Value("vision.scale", default=2),
        *statistics(SIGLIP_STATISTICS),
        Value("gelu", default=True),
        Value("vision.merged", of=lambda v: v["vision.scale"] ** 2 * v["vision.width"]),
    ),
    sections=(
        Section(TOWER, "v.", (*PATCHES, POSITIONS)),
        Section(TOWER + "encoder.blocks.{}.", "v.blk.{}.", block(fused_qkv("wqkv")), times="blocks"),
        Section(TOWER + "encoder.", "v.", POST_NORM),
        Section("multi_modal_projector.|model.multi_modal_projector.", "mm.", MERGER),
    ),
    merge="vision.scale",
    left_out=LANGUAGE_MODEL,
)
