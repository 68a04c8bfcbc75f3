"""What a conversion will write: metadata and tensors in order, worked out before a byte of output exists.

Pure: configuration, headers and options in, a Plan out. Everything that can be wrong with a request is found here.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gguf import GGMLQuantizationType, GGUFValueType, LlamaFileType

from clipgguf.checkpoint import SourceTensor
from clipgguf.config import KNOWN_ACTIVATIONS, ImageStatistics
from clipgguf.encode import SOURCE_DTYPES, TARGET_DTYPES, ggml_type_for
from clipgguf.errors import CheckpointError
from clipgguf.families import Content, Model
from clipgguf.names import (
    NEVER_WRITTEN,
    TEXT,
    VISION,
    ExpectedTensor,
    Tower,
    expected_tensors,
)

# The element type of a file's matrices by its name on the command line, and the number that general.file_type has.
OUTTYPES: Mapping[str, tuple[GGMLQuantizationType, LlamaFileType]] = {
    "f32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    "f16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
}


@dataclass(frozen=True, slots=True)
class MetadataItem:
    """One key of the file's metadata; ``value_type`` is that of the elements where the value is a list."""

    key: str
    value_type: GGUFValueType
    value: Any


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """One tensor of the file: where it comes from and what becomes of it; ``shape`` is row-major and squeezed."""

    source: SourceTensor
    name: str
    shape: tuple[int, ...]
    ggml_type: GGMLQuantizationType
    nbytes: int

    @property
    def elements(self) -> int:
        """How many values the tensor has."""
        return math.prod(self.shape)

    @property
    def outtype_decides(self) -> bool:
        """Whether another --outtype gives this tensor another element type."""
        return ggml_type_for(self.name, self.shape, GGMLQuantizationType.F32) != ggml_type_for(
            self.name, self.shape, GGMLQuantizationType.F16
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """A whole GGUF file that is not yet written. ``warnings`` and ``notes`` are lines for the user."""

    file_name: str
    metadata: tuple[MetadataItem, ...]
    tensors: tuple[PlannedTensor, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def bytes_in(self) -> int:
        """The bytes of the checkpoint that will be read."""
        return sum(tensor.source.nbytes for tensor in self.tensors)

    @property
    def bytes_out(self) -> int:
        """The bytes of tensor data that will be written, padding not counted."""
        return sum(tensor.nbytes for tensor in self.tensors)


def make_plan(model: Model, outtype: str) -> Plan:
    """Plan the GGUF file for a model; ``outtype`` is a key of OUTTYPES.

    Raises CheckpointError with all that is wrong with the tensors: missing, unknown, of a wrong shape or dtype;
    ValueError for an unknown ``outtype``.
    """
    if outtype not in OUTTYPES:
        raise ValueError(f"outtype is {outtype!r}, should be one of {', '.join(OUTTYPES)}")
    matrix_type, file_type = OUTTYPES[outtype]
    warnings: list[str] = []
    notes: list[str] = []
    content, tensors, vocabulary, statistics = model.content, model.tensors, model.vocabulary, model.statistics
    expected = _match(model)
    planned = tuple(_planned(expectation, tensors[expectation.canonical_name], matrix_type) for expectation in expected)
    projection_dims = {
        tower: tensors[tower.projection].shape[0] for tower in content.towers if tower.projection in tensors
    }
    warnings += _projection_warnings(model, projection_dims)
    warnings += _activation_warnings(model)
    if vocabulary is not None and len(vocabulary) != model.text.vocab_size:
        warnings.append(
            f"the vocabulary has {len(vocabulary)} tokens, the token embedding {model.text.vocab_size} rows"
        )
    if statistics is not None and statistics.is_default:
        notes.append("no image processor's file gives image_mean and image_std; CLIP's own are written")
    if matrix_type != GGMLQuantizationType.F16:
        notes += [
            f"{tensor.name} stays f16: ggml's convolution takes no f32 kernel"
            for tensor in planned
            if len(tensor.shape) == 4
        ]
    prefix, _ = content.value
    return Plan(
        file_name=f"{prefix}model-{outtype}.gguf",
        metadata=tuple(_metadata(model, file_type, projection_dims)),
        tensors=planned,
        warnings=tuple(warnings),
        notes=tuple(notes),
    )


def _planned(expectation: ExpectedTensor, source: SourceTensor, matrix_type: GGMLQuantizationType) -> PlannedTensor:
    shape = tuple(axis for axis in source.shape if axis != 1)
    ggml_type = ggml_type_for(expectation.gguf_name, shape, matrix_type)
    nbytes = math.prod(shape) * TARGET_DTYPES[ggml_type].itemsize
    return PlannedTensor(source, expectation.gguf_name, shape, ggml_type, nbytes)


def _match(model: Model) -> list[ExpectedTensor]:
    """Return the tensors that the file must have, after making sure that the checkpoint has them and no others."""
    content, tensors = model.content, model.tensors
    _check_depth(model)
    expected = list(
        expected_tensors(
            model.text if TEXT in content.towers else None,
            model.vision if VISION in content.towers else None,
        )
    )
    problems: list[str] = []
    for expectation in expected:
        source = tensors.get(expectation.canonical_name)
        if source is None:
            problems.append(
                f"{model.directory}: no file has tensor {expectation.canonical_name!r}, "
                f"config.json asks for it with shape {_shape_text(expectation.shape)}"
            )
            continue
        where = f"{source.path}: tensor {source.name!r}"
        if not _shape_fits(source.shape, expectation.shape):
            problems.append(
                f"{where} has shape {_shape_text(source.shape)}, config.json asks for {_shape_text(expectation.shape)}"
            )
        if source.dtype not in SOURCE_DTYPES:
            problems.append(f"{where} is of type {source.dtype}, supported are {', '.join(SOURCE_DTYPES)}")
    projections = {tensors[tower.projection].shape[:1] for tower in content.towers if tower.projection in tensors}
    if len(projections) > 1:
        problems.append(
            f"{model.directory}: {VISION.projection} and {TEXT.projection} have different numbers of rows, "
            f"{tensors[VISION.projection].shape} and {tensors[TEXT.projection].shape}; they should share one space"
        )
    known = {expectation.canonical_name for expectation in expected} | NEVER_WRITTEN
    left_out = [tower for tower in (TEXT, VISION) if tower not in content.towers]
    problems += [
        f"{tensor.path}: tensor {name!r} is unknown, a CLIP model of this configuration has no such tensor"
        for name, tensor in tensors.items()
        if name not in known and not any(tower.owns(name) for tower in left_out)
    ]
    CheckpointError.raise_all(problems)
    return expected


def _check_depth(model: Model) -> None:
    # A config can ask for four thousand million blocks; they are not worth a line each.
    count = len(model.tensors)
    CheckpointError.raise_all(
        f"{model.directory}: config.json asks for {layers:,} blocks in {tower.canonical_prefix[:-1]}, "
        f"the whole checkpoint has {count:,} tensors"
        for tower, layers in ((TEXT, model.text.num_hidden_layers), (VISION, model.vision.num_hidden_layers))
        if tower in model.content.towers and layers > count
    )


def _shape_fits(shape: tuple[int, ...], expected: tuple[int | None, ...]) -> bool:
    return len(shape) == len(expected) and all(
        want is None or have == want for have, want in zip(shape, expected, strict=True)
    )


def _shape_text(shape: tuple[int | None, ...]) -> str:
    return f"({', '.join('any' if axis is None else str(axis) for axis in shape)})"


def _projection_warnings(model: Model, projection_dims: Mapping[Tower, int]) -> list[str]:
    warnings = []
    for tower, key, configured in (
        (TEXT, "text_config", model.text.projection_dim),
        (VISION, "vision_config", model.vision.projection_dim),
    ):
        rows = projection_dims.get(tower, configured)
        if rows != configured:
            warnings.append(
                f"config.json: {key}: projection_dim is {configured}, but {tower.projection} has {rows} rows; "
                f"{rows} is written"
            )
    return warnings


def _activation_warnings(model: Model) -> list[str]:
    text, vision = model.text.hidden_act, model.vision.hidden_act
    if model.content is Content.VISION_ONLY:
        text = vision
    warnings = [
        f"config.json: hidden_act {act!r} is none that readers of the file know; they will compute quick_gelu"
        for act in dict.fromkeys((text, vision))
        if act not in KNOWN_ACTIVATIONS
    ]
    if text != vision:
        warnings.append(
            f"config.json: the text tower's hidden_act is {text!r}, the vision tower's {vision!r}; "
            "the file has one flag for both and tells the vision tower's"
        )
    return warnings


def _metadata(model: Model, file_type: LlamaFileType, projection_dims: Mapping[Tower, int]) -> list[MetadataItem]:
    """Return the metadata in the order of the file; general.architecture, which GGUFWriter adds, comes before it."""
    has_text, has_vision = TEXT in model.content.towers, VISION in model.content.towers
    items = [
        _bool("clip.has_text_encoder", has_text),
        _bool("clip.has_vision_encoder", has_vision),
        _bool("clip.has_llava_projector", False),
        _uint32("general.file_type", int(file_type)),
        _string("general.name", model.name),
        _string("general.description", model.content.value[1]),
    ]
    if has_text:
        text = model.text
        items += [
            _uint32("clip.text.context_length", text.max_position_embeddings),
            _uint32("clip.text.embedding_length", text.hidden_size),
            _uint32("clip.text.feed_forward_length", text.intermediate_size),
            _uint32("clip.text.projection_dim", projection_dims[TEXT]),
            _uint32("clip.text.attention.head_count", text.num_attention_heads),
            _float32("clip.text.attention.layer_norm_epsilon", text.layer_norm_eps),
            _uint32("clip.text.block_count", text.num_hidden_layers),
            _string("tokenizer.ggml.tokens", model.vocabulary),
        ]
    if has_vision:
        vision = model.vision
        statistics = model.statistics or ImageStatistics()
        items += [
            _uint32("clip.vision.image_size", vision.image_size),
            _uint32("clip.vision.patch_size", vision.patch_size),
            _uint32("clip.vision.embedding_length", vision.hidden_size),
            _uint32("clip.vision.feed_forward_length", vision.intermediate_size),
            _uint32("clip.vision.projection_dim", projection_dims[VISION]),
            _uint32("clip.vision.attention.head_count", vision.num_attention_heads),
            _float32("clip.vision.attention.layer_norm_epsilon", vision.layer_norm_eps),
            _uint32("clip.vision.block_count", vision.num_hidden_layers),
            _float32("clip.vision.image_mean", list(statistics.mean)),
            _float32("clip.vision.image_std", list(statistics.std)),
        ]
    # One flag for the whole file; false means quick_gelu. Even in a text-only file it is the vision tower's.
    items.append(_bool("clip.use_gelu", model.vision.hidden_act == "gelu"))
    # GGUFWriter leaves out an empty string without a word; so does the plan, which must say what the file will have.
    return [item for item in items if item.value != ""]


def _item_maker(value_type: GGUFValueType) -> Callable[[str, Any], MetadataItem]:
    return lambda key, value: MetadataItem(key, value_type, value)


_bool = _item_maker(GGUFValueType.BOOL)
_uint32 = _item_maker(GGUFValueType.UINT32)
_float32 = _item_maker(GGUFValueType.FLOAT32)
_string = _item_maker(GGUFValueType.STRING)
