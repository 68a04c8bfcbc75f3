"""Element types: what an --outtype means, and which GGML type each tensor of a file gets."""

from collections.abc import Iterable, Mapping

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType

from clipgguf.options import Outtype
from clipgguf.tensor import Tensor

F16 = GGMLQuantizationType.F16
F32 = GGMLQuantizationType.F32
BF16 = GGMLQuantizationType.BF16

# The element type of a file's matrices by its name on the command line, and llama.cpp's number of such files.
OUTTYPES: Mapping[Outtype, tuple[GGMLQuantizationType, LlamaFileType]] = {
    "f32": (F32, LlamaFileType.ALL_F32),
    "f16": (F16, LlamaFileType.MOSTLY_F16),
    "bf16": (BF16, LlamaFileType.MOSTLY_BF16),
    "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
    "q5_1": (GGMLQuantizationType.Q5_1, LlamaFileType.MOSTLY_Q5_1),
    "q5_0": (GGMLQuantizationType.Q5_0, LlamaFileType.MOSTLY_Q5_0),
    "q4_1": (GGMLQuantizationType.Q4_1, LlamaFileType.MOSTLY_Q4_1),
    "q4_0": (GGMLQuantizationType.Q4_0, LlamaFileType.MOSTLY_Q4_0),
}
# The matrices that clip.cpp takes, which alone reads CLIP's towers: all of these but bf16.
CLIP_CPP_TYPES = frozenset(kind for kind, _ in OUTTYPES.values()) - {BF16}
# The types whose blocks share a scale.
QUANTIZED = frozenset(kind for kind, _ in OUTTYPES.values() if GGML_QUANT_SIZES[kind][0] > 1)


def file_type(outtype: Outtype, *, is_mmproj: bool) -> int:
    """Return what general.file_type says of a file of an outtype.

    clip.cpp takes the number for ggml's of the matrices' type, and refuses others than its own (``get_ftype``);
    llama.cpp, for which mmproj files are, has numbers of its own for files, of which the format's specification speaks.
    The two agree on f32, f16, q4_0 and q4_1.
    """
    matrix_type, number = OUTTYPES[outtype]
    return int(number if is_mmproj or matrix_type not in CLIP_CPP_TYPES else matrix_type)


def resolved(outtype: Outtype, matrices: Iterable[Tensor]) -> Outtype:
    """Return the outtype itself, or for "auto" bf16 where most bytes of the matrices are, else f16."""
    if outtype != "auto":
        return outtype
    nbytes: dict[str, int] = {}
    for matrix in matrices:
        nbytes[matrix.dtype] = nbytes.get(matrix.dtype, 0) + matrix.nbytes
    return "bf16" if max(nbytes, key=nbytes.__getitem__, default="") == "BF16" else "f16"


def ggml_type(name: str, shape: tuple[int, ...]) -> GGMLQuantizationType:
    """Return the element type of that name, or f16 where rows of this shape are no multiple of the type's block."""
    kind = GGMLQuantizationType[name]
    block = GGML_QUANT_SIZES[kind][0]
    return kind if block == 1 or (shape and shape[-1] % block == 0) else F16


def tensor_nbytes(elements: int, ggml_type: GGMLQuantizationType) -> int:
    """Return the bytes of a tensor with so many elements, a whole number of the type's blocks."""
    block_elements, block_nbytes = GGML_QUANT_SIZES[ggml_type]
    return elements // block_elements * block_nbytes
