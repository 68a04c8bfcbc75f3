"""DeepSeek-OCR-2: SAM's encoder, then Qwen2's language model over its patches and as many learned queries.

Names: ``deepencoderv2.py`` of deepseek-ai/DeepSeek-OCR-2, transformers' DeepseekOcr2Config; llama.cpp's
``conversion/deepseek.py`` and ``tools/mtmd``.
"""

from clipgguf.config import SIGLIP_STATISTICS
from clipgguf.families.bases import LANGUAGE_MODEL, MTMD, statistics
from clipgguf.families.gemma3 import patches_per_token
from clipgguf.families.sam_tables import SAM_SECTIONS, SAM_TYPES, SAM_VALUES
from clipgguf.family import Family
from clipgguf.layers import linear, norm
from clipgguf.table import Prefix, Rule, Section, Value

QUERIES = Prefix("query_1024.weight", "model.qwen2_model.")
PROJECTOR = Prefix("view_seperator", "model.")  # "seperator": so it stands in every checkpoint.

FAMILY = Family(
    title="DeepSeek-OCR-2",
    projector="deepseekocr2",
    base=MTMD,
    values=(
        Value("vision.projection", "language_config.hidden_size|text_config.hidden_size|hidden_size", 1280),
        Value("vision.image", "vision_config.image_size", 1024),
        Value("vision.patch", "vision_config.patch_size", 16),
        Value("vision.width", "vision_config.width.qwen2-0-5b.dim|vision_config.encoder_config.hidden_size", 896),
        # The code of the model gives the encoder these sizes, its configuration none.
        Value("vision.ffn", "vision_config.intermediate_size|vision_config.encoder_config.intermediate_size", 4864),
        Value("vision.blocks", "vision_config.layers|vision_config.encoder_config.num_hidden_layers", 24),
        Value("vision.heads", "vision_config.num_attention_heads|vision_config.encoder_config.num_attention_heads", 14),
        Value("vision.kv_heads", "vision_config.encoder_config.num_key_value_heads", 2),
        Value("vision.head", of=lambda v: v["vision.width"] // v["vision.heads"]),
        Value("vision.epsilon", "vision_config.layer_norm_eps", 1e-6),
        *statistics(SIGLIP_STATISTICS),
        Value("image_tokens", "processor.image_seq_length", 256),
        Value("vision.scale", of=patches_per_token, unless=4),
        Value("gelu", default=True),
        Value("vision.min_tiles", default=2),
        Value("vision.max_tiles", default=6),
        *SAM_VALUES,
    ),
    sections=(
        *SAM_SECTIONS,
        Section(
            QUERIES,
            "v.",
            (
                Rule("query_768.weight", "resample_query_768.weight", "144 width"),
                Rule("query_1024.weight", "resample_query_1024.weight", "256 width"),
            ),
        ),
        Section(
            QUERIES + "model.model.layers.{}.",
            "v.blk.{}.",
            (
                *norm("input_layernorm", "ln1", bias=False),
                *linear("self_attn.q_proj", "attn_q", "(heads head)", "width"),
                *linear("self_attn.k_proj", "attn_k", "(kv_heads head)", "width"),
                *linear("self_attn.v_proj", "attn_v", "(kv_heads head)", "width"),
                *linear("self_attn.o_proj", "attn_out", "width", "(heads head)", bias=False),
                *norm("post_attention_layernorm", "ln2", bias=False),
                *linear("mlp.gate_proj", "ffn_gate", "ffn", "width", bias=False),
                *linear("mlp.up_proj", "ffn_up", "ffn", "width", bias=False),
                *linear("mlp.down_proj", "ffn_down", "width", "ffn", bias=False),
            ),
            times="blocks",
        ),
        Section(QUERIES + "model.model.", "v.", norm("norm", "post_ln", bias=False)),
        Section(
            PROJECTOR,
            "",
            (
                *linear("projector.layers", "mm.model.fc", "projection", "width"),
                Rule("view_seperator", "v.view_seperator", "projection -> 1 projection"),
                # Not of the published model; llama.cpp's graph does not use it.
                Rule("image_newline", "v.image_newline", "projection", optional=True),
            ),
        ),
    ),
    # By SAM's convolutions.
    merge=4,
    # With one after all. Any picture larger than a tile is cut into tiles besides, of 144 each.
    tokens=lambda side, _: side**2 + 1,
    left_out=LANGUAGE_MODEL,
    types=SAM_TYPES,
)
