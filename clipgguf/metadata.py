"""The metadata of a GGUF file: keys, types and values in order, as clip.cpp, PowerInfer and llama.cpp look them up.

The keys are those of llama.cpp's ``tools/mtmd/clip-impl.h`` (``KEY_*``) and clip.cpp's ``clip.cpp``.
"""

from collections.abc import Callable, Mapping
from typing import Any

from gguf import GGML_QUANT_VERSION, GGUFValueType

from clipgguf.checkpoint.gguf_file import MetadataItem
from clipgguf.config import KNOWN_ACTIVATIONS, ImageStatistics
from clipgguf.element_types import OUTTYPES, file_type
from clipgguf.families import Model, Projector
from clipgguf.names import TEXT, VISION, Tower


def make_metadata(model: Model, outtype: str, projection_dims: Mapping[Tower, int]) -> tuple[MetadataItem, ...]:
    """Return the metadata in the order of the file; general.architecture, which GGUFWriter adds, comes before it."""
    has_text, has_vision = TEXT in model.content.towers, VISION in model.content.towers
    is_quantized = "Q" in OUTTYPES[outtype][0].name
    items = [
        _bool("clip.has_text_encoder", has_text),
        _bool("clip.has_vision_encoder", has_vision),
        _bool("clip.has_llava_projector", model.projector is not None),
        _uint32("general.file_type", file_type(outtype, is_mmproj=model.projector is not None)),
        # As llama.cpp's own quantization adds it, right where readers of quantized files look.
        *([_uint32("general.quantization_version", GGML_QUANT_VERSION)] if is_quantized else []),
        _string("general.name", model.name),
        _string("general.description", model.content.value[1]),
    ]
    if has_text:
        text = model.text
        assert text is not None
        items += [
            _uint32("clip.text.context_length", text.max_position_embeddings),
            _uint32("clip.text.embedding_length", text.hidden_size),
            _uint32("clip.text.feed_forward_length", text.intermediate_size),
            _uint32("clip.text.projection_dim", projection_dims.get(TEXT, text.projection_dim)),
            _uint32("clip.text.attention.head_count", text.num_attention_heads),
            _float32("clip.text.attention.layer_norm_epsilon", text.layer_norm_eps),
            _uint32("clip.text.block_count", text.num_hidden_layers),
            _string("tokenizer.ggml.tokens", model.vocabulary),
        ]
    if has_vision:
        vision, projector = model.vision, model.projector
        assert vision is not None
        statistics = model.statistics or ImageStatistics()
        items += [
            _uint32("clip.vision.image_size", vision.image_size),
            _uint32("clip.vision.patch_size", vision.patch_size),
            _uint32("clip.vision.embedding_length", vision.hidden_size),
            _uint32("clip.vision.feed_forward_length", vision.intermediate_size),
            _uint32("clip.vision.projection_dim", projection_dims.get(VISION, vision.projection_dim)),
            _uint32("clip.vision.attention.head_count", vision.num_attention_heads),
            _float32("clip.vision.attention.layer_norm_epsilon", vision.layer_norm_eps),
            _uint32("clip.vision.block_count", projector.layers_stored if projector else vision.num_hidden_layers),
            _float32("clip.vision.image_mean", list(statistics.mean)),
            _float32("clip.vision.image_std", list(statistics.std)),
        ]
    # One flag for the whole file; false means quick_gelu. Even in a text-only file it is the vision tower's, if any.
    items.append(_bool("clip.use_gelu", KNOWN_ACTIVATIONS.get(model.hidden_act, False)))
    if model.projector is not None:
        items += _projector_metadata(model.projector)
    # GGUFWriter leaves out an empty string without a word; so does the plan, which must say what the file will have.
    return tuple(item for item in items if item.value != "")


def _projector_metadata(projector: Projector) -> list[MetadataItem]:
    """Return what llama.cpp asks for beyond the torch script's metadata; older readers ignore it."""
    items = [
        # Without it llama.cpp refuses the file: https://github.com/ggml-org/llama.cpp/issues/17138.
        _string("clip.projector_type", projector.projector_type),
        # Without it llama.cpp runs one block fewer than block_count:
        # https://github.com/ggml-org/llama.cpp/issues/25817.
        _int32("clip.vision.feature_layer", [projector.layers_run]),
    ]
    if projector.grid_pinpoints:
        items.append(_int32("clip.vision.image_grid_pinpoints", list(projector.grid_pinpoints)))
    if projector.patch_merge_type:
        items.append(_string("clip.vision.mm_patch_merge_type", projector.patch_merge_type))
    return items


def _item_maker(value_type: GGUFValueType) -> Callable[[str, Any], MetadataItem]:
    return lambda key, value: MetadataItem(key, value_type, value)


_bool = _item_maker(GGUFValueType.BOOL)
_uint32 = _item_maker(GGUFValueType.UINT32)
_float32 = _item_maker(GGUFValueType.FLOAT32)
_string = _item_maker(GGUFValueType.STRING)
_int32 = _item_maker(GGUFValueType.INT32)
