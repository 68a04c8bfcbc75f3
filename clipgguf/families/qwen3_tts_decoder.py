"""Qwen3-TTS's decoder of codes as tables: sound from 16 codes a frame, which lies in a folder of its own.

Codes are looked up and added, a transformer with a window follows, two convolutions that double the rate, and a decoder
as DAC's, four times: it is longer than other tables for these, and for what no other family computes. Names: Qwen's
Qwen3TTSTokenizerV2Decoder; llama.cpp's ``conversion/qwen3tts.py`` and ``tools/mtmd/models/qwen3tts-gen.cpp``, which
has the numbers of its blocks and the settings below built in.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from clipgguf.families.bases import settled
from clipgguf.layers import linear, norm
from clipgguf.table import F16, F32, INTEGERS, Prefix, Rule, Section, Types, Value
from clipgguf.tensor import Computed, Read, Then, View

if TYPE_CHECKING:
    from numpy.typing import NDArray

FOLDER = "speech_tokenizer"
LEFT_OUT = (rf"{FOLDER}/encoder\.",)
_DECODER = Prefix("pre_conv.conv.weight", f"{FOLDER}/decoder.")
_CONFIG = f"{FOLDER}/decoder_config"

_GRANTED = (
    ("num_hidden_layers", 8),
    ("num_attention_heads", 16),
    ("num_key_value_heads", 16),
    ("num_quantizers", 16),
    ("rms_norm_eps", 1e-5),
    ("rope_theta", 10000, 10000.0),
    ("sliding_window", 72),
    ("hidden_act", "silu"),
    ("upsampling_ratios", [2, 2]),
)


def rates(values: Mapping[str, Any]) -> list[int]:
    """Return by how much each of DAC's blocks raises the rate; ValueError when they are not four."""
    found: list[int] = values["audio.upsample_rates"]
    if len(found) != 4 or min(found) < 1:
        raise ValueError(f"{FOLDER}: upsample_rates is {found}, should be four positive integers, one for each block")
    return found


def _kernel(number: int) -> Value:
    """Return the value of how long a block's kernel is, of which a reader tells the rate."""
    return Value(f"audio.kernel_{number}", of=lambda v: 2 * v["audio.rates"][number])


VALUES = (
    Value("audio.decoder_blocks", of=lambda _: 8),
    Value("audio.doublings", of=lambda _: 2),
    Value("audio.upsample_rates", f"{_CONFIG}.upsample_rates", [8, 5, 4, 3], kind=INTEGERS),
    Value("audio.rates", of=rates),
    *map(_kernel, range(4)),
    *(settled(f"{_CONFIG}.{key}", *allowed, part="audio") for key, *allowed in _GRANTED),
)


def _in_type(values: "NDArray[Any]", dtype: str) -> "NDArray[Any]":
    """Return float32 values rounded to a checkpoint's type where that is shorter, as torch does after every step."""
    import numpy as np

    if dtype == "F16":
        return values.astype(np.float16)
    if dtype != "BF16":
        return values
    bits = values.view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1) & 0xFFFF0000).view(np.float32)
    return np.where(np.isnan(values), values, rounded)


def _snake(*, inverse: bool) -> Then:
    """Return the function that makes e^x of every x, or 1 / (e^x + 1e-9), which SnakeBeta multiplies by.

    The exponentials are rounded rightly; torch's are off by one in the last bit of some.
    """

    def then(view: View, shape: tuple[int, ...], values: Mapping[str, Any]) -> Computed:
        def rows(read: Read, start: int, stop: int) -> "NDArray[Any]":
            import numpy as np

            def in_type(values: "NDArray[Any]") -> "NDArray[Any]":
                return _in_type(values.astype(np.float32), view.dtype).astype(np.float32)

            with np.errstate(all="ignore"):
                made = in_type(np.exp(read(view.rows(start, stop)).astype(np.float64)))
                return in_type(1 / in_type(made + np.float32(1e-9))) if inverse else made

        return Computed(view.name, shape, (view,), rows, relative=5e-7)

    return then


def _entries(total: View, shape: tuple[int, ...], values: Mapping[str, Any], usage: View) -> Computed:
    """Return a codebook's entries: training keeps the sum of what each stands for, and how often that was."""

    def rows(read: Read, start: int, stop: int) -> "NDArray[Any]":
        import numpy as np

        sums, counts = (read(view.rows(start, stop)) for view in (total, usage))
        least = _in_type(np.full(1, 1e-5, np.float32), usage.dtype).astype(counts.dtype)
        with np.errstate(all="ignore"):
            made: NDArray[Any] = sums / np.maximum(counts, least)[:, None]
        return _in_type(made, total.dtype) if made.dtype == np.float32 else made

    return Computed(total.name, shape, (total, usage), rows)


def _transposed(theirs: str, ours: str, into: str, out: str, kernel: str) -> tuple[Rule, Rule]:
    """Return the rules of a transposed convolution, whose weight has the channels that go in first."""
    return (
        Rule(f"{theirs}.conv.weight", f"{ours}.weight", f"{into} {out} {kernel}"),
        Rule(f"{theirs}.conv.bias", f"{ours}.bias", out),
    )


def _activation(theirs: str, ours: str, width: str) -> tuple[Rule, Rule]:
    return (
        Rule(f"{theirs}.alpha", f"{ours}.alpha", width, then=_snake(inverse=False)),
        Rule(f"{theirs}.beta", f"{ours}.beta", width, then=_snake(inverse=True)),
    )


