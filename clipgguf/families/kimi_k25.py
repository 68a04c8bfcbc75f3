"""Kimi-K2.5 and GLM-5.2-Vision: MoonViT with a grid of positions, whose patches are merged two by two.

Names: Moonshot's ``modeling_kimi_k25.py`` on the hub, and what transformers' Kimi_K25ForConditionalGeneration saves;
llama.cpp's ``conversion/kimivl.py`` and ``tools/mtmd``.
"""

from collections.abc import Mapping
from typing import Any

from clipgguf.config import SIGLIP_STATISTICS
from clipgguf.errors import shown
from clipgguf.families.bases import LANGUAGE_MODEL, MTMD, settled, statistics
from clipgguf.families.moonvit_tables import MERGER, PATCHES, POST_NORM, SIZES, TOWER, block
from clipgguf.family import Family
from clipgguf.table import INTEGERS, Prefix, Rule, Section, Value
from clipgguf.transforms import in_parts

POSITIONS = Prefix("patch_embed.pos_emb.weight", "vision_tower.")
# Of a head's pairs, each second is rotated by the row and the others by the column; readers want these one after the
# other.
PAIRS = "(heads quarter 2 2') width -> (heads 2 quarter 2') width"
FUSED_QKV = (
    Rule("wqkv.weight", "attn_qkv.weight", "(3 width') width", then=in_parts(PAIRS, PAIRS, "width width'")),
    Rule("wqkv.bias", "attn_qkv.bias", "(3 width)", then=in_parts(*[PAIRS.replace(" width", "")] * 2, "width")),
)


def merge(values: Mapping[str, Any]) -> int:
    """Return how many patches are merged along one side."""
    kernel = values["merge_kernel"]
    if len(kernel) != 2 or kernel[0] != kernel[1] or kernel[0] < 1:
        raise ValueError(f"vision_config: merge_kernel_size is {shown(kernel)}, should be two equal numbers")
    return int(kernel[0])


FAMILY = Family(
    title="Kimi-K2.5 or GLM-5.2-Vision",
    projector="kimik25",
    base=MTMD,
    values=(
        Value("vision.projection", "text_config.hidden_size|hidden_size", 7168),
        *SIZES,
        Value("vision.pos_height", "vision_config.init_pos_emb_height|vision_config.pos_emb_height", 64),
        Value("vision.pos_width", "vision_config.init_pos_emb_width|vision_config.pos_emb_width", 64),
        Value("vision.pos_time", "vision_config.init_pos_emb_time|vision_config.pos_emb_time", 4),
        Value("vision.image", of=lambda v: v["vision.pos_height"] * v["vision.patch"]),
        *statistics(SIGLIP_STATISTICS),
        settled("vision_config.projector_hidden_act", "gelu"),
        Value("gelu", default=True),
        Value("vision.epsilon", "vision_config.projector_ln_eps|projection_layer_norm_eps", 1e-5),
        Value("merge_kernel", "vision_config.merge_kernel_size", [2, 2], kind=INTEGERS),
        Value("vision.scale", of=merge),
        Value("vision.merged", of=lambda v: v["vision.scale"] ** 2 * v["vision.width"]),
        Value("vision.min_pixels", of=lambda v: 8 * v["vision.patch"] ** 2),
        Value("most_patches", "processor.in_patch_limit", 16384),
        Value("vision.max_pixels", of=lambda v: v["most_patches"] * v["vision.patch"] ** 2),
    ),
    sections=(
        Section(TOWER, "v.", PATCHES),
        Section(
            POSITIONS, "v.", (Rule("patch_embed.pos_emb.weight", "position_embd.weight", "pos_height pos_width width"),)
        ),
        # transformers 5 puts "encoder." before the patches' convolution, too, when it saves.
        Section(TOWER + "encoder.blocks.{}.|blocks.{}.", "v.blk.{}.", block(FUSED_QKV), times="blocks"),
        Section(TOWER + "encoder.|", "v.", POST_NORM),
        Section("mm_projector.|model.mm_projector.", "mm.", MERGER),
    ),
    merge="vision.scale",
    # A table of sinusoids for the frames of a video; one image has none.
    left_out=(*LANGUAGE_MODEL, r".*\.pos_emb\.time_weight$"),
)
