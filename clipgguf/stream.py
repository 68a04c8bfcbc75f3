"""Tensors as a stream of encoded chunks: converted ahead on a few threads, handed out in order.

Memory is bounded by design: there are ``threads + LOOK_AHEAD`` buffers of BUFFER_NBYTES, used in turn, and each thread
has SOURCE_NBYTES that it maps or reads into, and the encoders' SCRATCH_NBYTES. While a large transposed tensor is put
into order, which one thread does at a time, three of BAND_NBYTES come on top.
"""

import itertools
import math
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from types import TracebackType

import numpy as np

from clipgguf.checkpoint.gguf_file import aligned
from clipgguf.checkpoint.strides import blocks
from clipgguf.checkpoint.views import OrderedBlocks, StridedBlocks
from clipgguf.computed import ComputedBytes
from clipgguf.encode import SCRATCH_NBYTES, Encoder, encoder
from clipgguf.jobs import (
    ALIGNMENT,
    BUFFER_NBYTES,
    SOURCE_NBYTES,
    Block,
    Chunk,
    Job,
    SourceRange,
    Target,
    Workspace,
    run,
)
from clipgguf.planning import PlannedTensor
from clipgguf.sources.ahead import stream_ahead
from clipgguf.sources.keeping import Keeping, Kept
from clipgguf.tensor import Computed, View
from clipgguf.workers import MOST_THREADS, Workers

# The most bytes of a range that is handed out unread (progress depends on it), and the least: reading less is cheaper.
RANGE_NBYTES = 1 << 24
LEAST_RANGE = 1 << 16
LOOK_AHEAD = 2


class ChunkStream:
    """The chunks of all planned tensors, in order; a context manager that holds the threads and the source files."""

    def __init__(
        self,
        tensors: Sequence[PlannedTensor],
        threads: int,
        *,
        ranges: bool = False,
        target: Target | None = None,
        starts: Sequence[int] | None = None,
    ) -> None:
        """Open the source files of the tensors. Raises CheckpointError when one is gone or has become shorter.

        With ``ranges``, what needs no encoding and is not small is handed out unread, as ranges of the sources. With a
        target, the threads write there what they encode; ``starts`` are where the tensors begin in it.
        """
        self._tensors, self._target = tensors, target
        self._starts = itertools.repeat(0) if starts is None else starts
        # More than there are chunks would find nothing to do; but every small model takes the same.
        chunks = 1 + sum(tensor.source.nbytes + tensor.nbytes for tensor in tensors) // BUFFER_NBYTES
        self._threads = min(threads, max(chunks, MOST_THREADS))
        self._ahead = stream_ahead(part for tensor in tensors for part in tensor.source.parts)
        self._ranges = ranges and self._ahead is None
        self._keeping = Keeping([view.file for tensor in tensors for view in tensor.source.stored])
        self._workers = Workers(self._threads, "encode")

    def __enter__(self) -> "ChunkStream":
        """Return the stream itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the threads and close the files."""
        if self._ahead is not None:
            self._ahead.close()
        self._workers.shutdown(cancel_futures=True)
        self._keeping.close()

    def __iter__(self) -> Iterator[Chunk]:
        """Yield the chunks in the order of the tensors; each one's data lasts until the next is asked for."""
        # Made only now, from the memory that writing the metadata took, and filled, so that every model takes the same.
        # Buffer i serves batches i, i + n, ...: with never more than n under way, what it held before was handed out.
        count = self._threads + LOOK_AHEAD
        buffers = itertools.cycle([np.full(BUFFER_NBYTES, 0, np.uint8) for _ in range(count)])
        workspaces: SimpleQueue[Workspace] = SimpleQueue()
        for _ in range(self._threads):
            workspaces.put(Workspace())
        under_way: deque[Future[list[Chunk]] | Chunk] = deque()
        for work in self._batches():
            if isinstance(work, Chunk):
                under_way.append(work)
            else:
                under_way.append(self._workers.submit(run, work, workspaces, next(buffers), self._target))
            if len(under_way) == count:
                yield from _finished(under_way.popleft())
        while under_way:
            yield from _finished(under_way.popleft())

    def _batches(self) -> Iterator[list[Job] | Chunk]:
        """Yield ranges, and the jobs between them as lists that fit a buffer: small tensors share one."""
        batch: list[Job] = []
        size_in = size_out = 0
        for job in self._jobs():
            if isinstance(job, Chunk):
                if batch:
                    yield batch
                    batch, size_in, size_out = [], 0, 0
                yield job
                continue
            if batch and (size_in + job.nbytes > SOURCE_NBYTES or size_out + job.nbytes_out > BUFFER_NBYTES):
                yield batch
                batch, size_in, size_out = [], 0, 0
            batch.append(job)
            size_in += job.nbytes
            size_out += aligned(job.nbytes_out, ALIGNMENT)
        if batch:
            yield batch

    def _jobs(self) -> Iterator[Job | Chunk]:
        numbers = itertools.count()
        for tensor, position in zip(self._tensors, self._starts, strict=False):
            for part in tensor.source.parts:
                kept = [self._keeping.of(next(numbers)) for _ in part.stored]
                taken = part if self._ahead is None else self._ahead.taken(part)
                position = yield from self._part_jobs(tensor, taken, kept, position)

    def _part_jobs(
        self, tensor: PlannedTensor, part: View | Computed, kept: Sequence[Kept], position: int
    ) -> Generator[Job | Chunk, None, int]:
        """Yield the chunks of a part that begins at a position; return where it ends."""
        codec = encoder(part.dtype, tensor.ggml_type)
        itemsize = codec.source_dtype.itemsize
        elements = codec.elements(SOURCE_NBYTES, BUFFER_NBYTES)
        end = position + codec.nbytes(part.nbytes // itemsize)
        if isinstance(part, View) and part.strides is not None:
            view = _view(part, part.strides, codec, elements)
            for index, shape in blocks(part.shape, elements) if part.nbytes else ():
                job = Job(tensor, codec, kept, Block(view, index, shape), math.prod(shape) * itemsize, position)
                position += job.nbytes_out
                yield job
            return end
        first = part.offset if isinstance(part, View) else 0
        source = part.file if isinstance(part, View) else ComputedBytes(part)
        is_range = self._ranges and codec.encode is None and part.nbytes >= LEAST_RANGE and isinstance(part, View)
        step = RANGE_NBYTES if is_range else elements * itemsize
        for start in range(0, part.nbytes, step):
            nbytes = min(step, part.nbytes - start)
            if is_range:
                yield Chunk(tensor, SourceRange(kept[0], first + start, nbytes))
            else:
                place = position + codec.nbytes(start // itemsize)
                yield Job(tensor, codec, kept, source, nbytes, place, first + start)
        return end


def _view(source: View, strides: tuple[int, ...], codec: Encoder, elements: int) -> StridedBlocks | OrderedBlocks:
    """Return what blocks of so many elements are read from where a tensor is not contiguous."""
    dtype = codec.source_dtype
    steps = tuple(stride * dtype.itemsize for stride in strides)
    view = StridedBlocks(source.file, source.offset, dtype, source.shape, steps)
    return OrderedBlocks(view) if view.is_far_from_order(elements, SCRATCH_NBYTES) else view


def _finished(work: Future[list[Chunk]] | Chunk) -> list[Chunk]:
    return [work] if isinstance(work, Chunk) else work.result()
