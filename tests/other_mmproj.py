"""mmproj files of families that are neither CLIP's nor LLaVA's: the keys and names that llama.cpp's converter writes.

They are tiny and their tensors are zeros. llama.cpp loads and runs Qwen2-VL's and Gemma 3's; of Gemma 4's there is only
as much as tells what it is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFValueType, GGUFWriter

T = GGUFValueType
Shape = tuple[int, ...]
# The width of the language model.
TEXT_WIDTH = 64


@dataclass(frozen=True)
class Other:
    """A family: the types of its projectors by key, its other keys by type, and its tensors."""

    types: Mapping[str, str]
    keys: Sequence[tuple[str, GGUFValueType, Any]]
    tensors: Mapping[str, Shape]


def _vision(blocks: int, width: int, ffn: int, patch: int, image: int) -> list[tuple[str, GGUFValueType, Any]]:
    numbers = {
        "projection_dim": TEXT_WIDTH, "image_size": image, "patch_size": patch, "embedding_length": width,
        "feed_forward_length": ffn, "block_count": blocks, "attention.head_count": 4,
    }  # fmt: skip
    return [
        ("clip.has_vision_encoder", T.BOOL, True),
        *((f"clip.vision.{key}", T.UINT32, value) for key, value in numbers.items()),
        ("clip.vision.image_mean", T.FLOAT32, [0.5, 0.5, 0.5]),
        ("clip.vision.image_std", T.FLOAT32, [0.5, 0.5, 0.5]),
        ("clip.vision.attention.layer_norm_epsilon", T.FLOAT32, 1e-6),
    ]


def _linear(name: str, out: int, into: int) -> dict[str, Shape]:
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def _norm(name: str, width: int) -> dict[str, Shape]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _block(number: int, width: int, ffn: int) -> dict[str, Shape]:
    prefix = f"v.blk.{number}"
    return {
        **{k: v for part in ("q", "k", "v", "out") for k, v in _linear(f"{prefix}.attn_{part}", width, width).items()},
        **_norm(f"{prefix}.ln1", width),
        **_norm(f"{prefix}.ln2", width),
        **_linear(f"{prefix}.ffn_up", ffn, width),
        **_linear(f"{prefix}.ffn_down", width, ffn),
    }


# Its projector has the names of LLaVA 1.5's.
QWEN2_VL = Other(
    {"clip.projector_type": "qwen2vl_merger"},
    _vision(1, 32, 64, 14, 560),
    {
        "v.patch_embd.weight": (32, 3, 14, 14),
        "v.patch_embd.weight.1": (32, 3, 14, 14),
        **_block(0, 32, 128),
        **_norm("v.post_ln", 32),
        **_linear("mm.0", 128, 128),
        **_linear("mm.2", TEXT_WIDTH, 128),
    },
)
GEMMA3 = Other(
    {"clip.projector_type": "gemma3"},
    [*_vision(2, 48, 96, 14, 56), ("clip.use_gelu", T.BOOL, True)],
    {
        "mm.input_projection.weight": (48, TEXT_WIDTH),
        "mm.soft_emb_norm.weight": (48,),
        "v.patch_embd.weight": (48, 3, 14, 14),
        "v.patch_embd.bias": (48,),
        "v.position_embd.weight": (16, 48),
        **_block(0, 48, 96),
        **_block(1, 48, 96),
        **_norm("v.post_ln", 48),
    },
)
# Which has no clip.projector_type, but one for images and one for audio.
GEMMA4 = Other(
    {"clip.vision.projector_type": "gemma4v", "clip.audio.projector_type": "gemma4a"},
    [*_vision(1, 48, 96, 14, 224), ("clip.has_audio_encoder", T.BOOL, True)],
    {
        "v.patch_embd.weight": (48, 3, 14, 14),
        **_block(0, 48, 96),
        "mm.input_projection.weight": (TEXT_WIDTH, 48),
        "a.conv1d.0.weight": (8, 1, 3, 3),
        "mm.a.input_projection.weight": (TEXT_WIDTH, 48),
    },
)
# Of families that nobody has heard of yet.
OTHERS = {
    "new": replace(QWEN2_VL, types={"clip.projector_type": "new_merger"}),
    "new, two": replace(GEMMA4, types={"clip.vision.projector_type": "newv", "clip.audio.projector_type": "newa"}),
}


def write_other(path: Path, other: Other, *, types: Mapping[str, str] | None = None) -> Path:
    """Write a file of a family, with other types of projectors where they are given."""
    writer = GGUFWriter(path, "clip")
    writer.add_string("general.type", "mmproj")
    writer.add_string("general.name", "Other")
    writer.add_uint32("general.file_type", 1)
    for key, value_type, value in other.keys:
        if isinstance(value, list):
            writer.add_key_value(key, value, T.ARRAY, value_type)
        else:
            writer.add_key_value(key, value, value_type)
    for key, text in (other.types if types is None else types).items():
        writer.add_string(key, text)
    for name, shape in other.tensors.items():
        is_matrix = len(shape) > 1 and name.endswith(".weight") and "embd" not in name
        writer.add_tensor(name, np.zeros(shape, np.float16 if is_matrix else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
