"""Janus-Pro: a SigLIP tower and two layers; what makes images is left out.

Names and defaults: transformers' JanusForConditionalGeneration; llama.cpp's ``conversion/januspro.py`` and
``tools/mtmd``.
"""

from clipgguf.config import CLIP_STATISTICS
from clipgguf.families.bases import LANGUAGE_MODEL, MTMD, activation, settled, statistics
from clipgguf.families.tower_tables import POST_NORM, SIGLIP_EMBEDDINGS, TOWER, block
from clipgguf.family import Family
from clipgguf.layers import linear
from clipgguf.table import Prefix, Section, Value

ALIGNER = Prefix("aligner.hidden_layers.0.weight", "model.")

FAMILY = Family(
    title="Janus-Pro",
    projector="janus_pro",
    base=MTMD,
    values=(
        Value("vision.projection", "text_config.hidden_size|hidden_size", 4096),
        Value("vision.image", "vision_config.image_size", 384),
        Value("vision.patch", "vision_config.patch_size", 16),
        Value("vision.channels", "vision_config.num_channels", 3),
        Value("vision.width", "vision_config.hidden_size", 1024),
        Value("mlp_ratio", "vision_config.mlp_ratio", 4.0),
        Value("intermediate_size", "vision_config.intermediate_size", 0),
        Value("vision.ffn", of=lambda v: v["intermediate_size"] or round(v["vision.width"] * v["mlp_ratio"])),
        Value("vision.blocks", "vision_config.num_hidden_layers", 24),
        Value("vision.heads", "vision_config.num_attention_heads", 16),
        Value("vision.epsilon", "vision_config.layer_norm_eps", 1e-6),
        *activation("vision_config.hidden_act", "gelu"),
        *statistics(CLIP_STATISTICS),
        Value("vision.positions", of=lambda v: (v["vision.image"] // v["vision.patch"]) ** 2),
        # llama.cpp has two layers after the tower.
        settled("vision_config.depth", 2),
    ),
    sections=(
        Section(
            ALIGNER + "aligner.",
            "mm.",
            (
                *linear("fc1", "0", "projection", "width"),
                *linear("hidden_layers.0", "1", "projection", "projection'"),
            ),
        ),
        Section(TOWER, "v.", SIGLIP_EMBEDDINGS),
        Section(
            TOWER + "encoder.layers.{}.",
            "v.blk.{}.",
            block(fc1="ffn_up", fc2="ffn_down", out="self_attn.projection_layer"),
            times="blocks",
        ),
        Section(TOWER, "v.", POST_NORM),
    ),
    merge=1,
    left_out=(*LANGUAGE_MODEL, r"(model\.)?(vqmodel|generation_(embeddings|aligner|head))\."),
)
