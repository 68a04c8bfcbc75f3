"""MiniMax-M3: CLIP's blocks with rotary positions in three axes, whose patches are merged after the projector.

Names: transformers' MiniMaxM3SparseForConditionalGeneration, those on the hub and in memory
(``conversion_mapping.py``); llama.cpp's ``conversion/minimax.py`` and ``tools/mtmd``. It is longer than other tables
for the two spellings, and an order of rows that no pattern has.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from clipgguf.config import CLIP_STATISTICS
from clipgguf.families.bases import LANGUAGE_MODEL, MTMD, settled, statistics
from clipgguf.families.tower_tables import MODERN_BLOCK, TWO_FRAMES
from clipgguf.family import Family
from clipgguf.layers import linear, norm
from clipgguf.table import Prefix, Section, Value
from clipgguf.transforms import reordered

TOWER = Prefix("pre_layrnorm.weight", "vision_tower.vision_model.")
PROJECTOR = Prefix("multi_modal_projector.linear_1.weight")


def by_axis(values: Mapping[str, Any]) -> list[int]:
    """Return the rows of a head in llama.cpp's order, which turns the axes of time, height and width one by one.

    In the checkpoint the first halves of all axes come before the second halves; what is left over is not turned.
    """
    size = values["vision.width"] // values["vision.heads"]
    half = 2 * (size // 2) // 3 // 2
    turned = [3 * half * second + half * axis + n for axis in range(3) for second in range(2) for n in range(half)]
    return [*turned, *range(6 * half, size)]


FAMILY = Family(
    title="MiniMax-M3",
    projector="minimax_m3",
    base=MTMD,
    values=(
        Value("vision.projection", "text_config.hidden_size|hidden_size", 6144),
        Value("vision.image", "vision_config.image_size", 2016),
        Value("vision.patch", "vision_config.patch_size", 14),
        Value("vision.width", "vision_config.hidden_size", 1280),
        Value("vision.ffn", "vision_config.intermediate_size", 5120),
        Value("vision.blocks", "vision_config.num_hidden_layers", 32),
        Value("vision.heads", "vision_config.num_attention_heads", 16),
        Value("vision.epsilon", "vision_config.layer_norm_eps", 1e-5),
        Value(
            "vision.merge",
            "vision_config.img_token_compression_config.spatial_merge_size|vision_config.spatial_merge_size",
            2,
        ),
        Value("vision.merged", of=lambda v: v["vision.merge"] ** 2 * v["vision.projection"]),
        *statistics(CLIP_STATISTICS),
        Value("gelu", default=True),
        settled("vision_config.hidden_act", "gelu", "gelu_pytorch_tanh"),
    ),
    sections=(
        Section(
            TOWER,
            "v.",
            (
                replace(TWO_FRAMES, theirs="embeddings.patch_embedding.weight|embeddings.proj.weight"),
                *norm("pre_layrnorm", "pre_ln"),  # "layrnorm": so it stands in every checkpoint.
            ),
        ),
        Section(
            TOWER + "encoder.layers.{}.|layers.{}.",
            "v.blk.{}.",
            tuple(
                replace(rule, then=reordered(by_axis))
                if rule.theirs.startswith(("self_attn.q", "self_attn.k"))
                else rule
                for rule in MODERN_BLOCK
            ),
            times="blocks",
        ),
        Section(
            PROJECTOR,
            "mm.",
            (
                *linear("multi_modal_projector.linear_1", "1", "hidden", "width"),
                *linear("multi_modal_projector.linear_2", "2", "projection", "hidden"),
                *linear(
                    "patch_merge_mlp.linear_1|multi_modal_projector.merge_linear_1", "merger.fc1", "hidden'", "merged"
                ),
                *linear(
                    "patch_merge_mlp.linear_2|multi_modal_projector.merge_linear_2",
                    "merger.fc2",
                    "projection",
                    "hidden",
                ),
            ),
        ),
    ),
    merge="vision.merge",
    left_out=LANGUAGE_MODEL,
)
