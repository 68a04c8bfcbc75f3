"""MiniCPM-V 2.5 to 4.5, and the image part of MiniCPM-o: a SigLIP tower, and queries that attend to its features.

Names: openbmb's MiniCPMV and MiniCPMO (``modeling_minicpmv.py``, ``resampler.py``). Files: llama.cpp's
``tools/mtmd/legacy-models/minicpmv-convert-image-encoder-to-gguf.py``, and ``docs/multimodal/minicpm*.md`` for the
versions. MiniCPM-V 2.0 has timm's tower, and is not supported. It is longer than other tables for the versions, and a
table of positions that is computed.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from clipgguf.config import SIGLIP_STATISTICS
from clipgguf.errors import ConfigError, shown
from clipgguf.families.bases import LANGUAGE_MODEL, SCRIPT, statistics
from clipgguf.families.tower_tables import POST_NORM, SCRIPT_BLOCK, SIGLIP_EMBEDDINGS, TOWER
from clipgguf.family import Family
from clipgguf.inputs import Inputs
from clipgguf.layers import linear, norm
from clipgguf.table import Prefix, Rule, Section, Value
from clipgguf.tensor import Computed, Read, View

if TYPE_CHECKING:
    from numpy.typing import NDArray

RESAMPLER = Prefix("ln_kv.weight", "resampler.")

# What llama.cpp calls the models, by model_type and version.
VERSIONS = {
    ("minicpmv", "2.5"): 2,
    ("minicpmv", "2.6"): 3,
    ("minicpmo", "2.6"): 4,
    ("minicpmv", "4.0"): 5,
    ("minicpmv", "4.5"): 6,
    ("minicpmo", "4.0"): 6,
    ("minicpmo", "4.5"): 100045,
}
# The side of the largest grid of patches whose positions are written.
_GRID = 70


def version(inputs: Inputs) -> int:
    """Return llama.cpp's number of a model."""
    where, found = inputs.find("version")
    model_type = inputs.config.get("model_type")
    key = (model_type, "2.5" if found is None else f"{found}.0" if isinstance(found, int) else str(found))
    if key not in VERSIONS:
        known = ", ".join(version for name, version in VERSIONS if name == model_type)
        raise ConfigError(f"{where} is {shown(found)}, supported of model_type {shown(model_type)} are {known}")
    return VERSIONS[key]


def resampler_heads(values: Mapping[str, Any]) -> int:
    """Return how many heads the resampler has; llama.cpp's graph has them of 128 values."""
    if values["vision.embed"] % 128:
        raise ValueError(f"hidden_size is {values['vision.embed']:,}, should be a multiple of 128")
    return int(values["vision.embed"] // 128)


def grid_positions(view: View, shape: tuple[int, ...], values: Mapping[str, Any]) -> Computed:
    """Return sines and cosines of the columns and rows of a grid of patches, of the width of the resampler."""
    width = shape[0]

    def rows(read: Read, start: int, stop: int) -> "NDArray[Any]":
        import numpy as np  # When the first weights are read, not before.

        omega = np.arange(width // 4, dtype=np.float32)
        omega /= width / 4
        omega = (1 / 10000**omega).astype(np.float32)
        places = np.arange(start, stop)
        angles = [np.outer(place.astype(np.float32), omega) for place in (places % _GRID, places // _GRID)]
        return np.concatenate([f(angle) for angle in angles for f in (np.sin, np.cos)], axis=1)

    return Computed("resampler.pos_embed_k", (_GRID**2, width), (view,), rows)


FAMILY = Family(
    title="MiniCPM-V",
    projector="resampler",
    description="image encoder for MiniCPM-V",
    base=SCRIPT,
    values=(
        Value("has_text", default=False),
        Value("has_vision", default=True),
        Value("has_minicpmv", default=True),
        Value("minicpmv_version", version),
        Value("vision.image", "image_size", 448),
        Value("vision.patch", "vision_config.patch_size", 14),
        Value("vision.channels", "vision_config.num_channels", 3),
        Value("vision.width", "vision_config.hidden_size", 1152),
        Value("vision.ffn", "vision_config.intermediate_size", 4304),
        # The width of the output is that of a tensor.
        Value("vision.projection", default=0),
        Value("vision.heads", "vision_config.num_attention_heads", 16),
        Value("vision.epsilon", "vision_config.layer_norm_eps", 1e-6),
        Value("vision.blocks", "vision_config.num_hidden_layers", 27),
        Value("vision.side", "vision_config.image_size", 980),
        Value("vision.positions", of=lambda v: (v["vision.side"] // v["vision.patch"]) ** 2),
        Value("vision.embed", "hidden_size", kind=int),
        Value("resampler_heads", of=resampler_heads),
        Value("vision.queries", "query_num", 64, told=lambda v: v["minicpmv_queries"]),
        Value("minicpmv_queries", of=lambda v: v["vision.queries"]),
        *statistics(SIGLIP_STATISTICS),
        Value("gelu", default=True),
    ),
    sections=(
        Section(
            RESAMPLER,
            "resampler.",
            (
                Rule("query", "query", "queries embed"),
                Rule("proj", "pos_embed_k", "embed embed'", then=grid_positions, becomes=f"{_GRID**2} embed"),
                Rule("proj", "proj.weight", "embed embed' -> embed' embed"),
                *linear("kv_proj", "kv", "embed", "width", bias=False),
                *(
                    Rule(f"attn.in_proj_{kind}", tuple(f"attn.{name}.{kind}" for name in "qkv"), shape)
                    for kind, shape in (
                        ("weight", "(3 embed') embed -> 3 embed' embed"),
                        ("bias", "(3 embed) -> 3 embed"),
                    )
                ),
                *linear("attn.out_proj", "attn.out", "embed", "embed'"),
                *norm("ln_q", "ln_q", "embed"),
                *norm("ln_kv", "ln_kv", "embed"),
                *norm("ln_post", "ln_post", "embed"),
            ),
        ),
        Section(TOWER, "v.", SIGLIP_EMBEDDINGS),
        Section(TOWER + "encoder.layers.{}.", "v.blk.{}.", SCRIPT_BLOCK, times="blocks"),
        Section(TOWER, "v.", POST_NORM),
    ),
    tokens=lambda _, values: int(values["minicpmv_queries"]),
    left_out=(*LANGUAGE_MODEL, r"llm\.", r"vpm\.head\."),
    noted=(
        (r"(apm|audio_projection_layer|audio_avg_pooler|tts)\.", "{count} tensors of the audio parts are left out"),
    ),
)
