"""What a conversion will write, before a byte of it exists; it knows names, views and values, and no towers."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gguf import GGML_QUANT_SIZES, GGML_QUANT_VERSION, GGMLQuantizationType, GGUFValueType

from clipgguf import __version__
from clipgguf.checkpoint.gguf_file import ARCHITECTURE, MetadataItem, too_much
from clipgguf.config import LARGEST_UINT32
from clipgguf.element_types import CLIP_CPP_TYPES, OUTTYPES, QUANTIZED, file_type, ggml_type, resolved, tensor_nbytes
from clipgguf.errors import CheckpointError, shown
from clipgguf.family import Family
from clipgguf.general import experts_in, general_metadata
from clipgguf.keys import KEYS
from clipgguf.matching import Output
from clipgguf.model import Model
from clipgguf.options import Outtype
from clipgguf.shape import squeeze
from clipgguf.sources import File
from clipgguf.sources.ahead import stream_ahead
from clipgguf.table import F32
from clipgguf.tensor import Computed, Tensor, View
from clipgguf.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """One tensor of the file: where it comes from and what becomes of it; ``shape`` is row-major."""

    source: Tensor
    name: str
    shape: tuple[int, ...]
    ggml_type: GGMLQuantizationType
    nbytes: int
    # It is not f32 here, and would be with that outtype.
    keeps_more_as_f32: bool = False

    @classmethod
    def copy_of(cls, source: View) -> "PlannedTensor":
        """Plan a GGUF file's tensor to be copied as it is."""
        return cls(source, source.name, source.shape, GGMLQuantizationType[source.dtype], source.nbytes)

    @property
    def elements(self) -> int:
        """How many values the tensor has."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Plan:
    """A whole GGUF file that is not yet written.

    ``warnings`` and ``notes`` are lines for the user, and so is ``found``, what the checkpoint was taken for.
    ``outtype`` is a key of OUTTYPES, or empty where a file's tensors are copied. ``title`` is the checkpoint's name
    where nothing else says it, ``directory`` where the file goes unless it is asked for elsewhere (None: wherever one
    works), and ``commit`` the version of a checkpoint that is on the Hugging Face hub, or from there. ``values`` stands
    for all values of the configuration, by which tensors may be computed.
    """

    file_name: str
    metadata: tuple[MetadataItem, ...]
    tensors: tuple[PlannedTensor, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    found: str = ""
    outtype: str = ""
    title: str = ""
    directory: Path | None = None
    commit: str | None = None
    values: str = ""

    def __post_init__(self) -> None:
        """Raise CheckpointError when the file would be more than the format, ``inspect`` or ``verify`` takes."""
        metadata = self.whole_metadata
        if what := too_much(metadata, [(tensor.name, tensor.shape) for tensor in self.tensors]):
            raise CheckpointError(f"{self.file_name}: would have {what}")
        for key, value in ((i.key, i.value) for i in metadata if i.type_name == "UINT32"):
            if not 0 <= value <= LARGEST_UINT32:
                raise CheckpointError(f"{self.file_name}: {key} would be {shown(value)}, of more than 32 bits")
        for item in metadata:
            if item.value == []:
                raise CheckpointError(f"{self.file_name}: {item.key} would be an empty list, which GGUF cannot have")

    @property
    def whole_metadata(self) -> tuple[MetadataItem, ...]:
        """The metadata with what every file has first, its architecture."""
        return (MetadataItem(ARCHITECTURE, GGUFValueType.STRING, "clip"), *self.metadata)

    @property
    def bytes_in(self) -> int:
        """The bytes of the checkpoint that will be read."""
        return sum(view.nbytes for tensor in self.tensors for view in tensor.source.stored)

    @property
    def bytes_far(self) -> int:
        """Those of them that are not on this machine; what is used twice may come twice."""
        ahead = stream_ahead(part for tensor in self.tensors for part in tensor.source.parts)
        return 0 if ahead is None else ahead.nbytes

    def key(self, head: bytes) -> str | None:
        """Return what plans have in common that give the same bytes, for one whose file begins with ``head``.

        That are the metadata, all tensors, and where each comes from. None where a source has no version.
        """
        import hashlib  # It brings OpenSSL, which takes 3 MiB, and only what is far away has use for it.

        digest = hashlib.sha256(head)
        for tensor in self.tensors:
            for part in tensor.source.parts:
                made = part.rows.__qualname__ if isinstance(part, Computed) else ""
                digest.update(repr((tensor.name, tensor.nbytes, part.name, part.dtype, part.shape, made)).encode())
                for view in part.stored:
                    if view.file.version is None:
                        return None
                    place = view.dtype, view.shape, view.offset, view.strides
                    digest.update(repr((view.file.name, view.file.size, view.file.version, place)).encode())
        digest.update(repr((__version__, self.commit, self.values)).encode())
        return digest.hexdigest()

    @property
    def bytes_out(self) -> int:
        """The bytes of tensor data that will be written, padding not counted."""
        return sum(tensor.nbytes for tensor in self.tensors)


def make_plan(model: Model, outtype: Outtype) -> Plan:
    """Plan the GGUF file for a model; CheckpointError when the file would be too much for its readers here."""
    outtype = resolved(outtype, [output.source for output in model.outputs if len(squeeze(output.shape)) == 2])
    planned = tuple(_planned(model.family, output, outtype) for output in model.outputs)
    general, warnings = list[MetadataItem](), list[str]()
    if model.card is not None:
        experts = experts_in((tensor.name, tensor.shape) for tensor in planned)
        general, warnings = general_metadata(model.card, sum(tensor.elements for tensor in planned), experts)
    dtypes = dict.fromkeys(part.dtype for tensor in planned for part in tensor.source.stored)
    folder = model.place.folder if isinstance(model.place, File) else model.place
    return Plan(
        file_name=f"{model.family.file_prefix}model-{outtype}.gguf",
        metadata=_metadata(model, outtype, general),
        tensors=planned,
        warnings=(*model.warnings, *warnings),
        notes=(*model.notes, *_type_notes(model.family, planned, outtype)),
        found=f"{model.found}, {' and '.join(dtypes)}",
        outtype=outtype,
        title="" if folder is None else folder.title,
        directory=None if folder is None else folder.home,
        commit=None if folder is None else folder.commit,
        values=_values_key(model),
    )


def _values_key(model: Model) -> str:
    """Return what stands for a model's values. The tokens are left out, which the metadata have."""
    values = {name: value for name, value in model.values.items() if not isinstance(value, Vocabulary)}
    return repr((model.family.title, sorted(values.items())))


