"""Muse-Glimmer: a tower with rotary positions and windows, whose patches are merged two by two.

Names: transformers' MuseGlimmerForConditionalGeneration; llama.cpp's ``conversion/muse_glimmer.py`` and
``tools/mtmd``. It is longer than other tables for the settings that readers take for granted.
"""

from collections.abc import Mapping
from typing import Any

from clipgguf.config import SIGLIP_STATISTICS
from clipgguf.errors import shown
from clipgguf.families.bases import LANGUAGE_MODEL, MTMD, settled, statistics
from clipgguf.families.tower_tables import rotated
from clipgguf.family import Family
from clipgguf.inputs import Inputs, checked
from clipgguf.layers import linear, norm
from clipgguf.table import Prefix, Rule, Section, Value
from clipgguf.transforms import summed

TOWER = Prefix("patch_embedder.patch_embedding.weight", "model.vision_tower.")


def layer_types(inputs: Inputs) -> None:
    """Warn where it is not just every fourth block and the last one that attend to the whole image."""
    where, found = inputs.find("vision_config.layer_types")
    kinds = checked(list, where, found) if found is not None else []
    blocks = len(kinds)
    whole = [number for number, kind in enumerate(kinds) if kind == "full_attention"]
    if kinds and whole != sorted({*range(3, blocks, 4), blocks - 1}):
        rule = "'full_attention' for every fourth and for the last alone"
        inputs.warnings.append(f"{where} is {shown(kinds)}, readers take {rule}, and compute another model's features")


def positions(values: Mapping[str, Any]) -> int:
    """Return how many positions there are; readers take the square root of them as the grid's side."""
    rows, cols = values["vision.rows"], values["vision.cols"]
    if rows != cols:
        raise ValueError(f"vision_config: pos_emb_height is {rows} and pos_emb_width {cols}, should be equal")
    return int(rows * cols)


FAMILY = Family(
    title="Muse-Glimmer",
    projector="muse-glimmer",
    base=MTMD,
    values=(
        Value("vision.projection", "text_config.hidden_size|hidden_size", 6656),
        Value("vision.patch", "vision_config.patch_size", 14),
        Value("vision.frames", "vision_config.patch_temporal", 2),
        Value("vision.rows", "vision_config.pos_emb_height", 32),
        Value("vision.cols", "vision_config.pos_emb_width", 32),
        Value("vision.width", "vision_config.hidden_size", 1536),
        Value("vision.ffn", "vision_config.intermediate_size", 8960),
        Value("vision.blocks", "vision_config.num_hidden_layers", 50),
        Value("vision.heads", "vision_config.num_attention_heads", 16),
        settled("vision_config.merge_size", 2),
        Value("vision.merge", "vision_config.merge_size", 2),
        settled("vision_config.hidden_act", "gelu"),
        settled("projector_hidden_act", "gelu"),
        Value("layer_types", layer_types),
        Value("vision.image", of=lambda v: v["vision.rows"] * v["vision.patch"] * v["vision.merge"]),
        Value("vision.positions", of=positions),
        Value("vision.merged", of=lambda v: v["vision.merge"] ** 2 * v["vision.width"]),
        *statistics(SIGLIP_STATISTICS),
        Value("vision.epsilon", "vision_config.layer_norm_eps", 1e-5),
    ),
    sections=(
        Section(
            TOWER,
            "v.",
            (
                # An image is one frame, which stands in all of them.
                Rule(
                    "patch_embedder.patch_embedding.weight",
                    "patch_embd.weight",
                    "width (frames 3 patch patch') -> width frames 3 patch patch'",
                    then=summed(1),
                    becomes="width 3 patch patch'",
                ),
                Rule("patch_embedder.position_embedding_table.weight", "position_embd.weight", "positions width"),
                *norm("ln_pre", "pre_ln"),
            ),
        ),
        Section(
            TOWER + "layers.{}.",
            "v.blk.{}.",
            (
                *norm("norm1", "ln1"),
                *rotated("attn.q_proj", "attn_q", bias=True),
                *rotated("attn.k_proj", "attn_k", bias=True),
                *linear("attn.v_proj", "attn_v", "width", "width'"),
                *linear("attn.proj", "attn_out", "width", "width'"),
                *norm("norm2", "ln2"),
                *linear("mlp.fc1", "ffn_up", "ffn", "width"),
                *linear("mlp.fc2", "ffn_down", "width", "ffn"),
            ),
            times="blocks",
        ),
        Section(TOWER, "v.", norm("ln_post", "post_ln")),
        Section(
            Prefix("vision_adapter.fc1.weight", "model."),
            "mm.",
            (
                *linear("vision_adapter.fc1", "0", "hidden", "merged", bias=False),
                *linear("vision_adapter.fc2", "1", "hidden", "hidden'", bias=False),
                *linear("vision_projection", "2", "projection", "hidden", bias=False),
            ),
        ),
    ),
    merge="vision.merge",
    left_out=LANGUAGE_MODEL,
)
