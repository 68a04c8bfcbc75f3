"""Granite 4 Vision: SigLIP's tower, and a Q-Former for each layer of the language model that takes features.

Names: transformers' Granite4VisionForConditionalGeneration; llama.cpp's ``conversion/granite.py`` and ``tools/mtmd``.
llama.cpp's converter sorts deepstack_layer_map before it counts the projectors, and takes a layer from the front for
the block of that number; transformers counts as it stands, and hidden states from 1 on. Published models, whose map is
sorted and counts from the back, are the same either way. The table is long for what the configuration says of them.
"""

from collections.abc import Callable, Mapping
from typing import Any

from clipgguf.config import SIGLIP_STATISTICS
from clipgguf.errors import shown
from clipgguf.families.bases import LANGUAGE_MODEL, MTMD, statistics
from clipgguf.families.llava_settings import HF_DEFAULT_PINPOINTS
from clipgguf.families.q_former_tables import q_former_layer
from clipgguf.families.tower_tables import MODERN_BLOCK, POST_NORM, SIGLIP_EMBEDDINGS, SIGLIP_HEAD, TOWER
from clipgguf.family import Family
from clipgguf.layers import linear, norm
from clipgguf.table import INTEGERS, Prefix, Rule, Section, Value

PROJECTOR = Prefix("image_newline", "model.")


def projectors(values: Mapping[str, Any]) -> list[tuple[int, bool, int]]:
    """Return of each projector its block's number, whether it is spatial, and its number among those of its kind.

    They are in the order of the language model's layers.
    """
    blocks = values["vision.blocks"]

    def block(key: str, layer: Any) -> int:
        # Hidden states are counted, of which the first is no block's.
        numbers = range(1, blocks + 1) if type(layer) is int and layer > 0 else range(-blocks, 0)
        if type(layer) is not int or layer not in numbers:
            raise ValueError(f"{key}: layer {shown(layer)} is none of the tower's {blocks} blocks")
        return numbers.index(layer)

    found = []
    for number, pair in enumerate(values["deepstack"]):
        if not isinstance(pair, list) or len(pair) != 2 or type(pair[1]) is not int:
            raise ValueError(f"deepstack_layer_map has {shown(pair)}, should have pairs of layers")
        found.append((pair[1], block("deepstack_layer_map", pair[0]), False, number))
    for number, layer in enumerate(values["spatial"]):
        found.append((layer, block("spatial_vision_layer", values["spatial_layer"]), True, number))
    found.sort(key=lambda projector: projector[0] % values["text_blocks"] if projector[0] < 0 else projector[0])
    return [projector[1:] for projector in found]


def places(spatial: bool) -> Callable[[Mapping[str, Any]], list[int]]:
    """Return the function that gives the places of one kind's projectors among all of them, in the kind's order."""

    def of(values: Mapping[str, Any]) -> list[int]:
        found = [(number, place) for place, (_, kind, number) in enumerate(values["projectors"]) if kind is spatial]
        return [place for _, place in sorted(found)]

    return of


def told_places(spatial: bool) -> Callable[[Mapping[str, Any]], list[int]]:
    """Return the function that gives the places from what a file tells."""
    return lambda v: [place for place, offset in enumerate(v["vision.spatial_offsets"]) if (offset >= 0) is spatial]


def pinpoints(values: Mapping[str, Any]) -> list[int]:
    """Return the sizes of images, width and height of one after the other; llama.cpp aborts on any but whole tiles."""
    pairs, tile = values["pinpoints"], values["vision.image"]
    for pair in pairs:
        if not isinstance(pair, list | tuple) or len(pair) != 2 or any(type(n) is not int or n < 1 for n in pair):
            raise ValueError(f"image_grid_pinpoints has {shown(pair)}, should have pairs of pixels")
        if any(n % tile or n >= 2**31 for n in pair):
            raise ValueError(f"image_grid_pinpoints has {shown(pair)}, should have multiples of image_size, {tile}")
    return [n for pair in pairs for n in reversed(pair)]


