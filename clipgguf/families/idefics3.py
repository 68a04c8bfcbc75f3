"""Idefics3 and SmolVLM: a SigLIP tower whose patches are joined, and one matrix.

Names and defaults: transformers' Idefics3ForConditionalGeneration and SmolVLMForConditionalGeneration; llama.cpp's
``conversion/smolvlm.py`` and ``tools/mtmd``.
"""

from clipgguf.config import SIGLIP_STATISTICS
from clipgguf.families.bases import LANGUAGE_MODEL, MTMD, activation, statistics
from clipgguf.families.tower_tables import MODERN_BLOCK, POST_NORM, SIGLIP_EMBEDDINGS, TOWER
from clipgguf.family import Family
from clipgguf.table import F32, Prefix, Rule, Section, Types, Value

CONNECTOR = Prefix("modality_projection.proj.weight", "model.connector.")

FAMILY = Family(
    title="Idefics3 or SmolVLM",
    projector="idefics3",
    base=MTMD,
    values=(
        Value("vision.projection", "text_config.hidden_size|hidden_size", 4096),
        Value("vision.image", "vision_config.image_size", 224),
        Value("vision.patch", "vision_config.patch_size", 32),
        Value("vision.channels", "vision_config.num_channels", 3),
        Value("vision.width", "vision_config.hidden_size", 1152),
        Value("vision.ffn", "vision_config.intermediate_size", 3072),
        Value("vision.blocks", "vision_config.num_hidden_layers", 12),
        Value("vision.heads", "vision_config.num_attention_heads", 16),
        Value("vision.epsilon", "vision_config.layer_norm_eps", 1e-6),
        *activation("vision_config.hidden_act", "gelu_pytorch_tanh"),
        *statistics(SIGLIP_STATISTICS),
        Value("vision.positions", of=lambda v: (v["vision.image"] // v["vision.patch"]) ** 2),
        Value("vision.scale", "scale_factor", 2),
        Value("vision.merged", of=lambda v: v["vision.scale"] ** 2 * v["vision.width"]),
        # The longer side of an image, before it is cut into pieces of the tower's size.
        Value("longest_edge", "processor.size.longest_edge", 0),
        Value("vision.preproc_image", of=lambda v: v["longest_edge"] or v["vision.image"]),
    ),
    sections=(
        Section(
            CONNECTOR,
            "mm.model.",
            (Rule("modality_projection.proj.weight", "fc.weight", "projection merged"),),
        ),
        Section(TOWER, "v.", SIGLIP_EMBEDDINGS),
        Section(TOWER + "encoder.layers.{}.", "v.blk.{}.", MODERN_BLOCK, times="blocks"),
        Section(TOWER, "v.", POST_NORM),
    ),
    merge="vision.scale",
    left_out=(*LANGUAGE_MODEL, r"(model\.)?text_model\."),
    types=(Types("v.patch_embd.weight", F32),),
)