def _metadata(model: Model, outtype: Outtype, general: Sequence[MetadataItem]) -> tuple[MetadataItem, ...]:
    """Return the metadata in the order of KEYS; the architecture comes before it.

    What is ``general`` comes first, and counts.
    """
    family, matrix_type = model.family, OUTTYPES[outtype][0]
    values = {**model.values, "file_type": file_type(outtype, is_mmproj=bool(family.projector))}
    if family.base.always_versioned or matrix_type in QUANTIZED:
        # As llama.cpp's own quantization adds it, right where readers of quantized files look.
        values["quantization_version"] = GGML_QUANT_VERSION
    unwritten = {value.name for value in family.all_values if values.get(value.name) == value.unless}
    unwritten |= {value.name for value in family.all_values if value.part not in ("", *family.parts)}
    given = {item.key for item in general}
    # An empty string is left out, as gguf-py's add_string does.
    own = (
        key.item(list(values[name]) if isinstance(values[name], tuple) else values[name])
        for name, key in KEYS.items()
        if name not in unwritten and key.key not in given and values.get(name) not in (None, "")
    )
    return (*general, *own)


def _planned(family: Family, output: Output, outtype: Outtype) -> PlannedTensor:
    # Axes of length 1 count for no type; whether they vanish from the file, its base says.
    squeezed = squeeze(output.shape)
    shape = squeezed if family.base.squeezes else output.shape
    row = family.type_of(output.name, len(shape))
    kind, in_f32 = (ggml_type(row.for_outtype(name), shape) for name in (outtype.upper(), F32))
    nbytes = tensor_nbytes(math.prod(shape), kind)
    return PlannedTensor(output.source, output.name, shape, kind, nbytes, kind != in_f32 == GGMLQuantizationType.F32)


def _type_notes(family: Family, planned: Iterable[PlannedTensor], outtype: Outtype) -> list[str]:
    """Return notes about tensors that have not the type that was asked for."""
    asked, notes, odd = OUTTYPES[outtype][0], [], 0
    block = GGML_QUANT_SIZES[asked][0]
    for tensor in planned:
        row = family.type_of(tensor.name, len(tensor.shape))
        wanted = GGMLQuantizationType[row.for_outtype(outtype.upper())]
        if row.note and wanted != asked:
            notes.append(row.note.format(name=tensor.name))
        # What the tables give another type has not fallen back.
        odd += len(tensor.shape) == 2 and wanted == asked != tensor.ggml_type
    if odd:
        notes.append(
            f"{odd} matrices are f16: their rows are no multiple of the {block} elements of a {asked.name} block"
        )
    if not family.projector and asked not in CLIP_CPP_TYPES:
        known = ", ".join(name for name, (taken, _) in OUTTYPES.items() if taken in CLIP_CPP_TYPES)
        notes.append(f"no reader of CLIP's towers takes {outtype}; clip.cpp takes {known}")
    return list(dict.fromkeys(notes))
