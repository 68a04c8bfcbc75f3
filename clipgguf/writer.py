"""Write a plan as a GGUF file: the only user of GGUFWriter. The file appears under its name when it is complete.

GGUFWriter writes the metadata and where each tensor is; the threads that encode the tensors write them there.
"""

import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from gguf import GGUFEndian, GGUFValueType, GGUFWriter, Keys

from clipgguf.jobs import aligned
from clipgguf.output_file import PlacedFile, replacing
from clipgguf.partial_file import Partial, partial_file, remove_partial_files
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

    Of a plan whose sources are far away it goes on with what an interrupted conversion has left: see ``partial_file``.

    ``progress`` is called with the bytes of tensor data written so far and in all. Returns, by GGUF name, how many
    finite source values became infinite, for the tensors where any did. Raises OutputError when the file cannot be
    written, CheckpointError when a source file cannot be read to its end.
    """
    # The sources are closed before the file is replaced: Windows replaces no open file, and one may be a source.
    with replacing(path, plan.bytes_out) as temporary:
        start, alignment = _write_head(plan, temporary)
        places = _Places.of(plan.tensors, start, alignment)
        with _partial(plan, path, temporary, places) as partial, PlacedFile(temporary) as file:
            first = 0 if partial is None else partial.beginning.tensors
            target = _TensorData(file, places.starts[first])
            with ChunkStream(plan.tensors[first:], thread_count(threads), target=target, alignment=alignment) as stream:
                overflows = _follow(plan, stream, file, places, partial, progress)
            file.finish(places.starts[-1])
    return overflows


@dataclass(frozen=True, slots=True)
class _Places:
    """Where in the file each tensor begins and ends; last, where another one would begin."""

    starts: Sequence[int]
    ends: Sequence[int]

    @classmethod
    def of(cls, tensors: Sequence[PlannedTensor], start: int, alignment: int) -> "_Places":
        starts, ends = [start], []
        for tensor in tensors:
            ends.append(starts[-1] + tensor.nbytes)
            starts.append(start + aligned(ends[-1] - start, alignment))
        return cls(starts, ends)


def _partial(plan: Plan, path: Path, temporary: Path, places: _Places) -> AbstractContextManager[Partial | None]:
    """Return what a conversion from far away goes on with, or leaves when it is interrupted; of others nothing."""
    key = plan.key(temporary.read_bytes()) if plan.bytes_far else None
    if key is None:
        remove_partial_files(path)
        return nullcontext()
    return partial_file(path, temporary, key, places.ends) or nullcontext()


@dataclass(frozen=True, slots=True)
class _TensorData:
    """The part of a file that begins at ``start``."""

    file: PlacedFile
    start: int

    def write(self, position: int, parts: "Sequence[Buffer]") -> None:
        self.file.write(self.start + position, parts)


def _write_head(plan: Plan, path: Path) -> tuple[int, int]:
    """Write all but the tensor data; return where that begins, and the alignment of the tensors in it."""
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


def _follow(
    plan: Plan,
    stream: ChunkStream,
    file: PlacedFile,
    places: _Places,
    partial: Partial | None,
    progress: Progress | None,
) -> dict[str, int]:
    """Follow a stream that writes its chunks, of the tensors that are not there yet; return all that overflow."""
    number = -1 if partial is None else partial.beginning.tensors - 1
    overflows = {} if partial is None else dict(partial.beginning.overflows)
    total, done = plan.bytes_out, sum(tensor.nbytes for tensor in plan.tensors[: number + 1])
    tensor: PlannedTensor | None = None
    position = 0
    with writing_back(file.fileno()) as written:
        for chunk in stream:
            while chunk.tensor is not tensor:
                number += 1
                tensor, position = plan.tensors[number], places.starts[number]
            if partial is not None:
                assert isinstance(chunk.data, memoryview)
                partial.add(position, chunk.data)
            position += chunk.nbytes
            done += chunk.nbytes
            written(position)
            if chunk.overflows:
                overflows[chunk.tensor.name] = overflows.get(chunk.tensor.name, 0) + chunk.overflows
            if partial is not None and position == places.ends[number]:
                partial.complete(number + 1, overflows)
            if progress is not None:
                progress(done, total)
    return overflows
