"""The header of a written file is, byte for byte, the one that gguf-py's writer makes."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFEndian, GGUFValueType, GGUFWriter

from clipgguf.checkpoint.gguf_file import ALIGNMENT_KEY, DEFAULT_ALIGNMENT, MetadataItem
from clipgguf.element_types import tensor_nbytes
from clipgguf.header import header
from clipgguf.planning import Plan, PlannedTensor
from clipgguf.sources.local import LocalFile
from clipgguf.tensor import View
from clipgguf.vocabulary import Vocabulary

T = GGUFValueType
TYPES = {"F32": GGMLQuantizationType.F32, "Q4_0": GGMLQuantizationType.Q4_0}
# Of every type of values the smallest and the largest, and what is odd.
VALUES: dict[GGUFValueType, Sequence[Any]] = {
    **{kind: (0, 2**bits - 1) for kind, bits in ((T.UINT8, 8), (T.UINT16, 16), (T.UINT32, 32), (T.UINT64, 64))},
    **{kind: (-(2**bits), 2**bits - 1) for kind, bits in ((T.INT8, 7), (T.INT16, 15), (T.INT32, 31), (T.INT64, 63))},
    T.FLOAT32: (-0.0, 1e-45, 0.1, math.inf, math.nan),
    T.FLOAT64: (-0.0, 5e-324, 0.1, math.inf, math.nan),
    T.BOOL: (False, True),
    T.STRING: ("", "a", "Größe 大", "\0"),
}


def ggufs_header(plan: Plan, path: Path) -> bytes:
    """Return the header that gguf-py's writer makes."""
    writer = GGUFWriter(path, "clip", endianess=GGUFEndian.LITTLE)
    for item in plan.metadata:
        if item.key == ALIGNMENT_KEY:
            writer.add_custom_alignment(item.value)
        elif item.is_array:
            writer.add_key_value(item.key, list(item.value), T.ARRAY, item.value_type)
        else:
            writer.add_key_value(item.key, item.value, item.value_type)
    for tensor in plan.tensors:
        dtype = np.dtype(np.float32)  # Says nothing beside raw_dtype, but that the shape counts elements.
        writer.add_tensor_info(tensor.name, tensor.shape, dtype, tensor.nbytes, raw_dtype=tensor.ggml_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    return path.read_bytes()


@pytest.mark.parametrize("alignment", [None, 8, 4096])
@pytest.mark.parametrize("dtype", TYPES)
def test_same_as_gguf_pys(dtype: str, alignment: int | None, tmp_path: Path) -> None:
    metadata = [MetadataItem(f"{t}.{i}", t, value) for t, values in VALUES.items() for i, value in enumerate(values)]
    metadata += [MetadataItem(f"{kind}.all", kind, list(values)) for kind, values in VALUES.items()]
    metadata.append(MetadataItem("tokens", T.STRING, Vocabulary.pack(VALUES[T.STRING])))
    metadata.append(MetadataItem("some tokens", T.STRING, Vocabulary.pack(VALUES[T.STRING])[1:3]))
    if alignment is not None:
        metadata.append(MetadataItem(ALIGNMENT_KEY, T.UINT32, alignment))
    source = View("x", "F32", (1,), LocalFile(Path(__file__)), 0, 4)
    shapes = [(32,), (5, 64), (2, 3, 32), (1, 2, 3, 96), (7, 32)]
    tensors = tuple(
        PlannedTensor(source, f"v.{i}", shape, TYPES[dtype], tensor_nbytes(math.prod(shape), TYPES[dtype]))
        for i, shape in enumerate(shapes)
    )
    plan = Plan("x.gguf", tuple(metadata), tensors, (), ())
    made = b"".join(header(plan.whole_metadata, tensors, alignment or DEFAULT_ALIGNMENT))
    assert made == ggufs_header(plan, tmp_path / "x.gguf")


def test_many_tokens(tmp_path: Path) -> None:
    tokens = [f"tok{i}</w>" for i in range(10_000)]  # More than are packed at once.
    packed = Vocabulary.pack(tokens)
    assert list(packed) == [packed[i] for i in range(len(packed))] == tokens
    assert list(packed[511:514]) == tokens[511:514]
    plans = [Plan("x.gguf", (MetadataItem("t", T.STRING, values),), (), (), ()) for values in (tokens, packed)]
    ours = [b"".join(header(plan.whole_metadata, (), DEFAULT_ALIGNMENT)) for plan in plans]
    assert ours == [ggufs_header(plans[0], tmp_path / "x.gguf")] * 2
