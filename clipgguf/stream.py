"""Tensors as a stream of encoded chunks: converted ahead on a few threads, handed out in order.

Memory is bounded by design. There are ``threads + LOOK_AHEAD`` buffers, each of one chunk, used in turn; besides them,
each thread has at most MAP_SPAN bytes of a source mapped. A chunk that needs no encoding takes no buffer, and is mapped
whole from when its turn comes near until it is written.
"""

import itertools
import math
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipgguf.checkpoint import Deflated, InflatedStorage, MappedRange, SourceBytes, SourceFile, SourceTensor
from clipgguf.encode import SCRATCH_NBYTES, Encoder, encoder
from clipgguf.plan import PlannedTensor

# 1 MiB of float32: large enough that a chunk's overhead vanishes, small enough that its target stays in the cache.
CHUNK_ELEMENTS = 1 << 18
LARGEST_ELEMENT = 4
# The most of a source file that one thread has mapped to encode it, in bytes.
MAP_SPAN = 1 << 19
# A buffer's end is scratch for the encoders of 16-bit types, which fill no more than its beginning.
assert CHUNK_ELEMENTS * 2 + SCRATCH_NBYTES <= CHUNK_ELEMENTS * LARGEST_ELEMENT
LOOK_AHEAD = 2
# One thread writes, and more than this many only wait for each other: numpy's steps are short, and take turns.
MOST_THREADS = 4


def default_threads() -> int:
    """Return how many threads to convert on: the cores that this process may use, and at most MOST_THREADS."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MOST_THREADS)


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of a tensor: its bytes as the file wants them, and how many finite values became infinite in it.

    ``data`` is valid until the next chunk is asked for. ``mapped`` is the source range where the bytes needed no
    encoding, and stayed where they are.
    """

    tensor: PlannedTensor
    data: memoryview
    overflows: int = 0
    mapped: MappedRange | None = None


@dataclass(frozen=True, slots=True)
class _Job:
    """A chunk that is still to be encoded: a range of a source, or with ``strides`` (in bytes) a view of elements."""

    tensor: PlannedTensor
    codec: Encoder
    file: SourceBytes
    offset: int
    nbytes: int
    shape: tuple[int, ...] = ()
    strides: tuple[int, ...] | None = None

    def run(self, buffer: NDArray[np.uint8]) -> Chunk:
        """Encode the source into the buffer, a part after the other, so that only a part is mapped."""
        dtype, encode = self.codec.source_dtype, self.codec.encode
        if self.strides is None and encode is None:
            mapped = self.file.map(self.offset, self.nbytes)
            return Chunk(self.tensor, mapped.data, mapped=mapped)
        count = self.nbytes // dtype.itemsize
        target = buffer[: self.codec.nbytes(count)]
        scratch = buffer[-SCRATCH_NBYTES:]
        overflows = 0
        if self.strides is not None:
            source = np.empty(self.shape, dtype)
            _gather(self.file, self.offset, source, self.strides)
            if encode is None:
                target[:] = source.reshape(-1).view(np.uint8)
            else:
                overflows = encode(source.reshape(-1), target.view(self.codec.target_dtype), scratch)
        else:
            assert encode is not None
            step = MAP_SPAN // dtype.itemsize
            for start in range(0, count, step):
                stop = min(start + step, count)
                part = target[self.codec.nbytes(start) : self.codec.nbytes(stop)].view(self.codec.target_dtype)
                mapped = self.file.map(self.offset + start * dtype.itemsize, (stop - start) * dtype.itemsize)
                overflows += encode(np.frombuffer(mapped.data, dtype), part, scratch)
                mapped.close()
        return Chunk(self.tensor, target.data, overflows)


