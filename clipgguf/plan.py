"""What a conversion will write: metadata and tensors in order, worked out before a byte of output exists.

Pure: configuration, headers and options in, a Plan out. Everything that can be wrong with a request is found here.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

from clipgguf.checkpoint import SourceTensor
from clipgguf.checkpoint.gguf_file import MetadataItem, too_much
from clipgguf.config import KNOWN_ACTIVATIONS
from clipgguf.element_types import (
    CLIP_CPP_TYPES,
    OUTTYPES,
    PROJECTOR_PREFIX,
    ggml_type_for,
    resolve_outtype,
    squeeze,
    tensor_nbytes,
)
from clipgguf.encode import SOURCE_DTYPES
from clipgguf.errors import CheckpointError, collect, shown
from clipgguf.families import Model
from clipgguf.families.model import refuse_or_warn
from clipgguf.metadata import make_metadata
from clipgguf.names import (
    NEVER_WRITTEN,
    TEXT,
    VISION,
    ExpectedTensor,
    Tower,
    expected_tensors,
)


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """One tensor of the file: where it comes from and what becomes of it; ``shape`` is row-major and squeezed."""

    source: SourceTensor
    name: str
    shape: tuple[int, ...]
    ggml_type: GGMLQuantizationType
    nbytes: int

    @classmethod
    def copy_of(cls, source: SourceTensor) -> "PlannedTensor":
        """Plan a GGUF file's tensor to be copied as it is."""
        return cls(source, source.name, source.shape, GGMLQuantizationType[source.dtype], source.nbytes)

    @property
    def elements(self) -> int:
        """How many values the tensor has."""
        return math.prod(self.shape)

    @property
    def keeps_more_as_f32(self) -> bool:
        """Whether the tensor is not f32 here, and would be with that outtype."""
        as_f32 = ggml_type_for(self.name, self.source.shape, GGMLQuantizationType.F32)
        return as_f32 == GGMLQuantizationType.F32 != self.ggml_type


