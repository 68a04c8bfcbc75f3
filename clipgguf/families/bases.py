"""What the files of one origin have in common: those of the torch script, and of llama.cpp's mtmd."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from clipgguf.config import ImageStatistics
from clipgguf.errors import ConfigError, shown
from clipgguf.family import Base
from clipgguf.inputs import Inputs
from clipgguf.table import F16, F32, OUTTYPE, Types, Value

_PROJECTOR_NOTE = "the projector's matrices stay f16, as the torch script writes them"
# The script that clip.cpp, PowerInfer and LLaVA came with (``convert_hf_to_gguf.py`` of clip.cpp, later llama.cpp's
# ``legacy-models/convert_image_encoder_to_gguf.py``): axes of length 1 vanish.
SCRIPT = Base(
    squeezes=True,
    always_versioned=False,
    types=(
        Types("*", F16, axes=4, note="{name} stays f16: ggml's convolution takes no other kernel"),
        Types("mm.*", OUTTYPE, axes=2, in_f32=F16, note=_PROJECTOR_NOTE),
        # A depthwise convolution's kernel, (channels, 1, 3, 3): llama.cpp aborts on f32.
        Types("mm.*", F16, axes=3),
        Types("*token_embd.weight", F16, axes=2, in_f32=F32),
        Types("*position_embd.weight", F16, axes=2, in_f32=F32),
        Types("*.weight", OUTTYPE, axes=2),
        Types("*", F32),
    ),
    values=(Value("name", lambda inputs: inputs.name),),
)

# llama.cpp's convert_hf_to_gguf.py with --mmproj (``conversion/base.py``, MmprojModel).
MTMD = Base(
    squeezes=False,
    always_versioned=True,
    has_card=True,
    types=(
        Types("*", F32, axes=0),
        Types("*", F32, axes=1),
        Types("*_norm.weight", F32),
        Types("*.patch_embd.weight*", F32, in_f16=F16),
        Types("*.patch_merger.weight", F32, in_f16=F16),
        Types("[va].position_embd.weight", F32),
        Types("*.weight", OUTTYPE),
        Types("*", F32),
    ),
    values=(
        Value("type", default="mmproj"),
        Value("name", lambda inputs: inputs.name),
        Value("has_vision", default=True),
        Value("has_audio", default=True),
    ),
)


# llama.cpp has one GELU for torch's exact one and its approximation.
_GELU, _SILU = ("gelu", "gelu_new", "gelu_pytorch_tanh"), ("silu", "swish")


def activation(source: str, default: str) -> tuple[Value, Value, Value]:
    """Return the values that tell GELU and SiLU; readers take quick GELU for what is neither.

    ``source`` is where config.json names it, ``default`` what it is where that is missing. What no reader knows is
    refused.
    """

    def gelu(values: Mapping[str, Any]) -> bool:
        name = values["activation"]
        if name not in (*_GELU, *_SILU, "quick_gelu"):
            known = ", ".join(map(repr, (*_GELU, *_SILU, "quick_gelu")))
            raise ValueError(f"readers do not know the activation {shown(name)}, known are {known}")
        return name in _GELU

    return (
        Value("activation", source, default),
        Value("gelu", of=gelu, unless=False),
        Value("silu", of=lambda v: v["activation"] in _SILU, unless=False),
    )


def settled(source: str, *allowed: Any, part: str = "", is_size: bool = False) -> Value:
    """Return the value of a setting that readers take for granted: where config.json has it, it must be one of these.

    It is not written. That of a ``part`` matters to files with this part alone. Of a size that readers have built in a
    warning is enough: they say themselves that another does not fit.
    """

    def setting(inputs: Inputs) -> Any:
        where, found = inputs.find(source)
        if found is not None and not any(found == value and type(found) is type(value) for value in allowed):
            known = " or ".join(map(repr, allowed))
            if not is_size:
                raise ConfigError(f"{where} is {shown(found)}, which readers would compute wrongly; they know {known}")
            inputs.warnings.append(f"{where} is {shown(found)}, readers take {known} alone")
        return found

    return Value(f"{part}.{source.rpartition('.')[2]}" if part else source, setting)


def inside(place: str, value: Value, *, or_not: bool = False) -> Value:
    """Return a value whose paths in config.json are inside an object there, or with ``or_not`` perhaps not."""
    if not isinstance(value.source, str):
        return value
    paths = value.source.split("|")
    within = [path if path.startswith("processor.") else f"{place}.{path}" for path in paths]
    return replace(value, source="|".join(dict.fromkeys((*within, *(paths if or_not else ())))))


# What the language model's tensors begin with, in the spellings of transformers and of the hub.
LANGUAGE_MODEL = (r"(model\.)?language_model\.", r"(model\.)?lm_head\.", r"model\.(layers|embed_tokens|norm)\.")


def statistics(default: ImageStatistics) -> tuple[Value, Value]:
    """Return the values of the image processor's mean and standard deviation, with a family's own as the default."""
    return (
        Value("vision.mean", lambda inputs: inputs.image_statistics(default).mean),
        Value("vision.std", lambda inputs: inputs.image_statistics(default).std),
    )
