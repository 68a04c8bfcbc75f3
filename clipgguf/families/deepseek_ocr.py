"""DeepSeek-OCR and Unlimited-OCR: SAM's encoder, then CLIP's over its patches; the features of both side by side.

Names: ``deepencoder.py`` of deepseek-ai/DeepSeek-OCR, transformers' UnlimitedOcrConfig; llama.cpp's
``conversion/deepseek.py`` and ``tools/mtmd``.
"""

from clipgguf.config import SIGLIP_STATISTICS
from clipgguf.families.bases import LANGUAGE_MODEL, MTMD, statistics
from clipgguf.families.gemma3 import patches_per_token
from clipgguf.families.sam_tables import SAM_SECTIONS, SAM_TYPES, SAM_VALUES
from clipgguf.families.tower_tables import CLIP_EMBEDDINGS, TOWER
from clipgguf.family import Family
from clipgguf.inputs import Inputs
from clipgguf.layers import linear, norm
from clipgguf.table import F32, Prefix, Rule, Section, Types, Value

PROJECTOR = Prefix("view_seperator", "model.")  # "seperator": so it stands in every checkpoint.


def most_tiles(inputs: Inputs) -> int:
    """Return into how many tiles an image is cut at most, which no configuration says."""
    classes = inputs.config.get("architectures")
    names = [inputs.config.get("model_type"), *(classes if isinstance(classes, list) else ())]
    return 32 if any(str(name).lower().startswith("unlimited") for name in names) else 9


FAMILY = Family(
    title="DeepSeek-OCR",
    projector="deepseekocr",
    base=MTMD,
    values=(
        Value("vision.projection", "language_config.hidden_size|text_config.hidden_size|hidden_size", 1280),
        Value(
            "vision.image", "vision_config.width.clip-l-14-224.image_size|vision_config.encoder_config.image_size", 224
        ),
        Value(
            "vision.patch", "vision_config.width.clip-l-14-224.patch_size|vision_config.encoder_config.patch_size", 14
        ),
        Value("vision.width", "vision_config.width.clip-l-14-224.width|vision_config.encoder_config.hidden_size", 1024),
        Value(
            "vision.blocks",
            "vision_config.width.clip-l-14-224.layers|vision_config.encoder_config.num_hidden_layers",
            24,
        ),
        Value(
            "vision.heads",
            "vision_config.width.clip-l-14-224.heads|vision_config.encoder_config.num_attention_heads",
            16,
        ),
        # So it stands in llama.cpp's files. It is not the width of anything; no reader uses it.
        Value("vision.ffn", of=lambda v: 4 * v["vision.heads"]),
        Value("vision.epsilon", "vision_config.layer_norm_eps", 1e-6),
        *statistics(SIGLIP_STATISTICS),
        Value("vision.positions", of=lambda v: (v["vision.image"] // v["vision.patch"]) ** 2 + 1),
        Value("image_tokens", "processor.image_seq_length", 256),
        Value("vision.scale", of=patches_per_token, unless=4),
        Value("gelu", default=True),
        Value("vision.min_tiles", default=2),
        Value("vision.max_tiles", most_tiles),
        *SAM_VALUES,
    ),
    sections=(
        *SAM_SECTIONS,
        Section(TOWER, "v.", CLIP_EMBEDDINGS),
        Section(
            TOWER + "transformer.layers.{}.",
            "v.blk.{}.",
            (
                *norm("layer_norm1", "ln1"),
                *linear("self_attn.qkv_proj", "attn_qkv", "(3 width')", "width"),
                *linear("self_attn.out_proj", "attn_out", "width", "width'"),
                *norm("layer_norm2", "ln2"),
                *linear("mlp.fc1", "ffn_up", "hidden", "width"),
                *linear("mlp.fc2", "ffn_down", "width", "hidden"),
            ),
            times="blocks",
        ),
        Section(
            PROJECTOR,
            "",
            (
                *linear("projector.layers", "mm.model.fc", "projection", "(2 width)"),
                Rule("image_newline", "v.image_newline", "projection"),
                Rule("view_seperator", "v.view_seperator", "projection -> 1 projection"),
            ),
        ),
    ),
    merge=1,
    # With one after each row, and one after all. A larger picture is cut into tiles besides.
    tokens=lambda side, _: side * (side + 1) + 1,
    left_out=(*LANGUAGE_MODEL, r"(.*\.)?embeddings\.position_ids$"),
    types=(Types("v.patch_embd.weight", F32), *SAM_TYPES),
)
