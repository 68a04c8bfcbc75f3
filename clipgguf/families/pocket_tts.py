"""Pocket TTS: Mimi's encoder for the voice that is to speak, the flow network that gives latents, Mimi's decoder.

Names: kyutai-labs' pocket_tts; llama.cpp's ``conversion/pockettts.py`` and ``tools/mtmd/models/pockettts-*.cpp``. All
lies in one model.safetensors, in a folder for each language and without a config.json: the tensors' shapes tell the
sizes, and the folder's name is the variant, by which llama.cpp looks up how to sample. No tensor tells the size of a
head, which is 64 in all models that were published. Readers have the strides 4, 5, 6 and 16 built in; the kernels are
twice as long. The embeddings of tokens, and the learned vectors that llama.cpp's converter appends to them, are the
language model's.

It is longer than other tables for four networks that are described nowhere else.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from clipgguf.errors import CheckpointError
from clipgguf.families.bases import MTMD
from clipgguf.family import Family
from clipgguf.inputs import Config, Inputs, parts_of
from clipgguf.layers import linear, norm
from clipgguf.model import Model, open_family
from clipgguf.shape import shape_text
from clipgguf.table import BEGUN, F16, Rule, Section, Types, Value
from clipgguf.tensor import View

ENCODER = "mimi.encoder_transformer.transformer.layers."
HEAD = 64


def transformer(width: str, ffn: str) -> tuple[Rule, ...]:
    """Return a block of Mimi's transformers, whose two residuals are scaled; the words are those of its sizes."""
    return (
        *norm("norm1", "ln1", width),
        Rule(
            "self_attn.in_proj.weight",
            ("attn_q.weight", "attn_k.weight", "attn_v.weight"),
            f"(3 {width}') {width} -> 3 {width}' {width}",
        ),
        *linear("self_attn.out_proj", "attn_out", width, f"{width}'", bias=False),
        Rule("layer_scale_1.scale", "ls1.weight", width),
        *norm("norm2", "ln2", width),
        *linear("linear1", "ffn_up", ffn, width, bias=False),
        *linear("linear2", "ffn_down", width, ffn, bias=False),
        Rule("layer_scale_2.scale", "ls2.weight", width),
    )


def residual(theirs: str, ours: str, stage: int) -> tuple[Rule, ...]:
    """Return SEANet's residual unit of a stage: a convolution to fewer channels, and one of a single step back."""
    return (
        *linear(f"{theirs}.block.1.conv", f"{ours}.res_conv1", f"hidden_{stage}", f"stage_{stage} 3"),
        *linear(f"{theirs}.block.3.conv", f"{ours}.res_conv2", f"stage_{stage}", f"hidden_{stage} 1"),
    )


def seanet_encoder() -> Iterator[Rule]:
    """Yield SEANet's encoder: activations without weights have numbers, too. Each stage has longer strides."""
    yield from linear("0.conv", "conv_in", "stage_0", "1 7")
    for i, stride in enumerate((4, 5, 6)):
        yield from residual(f"{3 * i + 1}", f"blk.{i}", i)
        yield from linear(f"{3 * i + 3}.conv", f"blk.{i}.scale_conv", f"stage_{i + 1}", f"stage_{i} {2 * stride}")
    yield from linear("11.conv", "conv_out", "width", "stage_3 3")


def seanet_decoder() -> Iterator[Rule]:
    """Yield SEANet's decoder, the encoder backwards; transposed convolutions have their input's channels first."""
    yield from linear("0.conv", "conv_in", "stage_3", "gen_width 7")
    for i, stride in enumerate((6, 5, 4)):
        wide, narrow = f"stage_{3 - i}", f"stage_{2 - i}"
        yield Rule(f"{3 * i + 2}.convtr.weight", f"blk.{i}.scale_conv.weight", f"{wide} {narrow} {2 * stride}")
        yield Rule(f"{3 * i + 2}.convtr.bias", f"blk.{i}.scale_conv.bias", narrow)
        yield from residual(f"{3 * i + 3}", f"blk.{i}", 2 - i)
    yield from linear("11.conv", "conv_out", "1", "stage_0 3")