def sides(values: Mapping[str, Any]) -> tuple[int, int]:
    """Return how many queries, and how many patches, a window has along a side, from "4/8"."""
    match values["rate"].split("/"):
        case [query, window] if all(n.isascii() and n.isdecimal() and 0 < int(n) < 2**16 for n in (query, window)):
            return int(query), int(window)
    raise ValueError(f"downsample_rate is {shown(values['rate'])}, should be like '4/8'")


Q_FORMER = (
    Rule("image_positions", "img_pos", "1 (window_side window_side') width"),
    Rule("query", "query", "1 (query_side query_side') width"),
    *norm("norm", "norm"),
    *norm("qformer.layernorm", "post_norm"),
    *q_former_layer("qformer.encoder.layer.0."),
    *linear("out_linear", "linear", "projection", "width"),
)

FAMILY = Family(
    title="Granite 4 Vision",
    projector="granite4_vision",
    base=MTMD,
    values=(
        Value("vision.projection", "text_config.hidden_size", 4096),
        Value("vision.image", "vision_config.image_size", 224),
        Value("vision.patch", "vision_config.patch_size", 16),
        Value("vision.channels", "vision_config.num_channels", 3),
        Value("vision.width", "vision_config.hidden_size", 768),
        Value("vision.ffn", "vision_config.intermediate_size", 3072),
        Value("vision.blocks", "vision_config.num_hidden_layers", 12),
        Value("vision.heads", "vision_config.num_attention_heads", 12),
        Value("vision.epsilon", "vision_config.layer_norm_eps", 1e-6),
        Value("vision.positions", of=lambda v: (v["vision.image"] // v["vision.patch"]) ** 2),
        *statistics(SIGLIP_STATISTICS),
        Value("gelu", default=True),
        Value("vision.preproc_image", of=lambda v: v["vision.image"]),
        Value("rate", "downsample_rate", kind=str),
        Value("vision.query_side", of=lambda v: sides(v)[0]),
        Value("vision.window_side", of=lambda v: sides(v)[1]),
        Value("patches_per_token", of=lambda v: v["vision.window_side"] // v["vision.query_side"]),
        Value("text_blocks", "text_config.num_hidden_layers", 32),
        Value("deepstack", "deepstack_layer_map", []),
        Value("spatial", "spatial_target_layers", [12, 15, 18, 21], kind=INTEGERS),
        Value("spatial_layer", "spatial_vision_layer", -1, kind=object),
        Value("projectors", of=projectors),
        Value("vision.feature_layer", of=lambda v: [block for block, _, _ in v["projectors"]]),
        Value("vision.spatial_offsets", of=lambda v: [n if spatial else -1 for _, spatial, n in v["projectors"]]),
        Value("vision.layerwise", of=places(False), told=told_places(False)),
        Value("vision.spatial", of=places(True), told=told_places(True)),
        Value("pinpoints", "image_grid_pinpoints", list(HF_DEFAULT_PINPOINTS)),
        Value("vision.pinpoints", of=pinpoints),
    ),
    sections=(
        Section(PROJECTOR, "v.", (Rule("image_newline", "image_newline", "projection"),)),
        Section(PROJECTOR + "layerwise_projectors.{}.", "v.proj_blk.{}.", Q_FORMER, times="layerwise"),
        Section(PROJECTOR + "spatial_projectors.{}.", "v.proj_blk.{}.", Q_FORMER, times="spatial"),
        Section(TOWER, "v.", SIGLIP_EMBEDDINGS),
        Section(TOWER + "encoder.layers.{}.", "v.blk.{}.", MODERN_BLOCK, times="blocks"),
        Section(TOWER, "v.", POST_NORM),
    ),
    # Of one tile; the picture cut into tiles has one after each row besides.
    merge="patches_per_token",
    left_out=(*LANGUAGE_MODEL, SIGLIP_HEAD),
)
