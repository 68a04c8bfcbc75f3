"""Write a plan as a GGUF file: the only user of GGUFWriter. The file appears under its name when it is complete.

GGUFWriter writes the metadata and where each tensor is; the threads that encode the tensors write them there.
"""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from gguf import GGUFEndian, GGUFValueType, GGUFWriter, Keys

from clipgguf.jobs import Chunk, aligned
from clipgguf.output_file import PlacedFile, replacing
from clipgguf.planning import Plan, PlannedTensor
from clipgguf.stream import ChunkStream
from clipgguf.workers import thread_count
from clipgguf.write_back import writing_back

if TYPE_CHECKING:
    from typing_extensions import Buffer

Progress = Callable[[int, int], None]


def write_plan(
    plan: Plan, path: Path, *, threads: int | None = None, progress: Progress | None = None
) -> dict[str, int]:
    """Write the file that a plan describes to ``path``, flushed to disk; see ``replacing`` for what happens there.

    ``progress`` is called with the bytes of tensor data written so far and in all. Returns, by GGUF name, how many
    finite source values became infinite, for the tensors where any did. Raises OutputError when the file cannot be
    written, CheckpointError when a source file cannot be read to its end.
    """
    # The sources are closed before the file is replaced: Windows replaces no open file, and one may be a source.
    with replacing(path, plan.bytes_out) as temporary:
        start, alignment = write_head(plan, temporary)
        with PlacedFile(temporary) as file:
            target = _TensorData(file, start)
            with (
                ChunkStream(plan.tensors, thread_count(threads), target=target, alignment=alignment) as stream,
                writing_back(file.fileno()) as written,
            ):
                overflows, nbytes = follow(
                    plan, stream, alignment, progress, lambda chunk, at: written(start + at + chunk.nbytes)
                )
            file.finish(start + nbytes)
    return overflows


@dataclass(frozen=True, slots=True)
class _TensorData:
    """The part of a file that begins at ``start``."""

    file: PlacedFile
    start: int

    def write(self, position: int, parts: "Sequence[Buffer]") -> None:
        self.file.write(self.start + position, parts)


def write_head(plan: Plan, path: Path) -> tuple[int, int]:
    """Write all but the tensor data; return where that begins, and the alignment of the tensors in it.

    Raises OSError.
    """
    writer = GGUFWriter(path, arch="clip", endianess=GGUFEndian.LITTLE)
    for item in plan.metadata:
        if item.key == Keys.General.ALIGNMENT:
            writer.add_custom_alignment(item.value)
        else:
            types = (GGUFValueType.ARRAY, item.value_type) if item.is_array else (item.value_type,)
            writer.add_key_value(item.key, item.value, *types)
    # The dtype says nothing beside raw_dtype, but that the shape counts elements and not bytes.
    dtype = np.dtype(np.float32)
    for tensor in plan.tensors:
        writer.add_tensor_info(tensor.name, tensor.shape, dtype, tensor.nbytes, raw_dtype=tensor.ggml_type)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        assert writer.fout is not None
        end = writer.fout[0].tell()
    except BaseException:
        # Closing flushes once more, and fails once more on a full disk; the first error is the one to tell.
        with contextlib.suppress(OSError):
            writer.close()
        raise
    writer.close()
    return aligned(end, writer.data_alignment), writer.data_alignment


def follow(
    plan: Plan,
    stream: ChunkStream,
    alignment: int,
    progress: Progress | None,
    take: Callable[[Chunk, int], None],
) -> tuple[dict[str, int], int]:
    """Have a stream's chunks taken, each with its position in the tensor data, and progress told.

    Returns how many finite values of which tensors became infinite, and the bytes that the tensor data takes.
    """
    overflows: dict[str, int] = {}
    total, done, position = plan.bytes_out, 0, 0
    tensor: PlannedTensor | None = None
    for chunk in stream:
        if chunk.tensor is not tensor:
            tensor, position = chunk.tensor, aligned(position, alignment)
        take(chunk, position)
        position += chunk.nbytes
        done += chunk.nbytes
        if chunk.overflows:
            overflows[chunk.tensor.name] = overflows.get(chunk.tensor.name, 0) + chunk.overflows
        if progress is not None:
            progress(done, total)
    return overflows, aligned(position, alignment)
