"""Qwen3-TTS, which speaks: an encoder of a voice, what predicts a frame's codes, and what decodes these.

The encoder is ECAPA-TDNN's, for the voice to speak with; llama.cpp loads it as it does other models' ears, and beside
it what speaks (``clip.gen.audio``). The table is longer than others for these two models in one. Names: Qwen's
Qwen3TTSForConditionalGeneration; llama.cpp's ``conversion/qwen3tts.py`` and
``tools/mtmd/models/qwen3tts-{spkenc,gen}.cpp``.
"""

from collections.abc import Mapping
from typing import Any

from clipgguf.errors import ConfigError
from clipgguf.families import qwen3_tts_decoder as decoder
from clipgguf.families.bases import MTMD, settled
from clipgguf.family import Family
from clipgguf.inputs import Inputs
from clipgguf.layers import linear, norm
from clipgguf.table import F32, Prefix, Rule, Section, Types, Value

VOICE = Prefix("mfa.conv.weight", "speaker_encoder.")
TALKER = Prefix("code_predictor.model.norm.weight", "talker.")
PREDICTOR = "talker_config.code_predictor_config"


def hears_a_voice(inputs: Inputs) -> bool:
    """Return true; ConfigError for a model that has voices of its own instead of an encoder."""
    where, found = inputs.find("speaker_encoder_config")
    if found is None:
        raise ConfigError(
            f"{where} is missing, should be an object: llama.cpp runs models that speak with any voice, of "
            "tts_model_type 'base'"
        )
    return True


def acoustic(values: Mapping[str, Any]) -> int:
    """Return how many codes of a frame are predicted; ValueError for a model that is none of 12 Hz."""
    found = values["audio.codes_a_frame"], values["audio.rope_base"]
    if found != (16, 1e6):
        raise ValueError(
            f"{PREDICTOR}: num_code_groups is {found[0]} and rope_theta {found[1]:g}, readers know 16 and 1e+06 only"
        )
    return 15


def block(number: int) -> tuple[Rule, ...]:
    """Return the rules of one of the encoder's blocks, whose channels go through seven convolutions in eight parts."""
    theirs, ours = f"blocks.{number}.", f"blk.{number}."
    return (
        *linear(f"{theirs}tdnn1.conv", f"{ours}conv_pw1", "(8 eighth)", "(8' eighth') 1"),
        *(
            rule
            for unit in range(7)
            for rule in linear(f"{theirs}res2net_block.blocks.{unit}.conv", f"{ours}res2.{unit}", "eighth", "eighth' 3")
        ),
        *linear(f"{theirs}tdnn2.conv", f"{ours}conv_pw2", "(8 eighth)", "(8' eighth') 1"),
        *linear(f"{theirs}se_block.conv1", f"{ours}se_conv1", "squeezed", "(8 eighth) 1"),
        *linear(f"{theirs}se_block.conv2", f"{ours}se_conv2", "(8 eighth)", "squeezed 1"),
    )