FLOW = (
    *linear("input_proj", "input_proj", "flow", "latent"),
    *linear("cond_embed", "cond_embd", "flow", "projection"),
    *linear("final_layer.adaLN_modulation.1", "final.ada", "(2 flow)", "flow'"),
    *linear("final_layer.linear", "final.proj", "latent", "flow"),
    # Of the time at which a step begins, and at which it ends.
    *(
        rule
        for i in range(2)
        for rule in (
            Rule(f"time_embed.{i}.freqs", f"time.{i}.freqs", "frequencies"),
            *linear(f"time_embed.{i}.mlp.0", f"time.{i}.up", "flow", "(2 frequencies)"),
            *linear(f"time_embed.{i}.mlp.2", f"time.{i}.down", "flow", "flow'"),
            Rule(f"time_embed.{i}.mlp.3.alpha", f"time.{i}.norm", "flow"),
        )
    ),
)
FLOW_BLOCK = (
    *norm("in_ln", "norm", "flow"),
    *linear("mlp.0", "up", "flow", "flow'"),
    *linear("mlp.2", "down", "flow", "flow'"),
    *linear("adaLN_modulation.1", "ada", "(3 flow)", "flow'"),
)
VALUES = (
    Value("audio.projection", "projection", kind=int),
    Value("audio.blocks", "blocks", kind=int),
    Value("audio.width", "width", kind=int),
    Value("audio.ffn", "ffn", kind=int),
    Value("audio.heads", of=lambda v: v["audio.width"] // HEAD),
    Value("audio.epsilon", default=1e-5),
    # The waveform itself.
    Value("audio.mel_bins", default=1),
    Value("has_gen_audio", default=True),
    Value("audio.gen_projector", default="pockettts_gen"),
    # Mimi's decoder has the sizes of its encoder.
    Value("audio.gen_projection", of=lambda v: v["audio.projection"]),
    Value("audio.gen_width", of=lambda v: v["audio.width"]),
    Value("audio.gen_ffn", of=lambda v: v["audio.ffn"]),
    Value("audio.gen_blocks", of=lambda v: v["audio.blocks"]),
    Value("audio.gen_heads", of=lambda v: v["audio.heads"]),
    Value("audio.gen_epsilon", default=1e-5),
    Value("audio.gen_variant", lambda inputs: inputs.directory.title),
)
SECTIONS = (
    Section("mimi.encoder.model.", "a.seanet.", tuple(seanet_encoder())),
    Section(f"{ENCODER}{{}}.", "a.blk.{}.", transformer("width", "ffn"), times="blocks"),
    Section("mimi.", "a.", linear("downsample.conv.conv", "downsample.conv", "latent", "width 32", bias=False)),
    Section("flow_lm.", "a.", (Rule("speaker_proj_weight", "speaker_proj.weight", "projection latent"),)),
    Section("flow_lm.flow_net.", "a.gen.flow.", FLOW),
    Section("flow_lm.flow_net.res_blocks.{}.", "a.gen.flow.blk.{}.", FLOW_BLOCK, times=BEGUN),
    Section(
        "flow_lm.",
        "a.gen.",
        (
            *linear("out_eos", "out_eos", "1", "projection"),
            *linear("input_linear", "input_linear", "projection", "latent", bias=False),
            Rule("emb_mean", "emb_mean", "latent"),
            Rule("emb_std", "emb_std", "latent"),
        ),
    ),
    Section(
        "mimi.",
        "a.gen.wav.",
        (
            Rule("quantizer.output_proj.weight", "quant_out.weight", "gen_width latent 1 -> gen_width latent"),
            Rule("upsample.convtr.convtr.weight", "upsample.weight", "gen_width 1 32"),
        ),
    ),
    Section(
        "mimi.decoder_transformer.transformer.layers.{}.",
        "a.gen.wav.tfm.blk.{}.",
        transformer("gen_width", "gen_ffn"),
        times="gen_blocks",
    ),
    Section("mimi.decoder.model.", "a.gen.wav.seanet.", tuple(seanet_decoder())),
)
FAMILY = Family(
    title="Pocket TTS",
    projector="pockettts_spkenc",
    projector_key="audio.projector",
    base=MTMD,
    values=VALUES,
    sections=tuple(replace(section, part="audio") for section in SECTIONS),
    left_out=(r"flow_lm\.(bos_emb$|bos_before_voice$|conditioner\.|out_norm\.|transformer\.)",),
    # As llama.cpp's converter has them, for convolutions that have no way for bf16.
    types=(
        Types("a.*seanet.*.weight", F16),
        Types("a.downsample.conv.weight", F16),
        Types("a.gen.wav.upsample.weight", F16),
    ),
)


def open_model(inputs: Inputs) -> Model:
    """Open a checkpoint, whose sizes its tensors tell: ConfigError or CheckpointError with all that is wrong."""
    checkpoint = inputs.open_checkpoint(lambda name: not FAMILY.leaves_out(name))
    sizes = _sizes(checkpoint.tensors, str(inputs.directory))
    inputs = replace(inputs, config=Config(checkpoint.container, sizes))
    return open_family(parts_of(FAMILY, inputs), inputs)


def _sizes(tensors: Mapping[str, View], where: str) -> dict[str, Any]:
    """Return what other families' config.json tells, by the shapes of three tensors and the numbers of blocks."""
    found: dict[str, Any] = {}
    problems = []
    for size, name, axes in (
        ("projection", "flow_lm.speaker_proj_weight", 2),
        ("width", f"{ENCODER}0.norm1.weight", 1),
        ("ffn", f"{ENCODER}0.linear1.weight", 2),
    ):
        if name not in tensors:
            problems.append(f"{where}: no file has tensor {name!r}, whose shape should tell the size {size}")
        elif len(shape := tensors[name].shape) != axes or (size == "width" and shape[0] % HEAD):
            asked = f"{axes} axes" if axes > 1 else f"one axis, a multiple of {HEAD}"
            has = f"tensor {name!r} has shape {shape_text(shape)}"
            problems.append(f"{tensors[name].file}: {has}, Pocket TTS asks for {asked}")
        else:
            found[size] = shape[0]
    CheckpointError.raise_all(problems)
    # Longer numbers are unknown names.
    numbers = (re.match(rf"{re.escape(ENCODER)}([0-9]{{1,9}})\.", name) for name in tensors)
    found["blocks"] = max(int(match[1]) for match in numbers if match) + 1
    return found
