"""HunyuanVL and HunyuanOCR: a tower with a table of positions, and convolutions that merge two by two patches.

Names: transformers' HunYuanVLForConditionalGeneration, those on the hub and in memory (``conversion_mapping.py``);
llama.cpp's ``conversion/hunyuan.py`` and ``tools/mtmd``. It is longer than other tables for the two spellings.
"""

from clipgguf.config import CLIP_STATISTICS
from clipgguf.families.bases import LANGUAGE_MODEL, MTMD, settled, statistics
from clipgguf.family import Family
from clipgguf.layers import linear, norm
from clipgguf.table import F16, F32, Prefix, Rule, Section, Types, Value
from clipgguf.transforms import rows_from

TOWER = Prefix("embeddings.patch_embedding.weight", "vit.")
# What is called "perceive" on the hub.
MERGER = TOWER + "perceive.|patch_merger."

FAMILY = Family(
    title="HunyuanVL",
    projector="hunyuanvl",
    base=MTMD,
    values=(
        Value("vision.projection", "text_config.hidden_size|hidden_size", 4096),
        Value("vision.image", "vision_config.image_size|vision_config.max_image_size", 2048),
        Value("vision.patch", "vision_config.patch_size", 16),
        Value("vision.width", "vision_config.hidden_size", 1152),
        Value("vision.ffn", "vision_config.intermediate_size", 4304),
        Value("vision.blocks", "vision_config.num_hidden_layers", 27),
        Value("vision.heads", "vision_config.num_attention_heads|vision_config.attention_heads", 16),
        Value("vision.epsilon", "vision_config.rms_norm_eps|vision_config.layer_norm_eps", 1e-5),
        Value("vision.merge", "vision_config.spatial_merge_size", 2),
        Value("vision.positions", of=lambda v: (v["vision.image"] // v["vision.patch"]) ** 2),
        Value("vision.rows", of=lambda v: v["vision.positions"] + 1),
        *statistics(CLIP_STATISTICS),
        Value("vision.min_pixels", "processor.min_pixels|processor.size.shortest_edge", 512 * 512),
        Value("vision.max_pixels", "processor.max_pixels|processor.size.longest_edge", 2048 * 2048),
        Value("gelu", default=True),
        settled("vision_config.hidden_act", "gelu", "gelu_pytorch_tanh"),
    ),
    sections=(
        Section(
            TOWER + "embeddings.",
            "v.",
            (
                *linear("patch_embedding", "patch_embd", "width", "channels patch patch'"),
                # The first row is of a class token, which there is none of.
                Rule(
                    "position_embedding.weight",
                    "position_embd.weight",
                    "rows width",
                    then=rows_from(1),
                    becomes="positions width",
                ),
            ),
        ),
        Section(
            TOWER + "layers.{}.",
            "v.blk.{}.",
            (
                *linear("self_attn.k_proj", "attn_k", "width", "width'"),
                *linear("self_attn.v_proj", "attn_v", "width", "width'"),
                *linear("self_attn.q_proj", "attn_q", "width", "width'"),
                *linear("self_attn.o_proj", "attn_out", "width", "width'"),
                *norm("input_layernorm|layer_norm1", "ln1"),
                *linear("mlp.dense_h_to_4h|mlp.fc1", "ffn_up", "ffn", "width"),
                *linear("mlp.dense_4h_to_h|mlp.fc2", "ffn_down", "width", "ffn"),
                *norm("post_attention_layernorm|layer_norm2", "ln2"),
            ),
            times="blocks",
        ),
        Section(
            MERGER,
            "mm.",
            (
                *norm("before_rms", "pre_norm", bias=False),
                *linear("proj.0|proj_conv", "0", "hidden", "width merge merge'"),
                *linear("proj.2|proj_out", "2", "merged", "hidden 1 1"),
                *linear("mlp", "model.fc", "projection", "merged"),
                *norm("after_rms", "post_norm", "projection", bias=False),
                Rule("image_begin", "image_begin", "projection"),
                Rule("image_end", "image_end", "projection"),
            ),
        ),
        Section(
            MERGER,
            "v.",
            (
                Rule("image_newline", "image_newline", "merged"),
                Rule("image_sep", "view_seperator", "projection"),
            ),
        ),
    ),
    merge="vision.merge",
    # With one after each row, one before all and one after.
    tokens=lambda side, _: side * (side + 1) + 2,
    left_out=LANGUAGE_MODEL,
    types=(Types("mm.[02].weight", F32, in_f16=F16),),
)