FAMILY = Family(
    title="Qwen3-TTS",
    projector_key="audio.projector",
    projector="qwen3tts_spkenc",
    base=MTMD,
    values=(
        Value("audio.hears_a_voice", hears_a_voice),
        Value("audio.projection", "talker_config.hidden_size", 1024),
        Value("audio.mel_bins", default=128),
        # The encoder has no attention; llama.cpp wants the keys.
        Value("audio.blocks", default=3),
        Value("audio.width", default=1536),
        Value("audio.heads", default=1),
        Value("audio.ffn", default=1536),
        Value("audio.epsilon", default=1e-5),
        *(
            settled(f"speaker_encoder_config.{key}", allowed, part="audio")
            for key, allowed in (
                *(("mel_dim", 128), ("sample_rate", 24000), ("enc_res2net_scale", 8)),
                ("enc_dilations", [1, 2, 3, 4, 1]),
            )
        ),
        Value("has_gen_audio", default=True),
        Value("audio.gen_projector", default="qwen3tts_gen"),
        Value("audio.gen_projection", of=lambda v: v["audio.projection"]),
        Value("audio.gen_width", f"{PREDICTOR}.hidden_size", 1024),
        Value("audio.gen_ffn", f"{PREDICTOR}.intermediate_size", 3072),
        Value("audio.gen_blocks", f"{PREDICTOR}.num_hidden_layers", 5),
        Value("audio.gen_heads", f"{PREDICTOR}.num_attention_heads", 16),
        Value("audio.gen_kv_heads", f"{PREDICTOR}.num_key_value_heads", 8),
        Value("audio.gen_head", f"{PREDICTOR}.head_dim", 128),
        Value("audio.gen_epsilon", f"{PREDICTOR}.rms_norm_eps", 1e-6),
        Value("audio.codes_a_frame", f"{PREDICTOR}.num_code_groups", 32),
        Value("audio.rope_base", f"{PREDICTOR}.rope_theta", 10000.0),
        Value("audio.acoustic", of=acoustic, unless=15),
        settled(f"{PREDICTOR}.hidden_act", "silu", part="audio"),
        # A layer between the talker and what predicts is there where they are not of one width.
        Value("audio.narrows", of=lambda v: v["audio.projection"] != v["audio.gen_width"]),
        *decoder.VALUES,
    ),
    sections=(
        Section(
            VOICE,
            "a.",
            (
                *linear("blocks.0.conv", "conv1d.0", "(8 eighth)", "mel_bins 5"),
                *(rule for number in (1, 2, 3) for rule in block(number)),
                *linear("mfa.conv", "conv_out", "features", "(3 8 eighth) 1"),
                *linear("asp.tdnn.conv", "asp_tdnn", "attention", "(3 features) 1"),
                *linear("asp.conv", "asp_attn", "features", "attention 1"),
            ),
            part="audio",
        ),
        Section(VOICE, "mm.a.", linear("fc", "fc", "projection", "(2 features) 1"), part="audio"),
        Section(
            TALKER,
            "a.gen.code.",
            (
                Rule("model.codec_embedding.weight", "out_embd.weight", "entries projection"),
                Rule(
                    "code_predictor.model.codec_embedding.{}.weight",
                    "embd.weight",
                    "codes projection",
                    stack="acoustic",
                ),
                Rule("code_predictor.lm_head.{}.weight", "head.weight", "codes gen_width", stack="acoustic"),
                *norm("code_predictor.model.norm", "output_norm", "gen_width", bias=False),
            ),
            part="audio",
        ),
        Section(
            TALKER,
            "a.gen.code.",
            linear("code_predictor.small_to_mtp_projection", "proj_in", "gen_width", "projection"),
            times="narrows",
            part="audio",
        ),
        Section(
            TALKER + "code_predictor.model.layers.{}.",
            "a.gen.code.blk.{}.",
            (
                *norm("input_layernorm", "ln1", "gen_width", bias=False),
                *linear("self_attn.q_proj", "attn_q", "(gen_heads gen_head)", "gen_width", bias=False),
                *linear("self_attn.k_proj", "attn_k", "(gen_kv_heads gen_head)", "gen_width", bias=False),
                *linear("self_attn.v_proj", "attn_v", "(gen_kv_heads gen_head)", "gen_width", bias=False),
                *norm("self_attn.q_norm", "attn_q_norm", "gen_head", bias=False),
                *norm("self_attn.k_norm", "attn_k_norm", "gen_head", bias=False),
                *linear("self_attn.o_proj", "attn_out", "gen_width", "(gen_heads gen_head)", bias=False),
                *norm("post_attention_layernorm", "ln2", "gen_width", bias=False),
                *linear("mlp.gate_proj", "ffn_gate", "gen_ffn", "gen_width", bias=False),
                *linear("mlp.up_proj", "ffn_up", "gen_ffn", "gen_width", bias=False),
                *linear("mlp.down_proj", "ffn_down", "gen_width", "gen_ffn", bias=False),
            ),
            times="gen_blocks",
            part="audio",
        ),
        *decoder.SECTIONS,
    ),
    left_out=(r"talker\.(?!code_predictor\.|model\.codec_embedding\.)", *decoder.LEFT_OUT),
    folders={"audio": decoder.FOLDER},
    # What goes into these is too large for halves, which ggml would make of it.
    types=(Types("a.gen.code.blk.*.ffn_down.weight", F32), *decoder.TYPES),
)