class ChunkStream:
    """The chunks of all planned tensors, in order; a context manager that holds the threads and the source files."""

    def __init__(self, tensors: Sequence[PlannedTensor], threads: int) -> None:
        """Open the source files of the tensors. Raises CheckpointError when one is gone or has become shorter."""
        self._tensors = tensors
        self._threads = threads
        self._files: dict[tuple[Path, Deflated | None], SourceBytes] = {}
        sizes: dict[Path, int] = {}
        for tensor in tensors:
            source = tensor.source
            end = 0 if source.deflated else source.offset + source.extent
            sizes[source.path] = max(sizes.get(source.path, 0), end)
        try:
            for path, size in sizes.items():
                self._files[path, None] = SourceFile(path, size)
        except BaseException:
            self._close_files()
            raise
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="encode")

    def __enter__(self) -> "ChunkStream":
        """Return the stream itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the threads and close the files."""
        self._executor.shutdown(cancel_futures=True)
        self._close_files()

    def __iter__(self) -> Iterator[Chunk]:
        """Yield the chunks in the order of the tensors; each one's data lasts until the next is asked for."""
        # Made only now, from the memory that writing the metadata took. Buffer i serves chunks i, i + n, i + 2n, ...:
        # with never more than n of them under way, its turn comes only after the chunk before was handed out and used.
        count = self._threads + LOOK_AHEAD
        buffers = itertools.cycle([np.full(CHUNK_ELEMENTS * LARGEST_ELEMENT, 0, np.uint8) for _ in range(count)])
        under_way: deque[Future[Chunk]] = deque()
        for job in self._jobs():
            under_way.append(self._executor.submit(job.run, next(buffers)))
            if len(under_way) == count:
                yield from _hand_out(under_way)
        while under_way:
            yield from _hand_out(under_way)

    def _jobs(self) -> Iterator[_Job]:
        for tensor in self._tensors:
            source = tensor.source
            codec = encoder(source.dtype, tensor.ggml_type)
            file = self._file(source)
            itemsize = codec.source_dtype.itemsize
            if source.strides is None:
                step = CHUNK_ELEMENTS * itemsize
                for start in range(0, source.nbytes, step):
                    yield _Job(tensor, codec, file, source.offset + start, min(step, source.nbytes - start))
            elif source.nbytes:
                strides = tuple(stride * itemsize for stride in source.strides)
                for start, shape in _blocks(source.shape, strides):
                    nbytes = math.prod(shape) * itemsize
                    inner = strides[len(strides) - len(shape) :]
                    yield _Job(tensor, codec, file, source.offset + start, nbytes, shape, inner)

    def _file(self, source: SourceTensor) -> SourceBytes:
        """Return what a tensor's bytes are read from; a compressed storage is inflated to disk when its turn comes."""
        key = source.path, source.deflated
        if source.deflated is not None and key not in self._files:
            self._files[key] = InflatedStorage(source.path, source.deflated)
        return self._files[key]

    def _close_files(self) -> None:
        for file in self._files.values():
            file.close()


def _blocks(shape: tuple[int, ...], strides: tuple[int, ...]) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Yield a strided view in row-major order as blocks of at most CHUNK_ELEMENTS: offset in bytes, and shape.

    A block's shape has the view's innermost axes, the outermost of them in part.
    """
    row = math.prod(shape[1:])
    if row > CHUNK_ELEMENTS:
        for i in range(shape[0]):
            for start, block in _blocks(shape[1:], strides[1:]):
                yield i * strides[0] + start, block
        return
    rows = CHUNK_ELEMENTS // row
    for i in range(0, shape[0], rows):
        yield i * strides[0], (min(rows, shape[0] - i), *shape[1:])


def _gather(file: SourceBytes, offset: int, target: NDArray[Any], strides: tuple[int, ...]) -> None:
    """Fill an array from a strided view of a file, with no more than MAP_SPAN bytes of the file mapped at once."""
    reach = [(length - 1) * stride for length, stride in zip(target.shape, strides, strict=True)]
    extent = target.itemsize + sum(reach)
    if extent > MAP_SPAN and target.size > 1:
        axis = reach.index(max(reach))
        half = target.shape[axis] // 2
        first, second = np.split(target, [half], axis)
        _gather(file, offset, first, strides)
        _gather(file, offset + half * strides[axis], second, strides)
        return
    mapped = file.map(offset, extent)
    target[...] = np.ndarray(target.shape, target.dtype, mapped.data, strides=strides)
    mapped.close()


def _hand_out(under_way: deque[Future[Chunk]]) -> Iterator[Chunk]:
    chunk = under_way.popleft().result()
    yield chunk
    if chunk.mapped is not None:
        chunk.mapped.close()
