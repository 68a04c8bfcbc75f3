"""LFM2-VL: a SigLIP 2 tower of patches as rows, which are joined and go through a norm, in most models, and two layers.

Names and defaults: transformers' Lfm2VlForConditionalGeneration; llama.cpp's ``conversion/lfm2.py`` and ``tools/mtmd``.
"""

from collections.abc import Mapping
from typing import Any

from clipgguf.config import SIGLIP_STATISTICS
from clipgguf.families.bases import LANGUAGE_MODEL, MTMD, activation, settled, statistics
from clipgguf.families.tower_tables import MODERN_BLOCK, POST_NORM, SIGLIP_HEAD, TOWER
from clipgguf.family import Family
from clipgguf.layers import linear, norm
from clipgguf.table import Prefix, Rule, Section, Value

PROJECTOR = Prefix("linear_1.weight", "multi_modal_projector.")


def blocks_run(values: Mapping[str, Any]) -> int:
    """Return how many blocks there are up to the one whose features are used."""
    layer, blocks = values["feature_layer"], values["vision.layers"]
    if not (type(layer) is int and -blocks <= layer < 0):
        raise ValueError(f"vision_feature_layer is {layer!r}, should be between -{blocks} and -1")
    run: int = blocks + layer + 1
    return run


FAMILY = Family(
    title="LFM2-VL",
    projector="lfm2",
    base=MTMD,
    values=(
        Value("vision.projection", "text_config.hidden_size|hidden_size", 2560),
        # Images may have any size; so it stands in llama.cpp's files.
        Value("vision.image", default=256),
        Value("vision.patch", "vision_config.patch_size", 16),
        Value("vision.width", "vision_config.hidden_size", 768),
        Value("vision.ffn", "vision_config.intermediate_size", 3072),
        Value("vision.layers", "vision_config.num_hidden_layers", 12),
        Value("feature_layer", lambda inputs: inputs.config.get("vision_feature_layer", -1)),
        Value("vision.blocks", of=blocks_run),
        Value("vision.heads", "vision_config.num_attention_heads", 12),
        Value("vision.epsilon", "vision_config.layer_norm_eps", 1e-6),
        *activation("vision_config.hidden_act", "gelu_pytorch_tanh"),
        settled("projector_hidden_act", "gelu"),
        *statistics(SIGLIP_STATISTICS),
        Value("vision.positions", "vision_config.num_patches", 256),
        Value("vision.scale", "downsample_factor", 2),
        Value("vision.merged", of=lambda v: v["vision.scale"] ** 2 * v["vision.width"]),
        Value("vision.has_norm", "projector_use_layernorm", True),
    ),
    sections=(
        Section(PROJECTOR, "mm.input_", norm("layer_norm", "norm", "merged"), times="has_norm"),
        Section(
            PROJECTOR,
            "mm.",
            (*linear("linear_1", "1", "hidden", "merged"), *linear("linear_2", "2", "projection", "hidden")),
        ),
        Section(
            TOWER,
            "v.",
            (
                Rule(
                    "embeddings.patch_embedding.weight",
                    "patch_embd.weight",
                    "width (patch patch' 3) -> width 3 patch patch'",
                ),
                Rule("embeddings.patch_embedding.bias", "patch_embd.bias", "width"),
                Rule("embeddings.position_embedding.weight", "position_embd.weight", "positions width"),
            ),
        ),
        Section(TOWER + "encoder.layers.{}.", "v.blk.{}.", MODERN_BLOCK, times="layers", stored="blocks"),
        Section(TOWER, "v.", POST_NORM),
    ),
    merge="vision.scale",
    left_out=(*LANGUAGE_MODEL, SIGLIP_HEAD),
)
