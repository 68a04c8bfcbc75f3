"""MiniCPM-V 4.6: a SigLIP tower whose patches are merged two by two, once inside the tower and once after it.

Names: transformers' MiniCPMV4_6ForConditionalGeneration; llama.cpp's ``conversion/minicpm.py`` and ``tools/mtmd``. It
is longer than other tables for two mergers, of which one is left out in one of two modes.
"""

from collections.abc import Mapping
from typing import Any

from clipgguf.config import SIGLIP_STATISTICS
from clipgguf.errors import ConfigError, shown
from clipgguf.families.bases import LANGUAGE_MODEL, MTMD, statistics
from clipgguf.families.tower_tables import MODERN_BLOCK, POST_NORM, SIGLIP_EMBEDDINGS, TOWER
from clipgguf.family import Family
from clipgguf.inputs import Inputs
from clipgguf.layers import linear, norm
from clipgguf.table import Prefix, Section, Value

MERGER = Prefix("merger.mlp.0.pre_norm.weight", "model.") + "merger.mlp.0."


def scale(values: Mapping[str, Any]) -> int:
    """Return by how much the two merges, or the one after the tower, shrink the sides of an image."""
    modes = {"16x": 4, "4x": 2}
    mode = values["downsample_mode"]
    if mode not in modes:
        raise ValueError(f"downsample_mode is {shown(mode)}, should be {' or '.join(map(repr, modes))}")
    return modes[mode]


def insert_layer(inputs: Inputs) -> int:
    """Return the block after which patches are merged inside the tower, counted from 0."""
    where, found = inputs.find("insert_layer_id|vision_config.insert_layer_id")
    if found is None:
        return 6
    if type(found) is not int or found < 0:
        raise ConfigError(f"{where} is {shown(found)}, should be the number of a block")
    return found


def merging_block(values: Mapping[str, Any]) -> list[int]:
    """Return the number of the block after which patches are merged, as a list."""
    if values["insert_layer"] >= values["vision.blocks"]:
        raise ValueError(f"insert_layer_id is {values['insert_layer']:,}, there are {values['vision.blocks']:,} blocks")
    return [values["insert_layer"]]


FAMILY = Family(
    title="MiniCPM-V 4.6",
    projector="minicpmv4_6",
    base=MTMD,
    values=(
        Value("vision.projection", "text_config.hidden_size", 4096),
        # The side of an image's slices; that of the tower is for its positions only.
        Value("vision.image", "processor.scale_resolution|vision_config.image_size", 224),
        Value("vision.side", "vision_config.image_size", 224),
        Value("vision.patch", "vision_config.patch_size", 16),
        Value("vision.channels", "vision_config.num_channels", 3),
        Value("vision.width", "vision_config.hidden_size", 768),
        Value("vision.ffn", "vision_config.intermediate_size", 3072),
        Value("vision.blocks", "vision_config.num_hidden_layers", 12),
        Value("vision.heads", "vision_config.num_attention_heads", 12),
        Value("vision.epsilon", "vision_config.layer_norm_eps", 1e-6),
        Value("vision.positions", of=lambda v: (v["vision.side"] // v["vision.patch"]) ** 2),
        # llama.cpp's graph merges two by two, whatever the configuration says.
        Value("vision.merged", of=lambda v: 4 * v["vision.width"]),
        Value("vision.merged_ffn", of=lambda v: 4 * v["vision.ffn"]),
        *statistics(SIGLIP_STATISTICS),
        Value("downsample_mode", "processor.downsample_mode|downsample_mode", "16x"),
        Value("vision.scale", of=scale),
        Value("vision.mergers", default=1),
        Value("vision.mergers_written", of=lambda v: int(v["vision.scale"] == 4)),
        Value("insert_layer", insert_layer),
        Value("vision.whole_blocks", of=merging_block),
        Value("gelu", default=True),
    ),
    sections=(
        Section(
            MERGER,
            "mm.",
            (
                *norm("pre_norm", "input_norm", "merged"),
                *linear("linear_1", "up", "merged", "merged'"),
                *linear("linear_2", "down", "projection", "merged"),
            ),
        ),
        Section(TOWER, "v.", SIGLIP_EMBEDDINGS),
        Section(TOWER + "encoder.layers.{}.", "v.blk.{}.", MODERN_BLOCK, times="blocks"),
        Section(TOWER, "v.", POST_NORM),
        Section(
            TOWER + "vit_merger.",
            "v.vit_merger.",
            (
                *norm("layer_norm1", "ln1"),
                *linear("self_attn.q_proj", "attn_q", "width", "width'"),
                *linear("self_attn.k_proj", "attn_k", "width", "width'"),
                *linear("self_attn.v_proj", "attn_v", "width", "width'"),
                *linear("self_attn.out_proj", "attn_out", "width", "width'"),
                *norm("pre_norm", "ds_ln", "merged"),
                *linear("linear_1", "ds_ffn_up", "merged_ffn", "merged"),
                *linear("linear_2", "ds_ffn_down", "width", "merged_ffn"),
            ),
            times="mergers",
            stored="mergers_written",
        ),
    ),
    merge="vision.scale",
    left_out=(*LANGUAGE_MODEL, "mtp"),
)
