"""Write a plan as a GGUF file, which appears under its name when it is complete.

The header says where each tensor is; the threads that encode the tensors write them there.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from clipgguf.checkpoint.gguf_file import ALIGNMENT_KEY, DEFAULT_ALIGNMENT, aligned
from clipgguf.header import header
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
    with replacing(path, plan.bytes_out) as temporary, PlacedFile(temporary) as file:
        start, alignment = _write_header(plan, file)
        target = _TensorData(file, start)
        with ChunkStream(plan.tensors, thread_count(threads), target=target, alignment=alignment) as stream:
            overflows, nbytes = _follow(plan, stream, file, start, alignment, progress)
        file.finish(start + nbytes)
    return overflows


@dataclass(frozen=True, slots=True)
class _TensorData:
    """The part of a file that begins at ``start``."""

    file: PlacedFile
    start: int

    def write(self, position: int, parts: "Sequence[Buffer]") -> None:
        self.file.write(self.start + position, parts)


def _write_header(plan: Plan, file: PlacedFile) -> tuple[int, int]:
    """Write all but the tensor data; return where that begins, and the alignment of the tensors in it."""
    alignments = (item.value for item in plan.metadata if item.key == ALIGNMENT_KEY)
    alignment = next(alignments, DEFAULT_ALIGNMENT)
    parts = list(header(plan.whole_metadata, plan.tensors, alignment))
    file.write(0, parts)
    return aligned(sum(map(len, parts)), alignment), alignment


def _follow(
    plan: Plan, stream: ChunkStream, file: PlacedFile, start: int, alignment: int, progress: Progress | None
) -> tuple[dict[str, int], int]:
    """Follow a stream that writes its chunks; return the tensors that overflow, and the bytes that the data takes."""
    overflows: dict[str, int] = {}
    total, done, position = plan.bytes_out, 0, 0
    tensor: PlannedTensor | None = None
    with writing_back(file.fileno()) as written:
        for chunk in stream:
            if chunk.tensor is not tensor:
                tensor, position = chunk.tensor, aligned(position, alignment)
            position += chunk.nbytes
            done += chunk.nbytes
            written(start + position)
            if chunk.overflows:
                overflows[chunk.tensor.name] = overflows.get(chunk.tensor.name, 0) + chunk.overflows
            if progress is not None:
                progress(done, total)
    return overflows, aligned(position, alignment)
