"""Granite Speech: a conformer with relative positions and a CTC branch, and a Q-Former over windows of its frames.

Names: transformers' GraniteSpeechForConditionalGeneration and GraniteSpeechPlusForConditionalGeneration; llama.cpp's
``conversion/granite.py`` and ``tools/mtmd/models/granite-speech.cpp``, which has the Q-Former's epsilon, activation and
number of layers built in. "Plus" models give the projector the features of some blocks besides, one beside the other.
The table is long for the block of a conformer that is none of NeMo's, and for what the configuration tells of.
"""

from collections.abc import Mapping
from typing import Any

from clipgguf.batch_norm import folded
from clipgguf.errors import shown
from clipgguf.families.bases import LANGUAGE_MODEL, MTMD, settled
from clipgguf.families.q_former_tables import q_former_layer
from clipgguf.family import Family, Mends
from clipgguf.layers import linear, norm
from clipgguf.table import F32, INTEGERS, Prefix, Rule, Section, Types, Value

TOWER, PROJECTOR = Prefix("input_linear.weight", "encoder."), Prefix("qformer.layernorm.weight", "projector.")


def feature_layers(values: Mapping[str, Any]) -> list[int]:
    """Return after how many blocks the projector takes features, besides those of all."""
    layers: list[int] = values["layers"]
    if len(set(layers)) < len(layers) or not set(layers) <= set(range(values["audio.blocks"])):
        below = f"different numbers from 0 to {values['audio.blocks'] - 1}"
        raise ValueError(f"encoder_config.cat_hidden_layers is {shown(layers)}, should have {below}")
    return layers


def queries(values: Mapping[str, Any]) -> int:
    """Return how many tokens a window of frames becomes."""
    if count := values["audio.query_window"] // values["audio.query_rate"]:
        return int(count)
    raise ValueError(f"window_size is {values['audio.query_window']}, should be at least downsample_rate")


BLOCK = (
    *norm("ff1.pre_norm", "ffn_norm"),
    *linear("ff1.up_proj", "ffn_up", "ffn", "width"),
    *linear("ff1.down_proj", "ffn_down", "width", "ffn"),
    *norm("attn.pre_norm", "ln1"),
    *linear("attn.to_q", "attn_q", "width", "width'", bias=False),
    Rule("attn.to_kv.weight", ("attn_k.weight", "attn_v.weight"), "(2 width') width -> 2 width' width"),
    *linear("attn.to_out", "attn_out", "width", "width'"),
    Rule("attn.rel_pos_emb.weight", "attn_rel_pos_emb", "distances head"),
    *norm("conv.norm", "norm_conv"),
    Rule("conv.up_conv.weight", "conv_pw1.weight", "(2 inner) width 1 -> (2 inner) width"),
    Rule("conv.up_conv.bias", "conv_pw1.bias", "(2 inner)"),
    Rule("conv.depth_conv.conv.weight", "conv_dw.weight", "inner 1 conv_kernel -> inner conv_kernel"),
    *folded("conv.batch_norm", "conv_norm", "inner"),
    Rule("conv.down_conv.weight", "conv_pw2.weight", "width inner 1 -> width inner"),
    Rule("conv.down_conv.bias", "conv_pw2.bias", "width"),
    *norm("ff2.pre_norm", "ffn_norm_1"),
    *linear("ff2.up_proj", "ffn_up_1", "ffn", "width"),
    *linear("ff2.down_proj", "ffn_down_1", "width", "ffn"),
    *norm("post_norm", "ln2"),
)

FAMILY = Family(
    title="Granite Speech",
    projector="granite_speech",
    base=MTMD,
    values=(
        Value("audio.projection", "text_config.hidden_size", 4096),
        Value("audio.width", "encoder_config.hidden_dim", 1024),
        Value("ffn_ratio", "encoder_config.feedforward_mult", 4),
        Value("audio.ffn", of=lambda v: v["audio.width"] * v["ffn_ratio"]),
        Value("audio.blocks", "encoder_config.num_layers", 10),
        Value("audio.heads", "encoder_config.num_heads", 8),
        Value("audio.head", of=lambda v: v["audio.width"] // v["audio.heads"]),
        Value("audio.epsilon", default=1e-5),
        Value("audio.mel_bins", "encoder_config.input_dim", 160),
        Value("audio.context", "encoder_config.context_size", 200),
        Value("audio.conv_kernel", "encoder_config.conv_kernel_size", 15),
        Value("audio.max_distance", "encoder_config.max_pos_emb", 512),
        Value("audio.distances", of=lambda v: 2 * v["audio.max_distance"] + 1),
        Value("audio.query_window", "window_size", 15),
        Value("audio.query_rate", "downsample_rate", 5),
        Value("audio.query_heads", "projector_config.num_attention_heads", 12),
        Value("audio.queries", of=queries),
        Value("audio.query_blocks", of=lambda v: 2),
        Value("layers", "encoder_config.cat_hidden_layers", [], kind=INTEGERS),
        Value("audio.feature_layer", of=feature_layers, unless=[]),
        Value("audio.features", of=lambda v: v["audio.width"] * (len(v["audio.feature_layer"]) + 1)),
        settled("projector_config.num_hidden_layers", 2),
        settled("projector_config.layer_norm_eps", 1e-12),
        settled("projector_config.hidden_act", "gelu"),
    ),
    sections=(
        Section(TOWER, "a.", linear("input_linear", "input_projection", "width", "mel_bins"), part="audio"),
        Section(TOWER + "layers.{}.", "a.blk.{}.", BLOCK, times="blocks", part="audio"),
        Section(
            TOWER,
            "a.",
            (
                *linear("out", "enc_ctc_out", "letters", "width"),
                *linear("out_mid", "enc_ctc_out_mid", "width", "letters"),
            ),
            part="audio",
        ),
        Section(
            PROJECTOR,
            "a.",
            (
                Rule("query", "proj_query", "1 queries width"),
                *norm("qformer.layernorm", "proj_norm"),
                *linear("linear", "proj_linear", "projection", "width"),
            ),
            part="audio",
        ),
        Section(
            PROJECTOR + "qformer.encoder.layer.{}.",
            "a.proj_blk.{}.",
            q_former_layer(features="features"),
            times="query_blocks",
            part="audio",
        ),
    ),
    left_out=(*LANGUAGE_MODEL, r"(.*\.)?encoder\.(attention_dists$|.*\.num_batches_tracked$)"),
    types=(Types("a.blk.*.conv_*.weight", F32),),
    # llama.cpp's own converter takes the name of another model's variance for the folded norm's.
    mends=Mends(renamed=((".conv_norm_var.", ".conv_norm."),)),
)
