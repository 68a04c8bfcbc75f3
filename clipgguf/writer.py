"""Write a plan as a GGUF file, which appears under its name when it is complete.

The header says where each tensor is; the threads that encode the tensors write them there.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from clipgguf.checkpoint.gguf_file import ALIGNMENT_KEY, DEFAULT_ALIGNMENT, aligned
from clipgguf.header import header
from clipgguf.jobs import Chunk
from clipgguf.output_file import PlacedFile, replacing
from clipgguf.partial_file import Partial, partial_file, remove_partial_files
from clipgguf.planning import Plan, PlannedTensor
from clipgguf.stream import ChunkStream
from clipgguf.workers import thread_count
from clipgguf.write_back import writing_back

if TYPE_CHECKING:
    pass

Progress = Callable[[int, int], None]
# Takes a chunk that was encoded: the number of its tensor, its position in the file, and itself.
Take = Callable[[int, int, Chunk], None]


def write_plan(
    plan: Plan, path: Path, *, threads: int | None = None, progress: Progress | None = None
) -> dict[str, int]:
    """Write the file that a plan describes to ``path``, flushed to disk; see ``replacing`` for what happens there.

    Of a plan whose sources are far away it goes on with what an interrupted conversion has left: see ``partial_file``.

    ``progress`` is called with the bytes of tensor data written so far and in all. Returns, by GGUF name, how many
    finite source values became infinite, for the tensors where any did. Raises OutputError when the file cannot be
    written, CheckpointError when a source file cannot be read to its end.
    """
    layout = Layout.of(plan)
    # The sources are closed before the file is replaced: Windows replaces no open file, and one may be a source.
    with replacing(path, plan.bytes_out) as temporary:
        with temporary.open("r+b") as header:
            header.writelines(layout.header)
        with _partial(plan, path, temporary, layout) as partial, PlacedFile(temporary) as file:
            first = 0 if partial is None else partial.beginning.tensors
            overflows = {} if partial is None else dict(partial.beginning.overflows)
            rest, starts = plan.tensors[first:], layout.starts[first:]
            with (
                ChunkStream(rest, thread_count(threads), target=file, starts=starts) as stream,
                writing_back(file.fileno()) as written,
            ):

                def take(number: int, position: int, chunk: Chunk) -> None:
                    end = position + chunk.nbytes
                    written(end)
                    if partial is not None:
                        assert isinstance(chunk.data, memoryview)
                        partial.add(position, chunk.data)
                        if end == layout.ends[number]:
                            partial.complete(number + 1, overflows)

                follow(plan, stream, layout, take, overflows, progress, first)
            file.finish(layout.size)
    return overflows


@dataclass(frozen=True, slots=True)
class Layout:
    """What is where in a file: the header, and where each tensor begins and ends; last, where another would begin."""

    header: Sequence[bytes]
    starts: Sequence[int]
    ends: Sequence[int]

    @classmethod
    def of(cls, plan: Plan) -> "Layout":
        """Lay out the file that a plan describes."""
        alignment = next((item.value for item in plan.metadata if item.key == ALIGNMENT_KEY), DEFAULT_ALIGNMENT)
        head = list(header(plan.whole_metadata, plan.tensors, alignment))
        starts, ends = [aligned(sum(map(len, head)), alignment)], list[int]()
        for tensor in plan.tensors:
            ends.append(starts[-1] + tensor.nbytes)
            starts.append(aligned(ends[-1], alignment))
        return cls(head, starts, ends)

    @property
    def size(self) -> int:
        """The bytes of the file."""
        return self.starts[-1]


def _partial(plan: Plan, path: Path, temporary: Path, layout: Layout) -> AbstractContextManager[Partial | None]:
    """Return what a conversion from far away goes on with, or leaves when it is interrupted; of others nothing."""
    key = plan.key(b"".join(layout.header)) if plan.bytes_far else None
    if key is None:
        remove_partial_files(path)
        return nullcontext()
    return partial_file(path, temporary, key, layout.ends) or nullcontext()


def follow(
    plan: Plan,
    stream: ChunkStream,
    layout: Layout,
    take: Take,
    overflows: dict[str, int],
    progress: Progress | None = None,
    first: int = 0,
) -> None:
    """Have a stream's chunks taken, and progress told; those before the ``first`` tensor's are there already.

    ``overflows`` get how many finite values of which tensors became infinite.
    """
    number, position = first - 1, 0
    total, done = plan.bytes_out, sum(tensor.nbytes for tensor in plan.tensors[:first])
    tensor: PlannedTensor | None = None
    for chunk in stream:
        while chunk.tensor is not tensor:
            number += 1
            tensor, position = plan.tensors[number], layout.starts[number]
        if chunk.overflows:
            overflows[tensor.name] = overflows.get(tensor.name, 0) + chunk.overflows
        take(number, position, chunk)
        position += chunk.nbytes
        done += chunk.nbytes
        if progress is not None:
            progress(done, total)