@dataclass(frozen=True, slots=True)
class Plan:
    """A whole GGUF file that is not yet written.

    ``warnings`` and ``notes`` are lines for the user, and so is ``found``, what the checkpoint was taken for.
    ``outtype`` is a key of OUTTYPES, or empty where a file's tensors are copied.
    """

    file_name: str
    metadata: tuple[MetadataItem, ...]
    tensors: tuple[PlannedTensor, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    found: str = ""
    outtype: str = ""

    def __post_init__(self) -> None:
        """Raise CheckpointError when the file would be more than ``inspect`` and ``verify`` take."""
        # GGUFWriter adds this one.
        metadata = [MetadataItem("general.architecture", GGUFValueType.STRING, "clip"), *self.metadata]
        if what := too_much(metadata, [(tensor.name, tensor.shape) for tensor in self.tensors]):
            raise CheckpointError(f"{self.file_name}: would have {what}")

    @property
    def bytes_in(self) -> int:
        """The bytes of the checkpoint that will be read."""
        return sum(tensor.source.nbytes for tensor in self.tensors)

    @property
    def bytes_out(self) -> int:
        """The bytes of tensor data that will be written, padding not counted."""
        return sum(tensor.nbytes for tensor in self.tensors)


def make_plan(model: Model, outtype: str) -> Plan:
    """Plan the GGUF file for a model; ``outtype`` is a key of OUTTYPES, or "auto".

    Raises CheckpointError with all that is wrong with the tensors: missing, unknown, of a wrong shape or dtype;
    ValueError for an unknown ``outtype``.
    """
    warnings = list(model.warnings)
    notes = list(model.notes)
    content, tensors, vocabulary, statistics = model.content, model.tensors, model.vocabulary, model.statistics
    expected, unknown = _match(model)
    warnings += unknown
    sources = [(e.gguf_name, tensors[e.canonical_name]) for e in expected]
    if model.projector is not None:
        sources = [(tensor.name, tensor.source) for tensor in model.projector.tensors] + sources
    matrices = [(source.dtype, source.nbytes) for _, source in sources if len(squeeze(source.shape)) == 2]
    outtype = resolve_outtype(outtype, matrices)
    matrix_type, _ = OUTTYPES[outtype]
    planned = tuple(_planned(name, source, matrix_type) for name, source in sources)
    projection_dims = {
        tower: tensors[tower.projection].shape[0] for tower in content.towers if tower.projection in tensors
    }
    warnings += _projection_warnings(model, projection_dims)
    warnings += _activation_warnings(model)
    if vocabulary is not None and model.text is not None and len(vocabulary) != model.text.vocab_size:
        warnings.append(
            f"the vocabulary has {len(vocabulary)} tokens, the token embedding {model.text.vocab_size} rows"
        )
    if statistics is not None and statistics.is_default:
        notes.append("no image processor's file gives image_mean and image_std; the family's own are written")
    notes += _type_notes(planned, matrix_type)
    if model.projector is None and matrix_type not in CLIP_CPP_TYPES:
        known = ", ".join(name for name, (taken, _) in OUTTYPES.items() if taken in CLIP_CPP_TYPES)
        notes.append(f"no reader of CLIP's towers takes {outtype}; clip.cpp takes {known}")
    prefix, _ = content.value
    return Plan(
        file_name=f"{prefix}model-{outtype}.gguf",
        metadata=make_metadata(model, outtype, projection_dims),
        tensors=planned,
        warnings=tuple(warnings),
        notes=tuple(notes),
        found=f"{model.found}, {' and '.join(dict.fromkeys(tensor.source.dtype for tensor in planned))}",
        outtype=outtype,
    )


def _type_notes(planned: Iterable[PlannedTensor], matrix_type: GGMLQuantizationType) -> list[str]:
    """Return notes about tensors that have not the type that was asked for."""
    if matrix_type == GGMLQuantizationType.F16:
        return []
    notes = [
        f"{tensor.name} stays f16: ggml's convolution takes no other kernel"
        for tensor in planned
        if len(tensor.shape) == 4
    ]
    if matrix_type == GGMLQuantizationType.F32:
        if any(tensor.name.startswith(PROJECTOR_PREFIX) for tensor in planned):
            notes.append("the projector's matrices stay f16, as the torch script writes them")
        return notes
    block = GGML_QUANT_SIZES[matrix_type][0]
    if odd := sum(len(tensor.shape) == 2 and tensor.shape[-1] % block > 0 for tensor in planned):
        notes.append(
            f"{odd} matrices are f16: their rows are no multiple of the {block} elements of a {matrix_type.name} block"
        )
    return notes


def _planned(name: str, source: SourceTensor, matrix_type: GGMLQuantizationType) -> PlannedTensor:
    shape = squeeze(source.shape)
    ggml_type = ggml_type_for(name, source.shape, matrix_type)
    return PlannedTensor(source, name, shape, ggml_type, tensor_nbytes(math.prod(shape), ggml_type))


def _match(model: Model) -> tuple[list[ExpectedTensor], tuple[str, ...]]:
    """Return CLIP's tensors that the file must have, and warnings, after making sure that the checkpoint has them."""
    content, tensors = model.content, model.tensors
    _check_depth(model)
    complete = list(
        expected_tensors(
            model.text if TEXT in content.towers else None,
            model.vision if VISION in content.towers else None,
        )
    )
    if not model.has_projection:
        complete = [e for e in complete if e.canonical_name not in (VISION.projection, TEXT.projection)]
    expected = complete if model.projector is None else _for_projector(complete, model)
    problems: list[str] = []
    for expectation in expected:
        source = tensors.get(expectation.canonical_name)
        if source is None:
            problems.append(
                f"{model.directory}: no file has tensor {expectation.canonical_name!r}, "
                f"{model.config_file} asks for it with shape {_shape_text(expectation.shape)}"
            )
            continue
        where = f"{source.path}: tensor {source.name!r}"
        if not _shape_fits(source.shape, expectation.shape):
            problems.append(
                f"{where} has shape {_shape_text(source.shape)}, "
                f"{model.config_file} asks for {_shape_text(expectation.shape)}"
            )
        problems += _dtype_problems([source])
    projections = {tensors[tower.projection].shape[:1] for tower in content.towers if tower.projection in tensors}
    if len(projections) > 1:
        problems.append(
            f"{model.directory}: {VISION.projection} and {TEXT.projection} have different numbers of rows, "
            f"{tensors[VISION.projection].shape} and {tensors[TEXT.projection].shape}; they should share one space"
        )
    if model.projector is not None:
        problems += _dtype_problems(tensor.source for tensor in model.projector.tensors)
    known = {expectation.canonical_name for expectation in complete} | NEVER_WRITTEN
    left_out = [tower for tower in (TEXT, VISION) if tower not in content.towers]
    unknown = [
        f"{tensor.path}: tensor {tensor.name!r} is unknown, a CLIP model of this configuration has no such tensor"
        for name, tensor in tensors.items()
        if name not in known and not any(tower.owns(name) for tower in left_out)
    ]
    warnings: tuple[str, ...] = ()
    with collect(problems):
        warnings = refuse_or_warn(unknown, model.ignore_unknown)
    CheckpointError.raise_all(problems)
    return expected, warnings


def _for_projector(complete: list[ExpectedTensor], model: Model) -> list[ExpectedTensor]:
    """Return the tower's tensors that a LLaVA projector needs: no final norm, no projection, no unused block."""
    assert model.vision is not None
    assert model.projector is not None
    shallow = replace(model.vision, num_hidden_layers=model.projector.layers_stored)
    kept = {e.canonical_name for e in expected_tensors(None, shallow)}
    kept -= {VISION.projection, *(f"{VISION.canonical_prefix}{tail}" for tail, _, _ in VISION.final)}
    return [e for e in complete if e.canonical_name in kept]


def _dtype_problems(sources: Iterable[SourceTensor]) -> list[str]:
    return [
        f"{source.path}: tensor {source.name!r} is of type {source.dtype}, supported are {', '.join(SOURCE_DTYPES)}"
        for source in sources
        if source.dtype not in SOURCE_DTYPES
    ]


def _check_depth(model: Model) -> None:
    # A config can ask for four thousand million blocks; they are not worth a line each.
    count = len(model.tensors)
    CheckpointError.raise_all(
        f"{model.directory}: {model.config_file} asks for {layers:,} blocks in {tower.canonical_prefix[:-1]}, "
        f"the whole checkpoint has {count:,} tensors"
        for tower, config in ((TEXT, model.text), (VISION, model.vision))
        if config is not None and tower in model.content.towers and (layers := config.num_hidden_layers) > count
    )


def _shape_fits(shape: tuple[int, ...], expected: tuple[int | None, ...]) -> bool:
    return len(shape) == len(expected) and all(
        have > 0 if want is None else have == want for have, want in zip(shape, expected, strict=True)
    )


def _shape_text(shape: tuple[int | None, ...]) -> str:
    return f"({', '.join('any' if axis is None else str(axis) for axis in shape)})"


def _projection_warnings(model: Model, projection_dims: Mapping[Tower, int]) -> list[str]:
    warnings = []
    for tower, key, config in ((TEXT, "text_config", model.text), (VISION, "vision_config", model.vision)):
        if config is None:
            continue
        configured = config.projection_dim
        rows = projection_dims.get(tower, configured)
        if rows != configured:
            warnings.append(
                f"{model.config_file}: {key}: projection_dim is {configured}, but {tower.projection} has {rows} rows; "
                f"{rows} is written"
            )
    return warnings


def _activation_warnings(model: Model) -> list[str]:
    vision = model.hidden_act
    text = model.text.hidden_act if model.text is not None and TEXT in model.content.towers else vision
    warnings = [
        f"{model.config_file}: hidden_act {shown(act)} is none that readers of the file know; they will compute "
        "quick_gelu"
        for act in dict.fromkeys((text, vision))
        if act not in KNOWN_ACTIVATIONS
    ]
    if text != vision:
        warnings.append(
            f"{model.config_file}: the text tower's hidden_act is {shown(text)}, the vision tower's {shown(vision)}; "
            "the file has one flag for both and tells the vision tower's"
        )
    return warnings
