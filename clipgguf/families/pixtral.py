"""Pixtral and Mistral 3: a tower with rotary positions, and a token after each row of patches; transformers' layout.

Names: transformers' PixtralVisionModel in LlavaForConditionalGeneration and Mistral3ForConditionalGeneration;
llama.cpp's ``conversion/llava.py`` and ``tools/mtmd``. Mistral's own layout is in ``mistral.py``.
"""

from clipgguf.config import CLIP_STATISTICS
from clipgguf.families.bases import MTMD, activation, settled, statistics
from clipgguf.families.tower_tables import rotated
from clipgguf.family import Family
from clipgguf.layers import linear, norm
from clipgguf.table import PerModel, Prefix, Rule, Section, Value
from clipgguf.tokens import token_id
from clipgguf.transforms import row

TOWER = Prefix("patch_conv.weight", "vision_tower.")
PROJECTOR = Prefix("linear_1.weight", "multi_modal_projector.")
EMBEDDINGS = Prefix("embed_tokens.weight", "language_model.model.")

VALUES = (
    Value("vision.projection", "text_config.hidden_size|hidden_size", 4096),
    Value("vision.image", "vision_config.image_size", 1024),
    Value("vision.patch", "vision_config.patch_size", 16),
    Value("vision.channels", "vision_config.num_channels", 3),
    Value("vision.width", "vision_config.hidden_size", 1024),
    Value("vision.ffn", "vision_config.intermediate_size", 4096),
    Value("vision.blocks", "vision_config.num_hidden_layers", 24),
    Value("vision.heads", "vision_config.num_attention_heads", 16),
    Value("vision.epsilon", "vision_config.layer_norm_eps", 1e-5),
    *statistics(CLIP_STATISTICS),
    *activation("vision_config.hidden_act", "gelu"),
    settled("projector_hidden_act", "gelu"),
    settled("vision_feature_layer", -1),
    settled("vision_config.rope_parameters.rope_theta|vision_config.rope_theta", 10000.0, 10000),
    Value("vision.has_bias", "multimodal_projector_bias", PerModel(False, {"llava": True})),
    # How many patches, along one side, are merged into a token.
    Value("vision.merge", "spatial_merge_size", PerModel(2, {"llava": 1}), unless=1),
    Value("vision.has_merger", default=PerModel(True, {"llava": False})),
)

EMBEDDING = linear("patch_conv", "patch_embd", "width", "channels patch patch'", bias=False)
PRE_NORM = norm("ln_pre", "pre_ln", bias=False)
BLOCK = (
    *norm("attention_norm", "ln1", bias=False),
    *rotated("attention.q_proj", "attn_q"),
    *rotated("attention.k_proj", "attn_k"),
    *linear("attention.v_proj", "attn_v", "width", "width'", bias=False),
    *linear("attention.o_proj", "attn_out", "width", "width'", bias=False),
    *norm("ffn_norm", "ln2", bias=False),
    *linear("feed_forward.gate_proj", "ffn_gate", "ffn", "width", bias=False),
    *linear("feed_forward.up_proj", "ffn_up", "ffn", "width", bias=False),
    *linear("feed_forward.down_proj", "ffn_down", "width", "ffn", bias=False),
)
MERGER = (
    *norm("norm", "input_norm", bias=False),
    *linear("patch_merger.merging_layer", "patch_merger", "width", "(width' merge merge')", bias=False),
)
LINEAR = (
    *linear("linear_1", "1", "projection", "width", bias=False),
    *linear("linear_2", "2", "projection", "projection'", bias=False),
)
BIASES = (Rule("linear_1.bias", "1.bias", "projection"), Rule("linear_2.bias", "2.bias", "projection"))

SECTIONS = (
    Section(TOWER, "v.", (*EMBEDDING, *PRE_NORM)),
    Section(TOWER + "transformer.layers.{}.", "v.blk.{}.", BLOCK, times="blocks"),
    Section(PROJECTOR, "mm.", MERGER, times="has_merger"),
    Section(PROJECTOR, "mm.", LINEAR),
    Section(PROJECTOR, "mm.", BIASES, times="has_bias"),
)


def row_end(theirs: str) -> Rule:
    """The row of a table of embeddings for the token that stands after each row of patches."""
    return Rule(theirs, "token_embd.img_break", "tokens projection", then=row("row_end"), becomes="projection")


FAMILY = Family(
    title="Pixtral or Mistral 3",
    projector="pixtral",
    base=MTMD,
    values=(
        *VALUES,
        Value("row_end", lambda inputs: token_id(inputs.directory, "[IMG_BREAK]")),
    ),
    sections=(*SECTIONS, Section(EMBEDDINGS, "v.", (row_end("embed_tokens.weight"),))),
    merge="vision.merge",
    # With one between rows.
    tokens=lambda side, _: side * (side + 1) - 1,
    left_out=(
        r"(model\.)?language_model\.(?!(model\.)?embed_tokens\.)",
        r"(model\.)?lm_head\.",
        r"model\.(layers|norm)\.",
    ),
)
