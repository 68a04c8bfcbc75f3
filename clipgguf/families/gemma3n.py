"""Gemma 3n: MobileNetV5, a convolutional tower of four stages, and one matrix after an RMS norm.

Names: transformers' Gemma3nForConditionalGeneration, whose tower is timm's mobilenetv5_300m_enc; llama.cpp's
``conversion/gemma.py`` and ``tools/mtmd/models/mobilenetv5.cpp``. The tensors alone tell which blocks a stage has. Of
sound llama.cpp runs nothing, and passes over what a file has of it. It is longer than other tables for the parts that
blocks are made of.
"""

from clipgguf.families import gemma3n_audio
from clipgguf.families.bases import LANGUAGE_MODEL, MTMD
from clipgguf.families.gemma4 import APART
from clipgguf.family import Family, Mends
from clipgguf.inputs import Inputs, checked
from clipgguf.table import BEGUN, F16, F32, Prefix, Rule, Section, Types, Value

TOWER = Prefix("timm_model.conv_stem.conv.weight", "model.vision_tower.") + "timm_model."
PROJECTOR = Prefix("embed_vision.soft_embedding_norm.weight", "model.") + "embed_vision."


def same(**shapes: str) -> tuple[Rule, ...]:
    """Return rules of weights whose names the file has as well, with ``__`` for a dot."""
    names = {f"{name.replace('__', '.')}.weight": shape for name, shape in shapes.items()}
    return tuple(Rule(name, name, shape) for name, shape in names.items())


# What a block is made of: each stands there whole or not at all.
_PARTS = (
    same(conv_exp="mid in 3 3'", bn1="mid", conv_pwl="out mid 1 1", bn2="out"),
    same(dw_start__conv="in 1 start start'", dw_start__bn="in"),
    same(pw_exp__conv="mid in 1 1", pw_exp__bn="mid"),
    same(dw_mid__conv="mid 1 middle middle'", dw_mid__bn="mid"),
    same(pw_proj__conv="out mid 1 1", pw_proj__bn="out"),
    same(
        norm="in",
        attn__query__proj="queries in 1 1",
        attn__key__proj="head in 1 1",
        attn__value__proj="head in 1 1",
        attn__output__proj="in queries 1 1",
    ),
    same(attn__key__down_conv="in 1 down down'", attn__key__norm="in"),
    same(attn__value__down_conv="in 1 down down'", attn__value__norm="in"),
    # llama.cpp multiplies channels of two-dimensional features by it.
    (Rule("layer_scale.gamma", "layer_scale.gamma", "scale -> scale 1 1"),),
)


def image_size(inputs: Inputs) -> int:
    """Return the height of the image processor's images."""
    where, size = inputs.find("processor.size")
    height = 768 if size is None else checked(dict, where, size).get("height", 768)
    return int(checked(int, f"{where}: height", height))


_NOTE = "the kernels of depthwise convolutions stay f16: ggml takes no others"

FAMILY = Family(
    title="Gemma 3n",
    projector="gemma3nv",
    projector_key="vision.projector",
    base=MTMD,
    values=(
        Value("vision.projection", "text_config.hidden_size", 2048),
        Value("vision.image", image_size),
        Value("image_tokens", "processor.image_seq_length", 256),
        Value("vision.patch", of=lambda v: v["vision.image"] // v["image_tokens"] or 1),
        Value("vision.width", "vision_config.hidden_size", 2048),
        # Readers ask for these, and use none of them.
        Value("vision.ffn", default=8192),
        Value("vision.blocks", default=128),
        Value("vision.heads", default=8),
        Value("vision.epsilon", default=1e-6),
        Value("vision.tokens", "vision_config.vocab_size", 128),
        # MobileNetV5 takes pixels in [0, 1], whatever the image processor's file says.
        Value("vision.mean", lambda inputs: inputs.options.image_mean or (0.0, 0.0, 0.0)),
        Value("vision.std", lambda inputs: inputs.options.image_std or (1.0, 1.0, 1.0)),
        *gemma3n_audio.VALUES,
    ),
    sections=(
        Section(PROJECTOR, "mm.", gemma3n_audio.EMBEDDER),
        Section(
            TOWER + "conv_stem.",
            "v.conv_stem.",
            (
                Rule("conv.weight", "conv.weight", "stem 3 side side'"),
                Rule("conv.bias", "conv.bias", "stem -> 1 stem 1 1"),
                Rule("bn.weight", "bn.weight", "stem"),
            ),
        ),
        *(
            Section(
                TOWER + f"blocks.{stage}.{{}}.",
                f"v.blk.{stage}.{{}}.",
                rules,
                times=BEGUN,
                own=("in", "mid", "out", "start", "middle", "queries", "head", "down", "scale"),
            )
            for stage in range(4)
            for rules in _PARTS
        ),
        Section(
            TOWER + "msfa.",
            "v.msfa.",
            same(
                ffn__pw_exp__conv="fused features 1 1",
                ffn__pw_exp__bn="fused",
                ffn__pw_proj__conv="width fused 1 1",
                ffn__pw_proj__bn="width",
                norm="width",
            ),
        ),
        *gemma3n_audio.SECTIONS,
    ),
    mends=Mends(reshaped=((".layer_scale.gamma", "n -> n 1 1"),)),
    # So llama.cpp counts them; the tower gives 16 by 16 features, whatever the image's size.
    tokens=lambda _, values: int(values["vision.image"] // values["vision.patch"]),
    left_out=LANGUAGE_MODEL,
    apart=APART,
    told_by={"audio": "audio_config"},
    unread={"audio": "llama.cpp runs no audio of Gemma 3n yet: it takes the file for images, and passes over the rest"},
    types=(
        Types("v.conv_stem.*", F32),
        # llama.cpp's own converter takes the outtype; llama.cpp then aborts on F32 and BF16.
        Types("v.*dw_*.conv.weight", F16, note=_NOTE),
        Types("v.*.down_conv.weight", F16, note=_NOTE),
        Types("v.*", F16, axes=4, in_f32=F32),
        *gemma3n_audio.TYPES,
    ),
)
