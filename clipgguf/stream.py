"""Tensors as a stream of encoded chunks: converted ahead on a few threads, handed out in order.

Memory is bounded by design: there are ``threads + LOOK_AHEAD`` buffers of BUFFER_NBYTES, used in turn, and each thread
has SOURCE_NBYTES that it maps or reads into, and the encoders' SCRATCH_NBYTES. While a large transposed tensor is put
into order, which one thread does at a time, three of BAND_NBYTES come on top.
"""

import itertools
import math
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from operator import attrgetter
from queue import SimpleQueue
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from clipgguf.checkpoint.strides import blocks
from clipgguf.checkpoint.views import OrderedBlocks, StridedBlocks
from clipgguf.computed import ComputedBytes
from clipgguf.encode import SCRATCH_NBYTES, Encoder, encoder
from clipgguf.planning import PlannedTensor
from clipgguf.sources import Source
from clipgguf.sources.ahead import stream_ahead
from clipgguf.sources.keeping import Keeping, Kept
from clipgguf.tensor import Computed, View
from clipgguf.workers import MOST_THREADS, Workers

# The most that a chunk takes as it is read, and as it is written: large enough that a chunk's overhead vanishes, small
# enough that it stays in the processor's cache between the steps.
SOURCE_NBYTES = 1 << 20
BUFFER_NBYTES = 1 << 19
# The most bytes of a range that is handed out unread (progress depends on it), and the least: reading less is cheaper.
RANGE_NBYTES = 1 << 24
LEAST_RANGE = 1 << 16
# The least bytes that are mapped and not read: below, copying them costs less.
LEAST_WINDOW = 1 << 16
# Of what is in one buffer, each chunk begins where every element type may.
ALIGNMENT = 64
LOOK_AHEAD = 2


@dataclass(frozen=True, slots=True)
class SourceRange:
    """A byte range of a source that the file takes as it is."""

    kept: Kept
    offset: int
    nbytes: int

    @property
    def file(self) -> Source:
        """The source."""
        return self.kept.source


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of a tensor: its bytes as the file wants them, and how many finite values became infinite in it.

    ``data`` is valid until the next chunk is asked for; a range is still to be copied.
    """

    tensor: PlannedTensor
    data: memoryview | SourceRange
    overflows: int = 0

    @property
    def nbytes(self) -> int:
        """The bytes that the chunk takes in the file."""
        return self.data.nbytes


class _Workspace:
    """What a thread needs while it encodes a chunk: a buffer that it reads into, and the encoders' scratch."""

    __slots__ = ("scratch", "source")

    def __init__(self) -> None:
        # Takes memory as far as it is used, which is little where the sources are mapped.
        self.source = np.empty(SOURCE_NBYTES, np.uint8)
        self.scratch = np.full(SCRATCH_NBYTES, 0, np.uint8)