def _quantizer(theirs: str, ours: str, stack: str = "") -> tuple[Rule, Rule, Rule]:
    """Return the rules of codebooks, and of the layers around them, which are convolutions of a single frame."""
    layer = "{}" if stack else "0"
    return (
        Rule(f"{theirs}.input_proj.weight", f"{ours}.in_proj.weight", "entry quantized 1 -> entry quantized"),
        Rule(f"{theirs}.output_proj.weight", f"{ours}.out_proj.weight", "quantized entry 1 -> quantized entry"),
        Rule(
            f"{theirs}.vq.layers.{layer}._codebook.embedding_sum",
            f"{ours}.codebook.weight",
            "codes entry",
            then=_entries,
            beside=(f"{theirs}.vq.layers.{layer}._codebook.cluster_usage",),
            beside_shape="codes",
            stack=stack,
        ),
    )


def _residual(number: int, width: str) -> tuple[Rule, ...]:
    """Return the rules of one of the residual units of a block, which come after its activation and convolution."""
    theirs, ours = str(number + 2), f"res.{number}"
    return (
        *_activation(f"{theirs}.act1", f"{ours}.act1", width),
        *linear(f"{theirs}.conv1.conv", f"{ours}.conv1", width, f"{width}' 7"),
        *_activation(f"{theirs}.act2", f"{ours}.act2", width),
        *linear(f"{theirs}.conv2.conv", f"{ours}.conv2", width, f"{width}' 1"),
    )


def _block(number: int) -> Section:
    """Return one of DAC's blocks; the checkpoint counts them from 1, after the first convolution."""
    into, out = f"channels_{number}", f"channels_{number + 1}"
    return Section(
        _DECODER + f"decoder.{number + 1}.block.",
        f"a.gen.wav.dac.blk.{number}.",
        (
            *_activation("0", "snake", into),
            *_transposed("1", "conv", into, out, f"kernel_{number}"),
            *(rule for unit in range(3) for rule in _residual(unit, out)),
        ),
        part="audio",
    )


_TRANSFORMER = Section(
    _DECODER + "pre_transformer.layers.{}.",
    "a.gen.wav.tfm.blk.{}.",
    (
        *norm("input_layernorm", "ln1", "decoder_width", bias=False),
        *(
            rule
            for name in "qkv"
            for rule in linear(f"self_attn.{name}_proj", f"attn_{name}", "(16 head)", "decoder_width", bias=False)
        ),
        *linear("self_attn.o_proj", "attn_out", "decoder_width", "(16 head)", bias=False),
        Rule("self_attn_layer_scale.scale", "ls1.weight", "decoder_width"),
        *norm("post_attention_layernorm", "ln2", "decoder_width", bias=False),
        *linear("mlp.gate_proj", "ffn_gate", "decoder_ffn", "decoder_width", bias=False),
        *linear("mlp.up_proj", "ffn_up", "decoder_ffn", "decoder_width", bias=False),
        *linear("mlp.down_proj", "ffn_down", "decoder_width", "decoder_ffn", bias=False),
        Rule("mlp_layer_scale.scale", "ls2.weight", "decoder_width"),
    ),
    times="decoder_blocks",
    part="audio",
)
_DOUBLING = Section(
    _DECODER + "upsample.{}.",
    "a.gen.wav.up.blk.{}.",
    (
        *_transposed("0", "conv", "latent", "latent'", "2"),
        *linear("1.dwconv.conv", "dwconv", "latent", "1 7"),
        *norm("1.norm", "norm", "latent"),
        *linear("1.pwconv1", "pw1", "expanded", "latent"),
        *linear("1.pwconv2", "pw2", "latent", "expanded"),
        Rule("1.gamma", "gamma", "latent"),
    ),
    times="doublings",
    part="audio",
)

SECTIONS = (
    Section(
        _DECODER,
        "a.gen.wav.",
        (
            *_quantizer("quantizer.rvq_first", "quant.first"),
            *_quantizer("quantizer.rvq_rest", "quant.rest", stack="acoustic"),
            *linear("pre_conv.conv", "pre_conv", "latent", "quantized 3"),
            *linear("pre_transformer.input_proj", "tfm.in_proj", "decoder_width", "latent"),
            *linear("pre_transformer.output_proj", "tfm.out_proj", "latent", "decoder_width"),
            *norm("pre_transformer.norm", "tfm.output_norm", "decoder_width", bias=False),
        ),
        part="audio",
    ),
    _TRANSFORMER,
    _DOUBLING,
    Section(_DECODER, "a.gen.wav.dac.", linear("decoder.0.conv", "entry", "channels_0", "latent 7"), part="audio"),
    *map(_block, range(4)),
    Section(
        _DECODER,
        "a.gen.wav.dac.",
        (
            *_activation("decoder.5", "post_snake", "channels_4"),
            *linear("decoder.6.conv", "post_conv", "1", "channels_4 7"),
        ),
        part="audio",
    ),
)

# ggml's convolutions want halves, and those that are transposed single precision (``tensor_force_quant``).
TYPES = (
    *(Types(f"a.gen.wav.{name}.weight", F16) for name in ("pre_conv", "dac.entry", "dac.post_conv", "*.dwconv")),
    Types("a.gen.wav.dac.blk.*.conv[12].weight", F16),
    Types("a.gen.wav.*.blk.*.conv.weight", F32),
)
