"""Pixtral and Mistral 3 in Mistral's own layout: params.json and consolidated.safetensors, without a config.json.

Names: mistral-inference's VisionEncoderArgs and VisionTransformer; llama.cpp's ``conversion/pixtral.py`` and
``conversion/llava.py``. The files are those of ``pixtral.py``. It is longer than other tables for a configuration
that has other names and places.
"""

from clipgguf.config import CLIP_STATISTICS
from clipgguf.errors import ConfigError
from clipgguf.families.bases import MTMD, settled, statistics
from clipgguf.families.pixtral import EMBEDDING, PRE_NORM, TOWER, row_end
from clipgguf.family import Family
from clipgguf.inputs import Inputs, checked
from clipgguf.layers import linear, norm
from clipgguf.table import Rule, Section, Value
from clipgguf.tokens import token_id


def row_end_id(inputs: Inputs) -> int:
    """Return the id of the token after a row of patches; where it is -1 or missing, the tokenizer has it."""
    where, found = inputs.find("vision_encoder.image_break_token_id")
    if found is not None and (type(found) is not int or found != -1):
        return int(checked(int, where, found))
    try:
        return token_id(inputs.directory, "[IMG_BREAK]")
    except ConfigError as e:
        raise ConfigError(f"{where} is {'missing' if found is None else found}, and {e}") from e


FAMILY = Family(
    title="Pixtral or Mistral 3",
    projector="pixtral",
    base=MTMD,
    values=(
        Value("vision.projection", "dim", kind=int),
        Value("vision.image", "vision_encoder.image_size", kind=int),
        Value("vision.patch", "vision_encoder.patch_size", kind=int),
        Value("vision.channels", "vision_encoder.num_channels", 3),
        Value("vision.width", "vision_encoder.hidden_size", kind=int),
        Value("vision.ffn", "vision_encoder.intermediate_size", kind=int),
        Value("vision.blocks", "vision_encoder.num_hidden_layers", kind=int),
        Value("vision.heads", "vision_encoder.num_attention_heads", kind=int),
        Value("vision.epsilon", "norm_eps", kind=float),
        Value("rope_base", "vision_encoder.rope_theta", 10000.0),
        settled("vision_encoder.rope_theta", 10000.0, 10000),
        *statistics(CLIP_STATISTICS),
        Value("silu", default=True),
        Value("vision.has_bias", "vision_encoder.adapter_bias", True),
        Value("mm_projector_id", "vision_encoder.mm_projector_id", ""),
        Value("merge", "vision_encoder.spatial_merge_size", 1),
        Value("vision.has_merger", of=lambda v: v["mm_projector_id"] == "patch_merge"),
        Value("vision.merge", of=lambda v: v["merge"] if v["vision.has_merger"] else 1, unless=1),
        Value("row_end", row_end_id),
    ),
    sections=(
        Section(TOWER, "v.", (*EMBEDDING, *PRE_NORM)),
        Section(
            TOWER + "transformer.layers.{}.",
            "v.blk.{}.",
            (
                *norm("attention_norm", "ln1", bias=False),
                *linear("attention.wq", "attn_q", "width", "width'", bias=False),
                *linear("attention.wk", "attn_k", "width", "width'", bias=False),
                *linear("attention.wv", "attn_v", "width", "width'", bias=False),
                *linear("attention.wo", "attn_out", "width", "width'", bias=False),
                *norm("ffn_norm", "ln2", bias=False),
                *linear("feed_forward.w1", "ffn_gate", "ffn", "width", bias=False),
                *linear("feed_forward.w3", "ffn_up", "ffn", "width", bias=False),
                *linear("feed_forward.w2", "ffn_down", "width", "ffn", bias=False),
            ),
            times="blocks",
        ),
        Section(
            "",
            "mm.",
            (
                *norm("pre_mm_projector_norm", "input_norm", bias=False),
                *linear("patch_merger.merging_layer", "patch_merger", "width", "(width' merge merge')", bias=False),
            ),
            times="has_merger",
        ),
        Section(
            "vision_language_adapter.",
            "mm.",
            (
                *linear("w_in", "1", "projection", "width", bias=False),
                *linear("w_out", "2", "projection", "projection'", bias=False),
            ),
        ),
        Section(
            "vision_language_adapter.",
            "mm.",
            (Rule("w_in.bias", "1.bias", "projection"), Rule("w_out.bias", "2.bias", "projection")),
            times="has_bias",
        ),
        Section("", "v.", (row_end("tok_embeddings.weight"),)),
    ),
    merge="vision.merge",
    # With one between rows.
    tokens=lambda side, _: side * (side + 1) - 1,
    left_out=(r"layers\.", r"norm\.", r"output\."),
)