@dataclass(frozen=True, slots=True)
class _Job:
    """A chunk that is still to be encoded: ``nbytes`` of a source, from ``start`` on, or a block of a view.

    ``kept`` are the sources that it needs.
    """

    tensor: PlannedTensor
    codec: Encoder
    kept: Sequence[Kept]
    source: "Source | ComputedBytes | _Block"
    nbytes: int
    start: int = 0

    @property
    def nbytes_out(self) -> int:
        """The bytes that the chunk will have."""
        return self.codec.nbytes(self.nbytes // self.codec.source_dtype.itemsize)

    def at_hand(self, target: NDArray[np.uint8]) -> AbstractContextManager[memoryview | None]:
        """Give the source to be encoded, read into ``target`` or mapped into memory; None where it has to be read.

        Copying from the page cache costs less than mapping, and mapping less than waiting for a copy.
        """
        is_aligned = self.start % self.codec.source_dtype.itemsize == 0  # Old safetensors files have odd headers.
        # Quantizing takes so much longer than reading that a copy costs nothing, and a window is not open for so long.
        is_quantized = self.codec.block_elements > 1
        if isinstance(self.source, _Block | ComputedBytes):
            return nullcontext()
        if not is_aligned or is_quantized or self.nbytes < LEAST_WINDOW:
            return nullcontext()
        if self.source.read_at_once(self.start, target.data):
            return nullcontext(target.data)
        return self.source.window(self.start, self.nbytes)

    def read(self, target: NDArray[np.uint8], scratch: NDArray[np.uint8]) -> None:
        """Read the source into ``target``, which has its size, row by row."""
        if isinstance(self.source, _Block):
            elements = target.view(self.codec.source_dtype).reshape(self.source.shape)
            self.source.view.read_block(self.source.start, elements, scratch)
        else:
            self.source.read(self.start, target.data)


@dataclass(frozen=True, slots=True)
class _Block:
    """A block of a view of elements that are not contiguous."""

    view: StridedBlocks | OrderedBlocks
    start: tuple[int, ...]
    shape: tuple[int, ...]


def _run(jobs: Sequence[_Job], workspaces: "SimpleQueue[_Workspace]", buffer: NDArray[np.uint8]) -> list[Chunk]:
    """Do jobs in order, one after the other in the buffer. There is a workspace for every thread."""
    workspace = workspaces.get()
    try:
        chunks: list[Chunk] = []
        start = 0
        for codec, group in itertools.groupby(jobs, key=attrgetter("codec")):
            together = list(group)
            nbytes = sum(job.nbytes_out for job in together)
            chunks += _encode(codec, together, workspace, buffer[start : start + nbytes])
            start += _aligned(nbytes)
        return chunks
    finally:
        workspaces.put(workspace)


def _encode(codec: Encoder, jobs: Sequence[_Job], workspace: _Workspace, target: NDArray[np.uint8]) -> Iterator[Chunk]:
    """Encode jobs of one codec as if they were one: with small tensors, each step costs more than its work."""
    overflows = _fill(codec, jobs, workspace, target)
    end = 0
    for job in jobs:
        start, end = end, end + job.nbytes_out
        if overflows and len(jobs) > 1:  # Whose they are, encoding each by itself will tell.
            yield from _encode(codec, [job], workspace, target[start:end])
        else:
            yield Chunk(job.tensor, target[start:end].data, overflows)


def _fill(codec: Encoder, jobs: Sequence[_Job], workspace: _Workspace, target: NDArray[np.uint8]) -> int:
    """Fill the target from the sources of jobs of one codec; return how many finite values became infinite."""
    encode, encoded, scratch = codec.encode, target.view(codec.target_dtype), workspace.scratch
    if encode is not None and len(jobs) == 1:
        with jobs[0].at_hand(workspace.source[: jobs[0].nbytes]) as window:
            if window is not None:
                # No name holds the array, so that it is gone when the window closes.
                return encode(np.frombuffer(window, codec.source_dtype), encoded, scratch)
    source = target if encode is None else workspace.source
    end = 0
    for job in jobs:
        start, end = end, end + job.nbytes
        job.read(source[start:end], scratch)
    return encode(source[:end].view(codec.source_dtype), encoded, scratch) if encode is not None else 0


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


class ChunkStream:
    """The chunks of all planned tensors, in order; a context manager that holds the threads and the source files."""

    def __init__(self, tensors: Sequence[PlannedTensor], threads: int, *, ranges: bool = False) -> None:
        """Open the source files of the tensors. Raises CheckpointError when one is gone or has become shorter.

        With ``ranges``, what needs no encoding and is not small is handed out unread, as ranges of the sources.
        """
        self._tensors = tensors
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
        workspaces: SimpleQueue[_Workspace] = SimpleQueue()
        for _ in range(self._threads):
            workspaces.put(_Workspace())
        under_way: deque[Future[list[Chunk]] | Chunk] = deque()
        for work in self._batches():
            if isinstance(work, Chunk):
                under_way.append(work)
            else:
                under_way.append(self._workers.submit(_run, work, workspaces, next(buffers)))
            if len(under_way) == count:
                yield from _finished(under_way.popleft())
        while under_way:
            yield from _finished(under_way.popleft())

    def _batches(self) -> Iterator[list[_Job] | Chunk]:
        """Yield ranges, and the jobs between them as lists that fit a buffer: small tensors share one."""
        batch: list[_Job] = []
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
            size_out += _aligned(job.nbytes_out)
        if batch:
            yield batch

    def _jobs(self) -> Iterator[_Job | Chunk]:
        numbers = itertools.count()
        for tensor in self._tensors:
            for part in tensor.source.parts:
                kept = [self._keeping.of(next(numbers)) for _ in part.stored]
                yield from self._part_jobs(tensor, part if self._ahead is None else self._ahead.taken(part), kept)

    def _part_jobs(self, tensor: PlannedTensor, part: View | Computed, kept: Sequence[Kept]) -> Iterator[_Job | Chunk]:
        codec = encoder(part.dtype, tensor.ggml_type)
        itemsize = codec.source_dtype.itemsize
        elements = codec.elements(SOURCE_NBYTES, BUFFER_NBYTES)
        if isinstance(part, Computed):
            computed = ComputedBytes(part)
            for start in range(0, part.nbytes, elements * itemsize):
                yield _Job(tensor, codec, kept, computed, min(elements * itemsize, part.nbytes - start), start)
            return
        if part.strides is not None:
            view = _view(part, part.strides, codec, elements)
            for index, shape in blocks(part.shape, elements) if part.nbytes else ():
                yield _Job(tensor, codec, kept, _Block(view, index, shape), math.prod(shape) * itemsize)
            return
        is_range = self._ranges and codec.encode is None and part.nbytes >= LEAST_RANGE
        step = RANGE_NBYTES if is_range else elements * itemsize
        for start in range(0, part.nbytes, step):
            offset, nbytes = part.offset + start, min(step, part.nbytes - start)
            if is_range:
                yield Chunk(tensor, SourceRange(kept[0], offset, nbytes))
            else:
                yield _Job(tensor, codec, kept, part.file, nbytes, offset)


def _view(source: View, strides: tuple[int, ...], codec: Encoder, elements: int) -> StridedBlocks | OrderedBlocks:
    """Return what blocks of so many elements are read from where a tensor is not contiguous."""
    dtype = codec.source_dtype
    steps = tuple(stride * dtype.itemsize for stride in strides)
    view = StridedBlocks(source.file, source.offset, dtype, source.shape, steps)
    return OrderedBlocks(view) if view.is_far_from_order(elements, SCRATCH_NBYTES) else view


def _finished(work: Future[list[Chunk]] | Chunk) -> list[Chunk]:
    return [work] if isinstance(work, Chunk) else work.result()
