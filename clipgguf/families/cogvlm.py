"""CogVLM: EVA's tower with norms after its layers, a gated projector, and a token before and after the picture.

Names: ``visual.py`` of THUDM/cogvlm-chat-hf; llama.cpp's ``conversion/cogvlm.py`` and ``tools/mtmd``. llama.cpp's
converter does not write the activation, so that its reader computes quick GELU where the model has GELU. CogVLM2 has a
convolution besides, which no reader knows.
"""

from clipgguf.config import CLIP_STATISTICS
from clipgguf.families.bases import LANGUAGE_MODEL, MTMD, activation, statistics
from clipgguf.family import Family, Mends
from clipgguf.layers import linear, norm
from clipgguf.table import Prefix, Rule, Section, Value

TOWER = Prefix("patch_embedding.proj.weight", "model.vision.")

FAMILY = Family(
    title="CogVLM",
    projector="cogvlm",
    base=MTMD,
    values=(
        Value("vision.projection", "hidden_size", 4096),
        Value("vision.image", "vision_config.image_size", 490),
        Value("vision.patch", "vision_config.patch_size", 14),
        Value("vision.channels", "vision_config.in_channels", 3),
        Value("vision.width", "vision_config.hidden_size", 1792),
        Value("vision.ffn", "vision_config.intermediate_size", 15360),
        Value("vision.blocks", "vision_config.num_hidden_layers", 63),
        Value("vision.heads", "vision_config.num_heads", 16),
        Value("vision.epsilon", "vision_config.layer_norm_eps", 1e-6),
        Value("vision.positions", of=lambda v: (v["vision.image"] // v["vision.patch"]) ** 2 + 1),
        *statistics(CLIP_STATISTICS),
        *activation("vision_config.hidden_act", "gelu"),
    ),
    sections=(
        Section(
            TOWER,
            "v.",
            (
                Rule("boi", "boi", "1 1 projection"),
                Rule("eoi", "eoi", "1 1 projection"),
                Rule("patch_embedding.cls_embedding", "class_embd", "1 width"),
                *linear("patch_embedding.proj", "patch_embd", "width", "channels patch patch'"),
                Rule("patch_embedding.position_embedding.weight", "position_embd.weight", "positions width"),
            ),
        ),
        Section(
            TOWER + "transformer.layers.{}.",
            "v.blk.{}.",
            (
                *norm("input_layernorm", "ln1"),
                *linear("attention.query_key_value", "attn_qkv", "(3 width')", "width"),
                *linear("attention.dense", "attn_out", "width", "width'"),
                *norm("post_attention_layernorm", "ln2"),
                *linear("mlp.fc1", "ffn_up", "ffn", "width"),
                *linear("mlp.fc2", "ffn_down", "width", "ffn"),
            ),
            times="blocks",
        ),
        Section(
            TOWER + "linear_proj.",
            "mm.",
            (
                *linear("linear_proj", "model.fc", "projection", "width", bias=False),
                *norm("norm1", "post_fc_norm", "projection"),
                *linear("gate_proj", "gate", "inner", "projection", bias=False),
                *linear("dense_h_to_4h", "up", "inner", "projection", bias=False),
                *linear("dense_4h_to_h", "down", "projection", "inner", bias=False),
            ),
        ),
    ),
    mends=Mends(added=(("gelu", True),)),
    merge=1,
    # One before them and one after, both of the model's own.
    tokens=lambda side, _: side**2 + 2,
    left_out=LANGUAGE_MODEL,
)
