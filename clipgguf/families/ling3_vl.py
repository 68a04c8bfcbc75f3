"""Ling 3 VL: Qwen3-VL's tower, whose patches are normed, merged two by two, and projected outside of it.

Names: inclusionAI's Ling-3.0-flash-VL on the hub; llama.cpp's ``conversion/bailingmoe3.py`` and ``tools/mtmd``.
"""

from clipgguf.config import SIGLIP_STATISTICS
from clipgguf.families.bases import LANGUAGE_MODEL, MTMD, settled, statistics
from clipgguf.families.qwen3_vl import BLOCK, POSITIONS, TOWER
from clipgguf.families.tower_tables import TWO_FRAMES
from clipgguf.family import Family
from clipgguf.layers import linear, norm
from clipgguf.table import Section, Value

FAMILY = Family(
    title="Ling 3 VL",
    projector="ling3vl",
    base=MTMD,
    values=(
        Value("vision.projection", "text_config.hidden_size|hidden_size", kind=int),
        Value("vision.positions", "vision_config.num_position_embeddings", 2304),
        Value("vision.patch", "vision_config.patch_size", 16),
        Value("vision.image", of=lambda v: int(v["vision.positions"] ** 0.5 * v["vision.patch"])),
        Value("vision.width", "vision_config.hidden_size", 1152),
        Value("vision.ffn", "vision_config.intermediate_size", 4304),
        Value("vision.blocks", "vision_config.depth", 27),
        Value("vision.heads", "vision_config.num_heads", 16),
        settled("vision_config.temporal_patch_size", 2),
        settled("vision_config.disable_merger_proj", True),
        settled("vision_config.spatial_merge_size", 2),
        Value("vision.merge", "vision_config.spatial_merge_size", 2),
        # So llama.cpp's converter takes it: of the language model.
        Value("vision.epsilon", "text_config.rms_norm_eps", 1e-6),
        Value("vision.merged", of=lambda v: v["vision.merge"] ** 2 * v["vision.width"]),
        *statistics(SIGLIP_STATISTICS),
        Value("gelu", default=True),
    ),
    sections=(
        Section(TOWER, "v.", (TWO_FRAMES, POSITIONS)),
        Section(TOWER + "blocks.{}.", "v.blk.{}.", BLOCK, times="blocks"),
        Section(TOWER + "merger.", "mm.", norm("norm", "input_norm")),
        Section(
            "linear_proj.|model.linear_proj.",
            "mm.",
            (
                *linear("0", "0", "hidden", "merged"),
                *linear("2", "2", "projection", "hidden"),
            ),
        ),
    ),
    merge="vision.merge",
    left_out=(*LANGUAGE_MODEL, r"model\.word_embeddings\.", r"mtp\."),
)
