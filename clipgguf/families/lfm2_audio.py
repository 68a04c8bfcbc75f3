"""LFM2-Audio: NeMo's FastConformer of width 512, and an adapter of two layers after a norm.

Names: LiquidAI's Lfm2AudioForConditionalGeneration (package liquid-audio); llama.cpp's ``conversion/lfm2.py`` and
``tools/mtmd/models/conformer.cpp``, which has the width, the kernel and the subsampling built in. Its converter writes
the width as feed_forward_length, which its reader does not use. The embeddings of sounds go into the file; the parts
that give sound, such as the depthformer, do not.
"""

from clipgguf.batch_norm import folded
from clipgguf.families.bases import MTMD, settled
from clipgguf.families.conformer_tables import TYPES, block, subsampling
from clipgguf.family import Family
from clipgguf.layers import linear, norm, separate_qkv
from clipgguf.table import Prefix, Rule, Section, Value

TOWER = Prefix("pre_encode.out.weight", "conformer.")
ATTENTION = (
    *separate_qkv("self_attn.linear_{}"),
    *linear("self_attn.linear_out", "attn_out", "width", "width'"),
    # The relative positions, which the reader computes, are of the same width.
    *linear("self_attn.linear_pos", "linear_pos", "width", "width'", bias=False),
    Rule("self_attn.pos_bias_u", "pos_bias_u", "heads head"),
    Rule("self_attn.pos_bias_v", "pos_bias_v", "heads head"),
)
CONVOLUTION = (
    Rule("conv.pointwise_conv1.bias", "conv_pw1.bias", "(2 width)"),
    Rule("conv.depthwise_conv.weight", "conv_dw.weight", "width 1 9 -> width 9"),
    Rule("conv.depthwise_conv.bias", "conv_dw.bias", "width"),
    *folded("conv.batch_norm", "conv_norm"),
    Rule("conv.pointwise_conv2.bias", "conv_pw2.bias", "width"),
)

FAMILY = Family(
    title="LFM2-Audio",
    projector="lfm2a",
    base=MTMD,
    values=(
        Value("audio.projection", "lfm.hidden_size", 2048),
        Value("audio.width", "encoder.d_model", 512),
        Value("audio.ffn", of=lambda v: v["audio.width"]),
        Value("audio.blocks", "encoder.n_layers", 17),
        Value("audio.heads", "encoder.n_heads", 8),
        Value("audio.head", of=lambda v: v["audio.width"] // v["audio.heads"]),
        Value("audio.epsilon", default=1e-5),
        Value("audio.mel_bins", "encoder.feat_in", 128),
        # Of the frequencies, halved three times.
        Value("audio.bands", of=lambda v: -(-v["audio.mel_bins"] // 8)),
        settled("encoder.d_model", 512, is_size=True),
        settled("encoder.conv_kernel_size", 9),
        settled("encoder.subsampling", "dw_striding"),
        settled("encoder.subsampling_factor", 8),
    ),
    sections=(
        Section(
            TOWER,
            "a.",
            (
                *subsampling("pre_encode.conv", "channels 1 1"),
                *linear("pre_encode.out", "pre_encode.out", "width", "(channels bands)"),
            ),
            part="audio",
        ),
        Section(TOWER + "layers.{}.", "a.blk.{}.", block(ATTENTION, CONVOLUTION, bias=True), "blocks", part="audio"),
        Section(
            "audio_adapter.model.",
            "mm.a.mlp.",
            (
                *norm("0", "0"),
                *linear("1", "1", "hidden", "width"),
                *linear("3", "3", "projection", "hidden"),
            ),
            part="audio",
        ),
        Section(
            "audio_embedding.",
            "a.",
            (
                Rule("embedding.weight", "position_embd.weight", "codes projection"),
                Rule("embedding_norm.weight", "position_embd_norm.weight", "projection"),
                Rule("to_logits.weight", "embd_to_logits.weight", "codes projection"),
            ),
            part="audio",
        ),
    ),
    left_out=(
        *(r"lfm\.", r"conformer\..*\.num_batches_tracked$"),
        *(r"audio_loss_weights?$", r"codebook_offsets$", r"depth_(embeddings|linear)\.", r"depthformer\."),
    ),
    types=TYPES,
)
