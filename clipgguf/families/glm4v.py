"""GLM-4V, GLM-4.5V and GLM-OCR: RMS norms, rotary positions, and a convolution that merges two by two patches.

Names: transformers' Glm4vForConditionalGeneration, Glm4vMoeForConditionalGeneration and GlmOcrForConditionalGeneration;
llama.cpp's ``conversion/qwen3vl.py`` (Glm4VVisionModel) and ``tools/mtmd``.
"""

from clipgguf.config import CLIP_STATISTICS
from clipgguf.families.bases import LANGUAGE_MODEL, MTMD, activation, settled, statistics
from clipgguf.families.tower_tables import TWO_FRAMES
from clipgguf.family import Family
from clipgguf.layers import linear, norm
from clipgguf.table import SIDE, PerModel, Prefix, Rule, Section, Value

TOWER = Prefix("patch_embed.proj.weight", "model.visual.")

PATCHES = Section(TOWER, "v.", (TWO_FRAMES, Rule("patch_embed.proj.bias", "patch_embd.bias", "width")))
# Of a table of positions, GLM-OCR and GLM-5.3 have none; their queries and keys have norms, and their layers biases.
POSITIONS = Section(
    TOWER,
    "v.",
    (
        *norm("post_conv_layernorm", "norm_embd", bias=False),
        Rule("embeddings.position_embedding.weight", "position_embd.weight", "positions width"),
    ),
    times="has_positions",
)
BLOCKS = Section(
    TOWER + "blocks.{}.",
    "v.blk.{}.",
    (
        *norm("norm1", "ln1", bias=False),
        *linear("attn.qkv", "attn_qkv", "(3 width')", "width", bias="optional"),
        *norm("attn.q_norm", "attn_q_norm", "head", bias=False, optional=True),
        *norm("attn.k_norm", "attn_k_norm", "head", bias=False, optional=True),
        *linear("attn.proj", "attn_out", "width", "width'", bias="optional"),
        *norm("norm2", "ln2", bias=False),
        *linear("mlp.gate_proj", "ffn_gate", "hidden", "width", bias="optional"),
        *linear("mlp.up_proj", "ffn_up", "hidden", "width", bias="optional"),
        *linear("mlp.down_proj", "ffn_down", "width", "hidden", bias="optional"),
    ),
    times="blocks",
)
POST_NORM = Section(TOWER, "v.", norm("post_layernorm", "post_ln", bias=False))
PROJECTOR = Section(
    TOWER,
    "mm.",
    (
        *linear("downsample", "patch_merger", "projection", "width 2 2'"),
        *linear("merger.proj", "model.fc", "projection", "projection'", bias=False),
        *norm("merger.post_projection_norm", "post_norm", "projection"),
        *linear("merger.gate_proj", "gate", "context", "projection", bias=False),
        *linear("merger.up_proj", "up", "context", "projection", bias=False),
        *linear("merger.down_proj", "down", "projection", "context", bias=False),
    ),
)
SECTIONS = (PATCHES, POSITIONS, BLOCKS, POST_NORM, PROJECTOR)
VALUES = (
    Value("vision.image", "vision_config.image_size", 336, kind=SIDE),
    Value("vision.patch", "vision_config.patch_size", 14, kind=SIDE),
    Value("vision.width", "vision_config.hidden_size", PerModel(1536, {"glm_ocr": 1024, "glm5_next": 1024})),
    # So it stands in llama.cpp's files. In GLM-4V it is the width inside the projector; no reader uses it.
    Value("vision.ffn", "vision_config.intermediate_size", PerModel(13696, {"glm_ocr": 4096, "glm5_next": 4096})),
    Value("vision.blocks", "vision_config.depth", 24),
    Value("vision.heads", "vision_config.num_heads", PerModel(12, {"glm_ocr": 16, "glm5_next": 16})),
    Value("vision.head", of=lambda v: v["vision.width"] // v["vision.heads"]),
    Value("vision.epsilon", "vision_config.rms_norm_eps", 1e-5),
    Value("vision.positions", of=lambda v: (v["vision.image"] // v["vision.patch"]) ** 2),
    *activation("vision_config.hidden_act", "silu"),
    *statistics(CLIP_STATISTICS),
    # llama.cpp's graph puts patches two by two side by side, whatever a file says.
    settled("vision_config.spatial_merge_size", 2),
    Value("vision.has_positions", default=PerModel(True, {"glm_ocr": False, "glm5_next": False})),
)

FAMILY = Family(
    title="GLM-4V",
    projector="glm4v",
    base=MTMD,
    values=(
        Value("vision.projection", "text_config.hidden_size|hidden_size", PerModel(4096, {"glm_ocr": 1024})),
        *VALUES,
    ),
    sections=SECTIONS,
    merge=2,
    left_out=LANGUAGE_MODEL,
)
