"""Chunks of tensors: what each is read from, and how it is encoded, by whichever thread comes to it."""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from operator import attrgetter
from queue import SimpleQueue
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from clipgguf.checkpoint.gguf_file import aligned
from clipgguf.checkpoint.views import OrderedBlocks, StridedBlocks
from clipgguf.computed import ComputedBytes
from clipgguf.encode import SCRATCH_NBYTES, Encoder
from clipgguf.planning import PlannedTensor
from clipgguf.sources import Source
from clipgguf.sources.keeping import Kept

if TYPE_CHECKING:
    from typing_extensions import Buffer

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


@dataclass(frozen=True, slots=True)
class SourceRange:
    """A byte range of a source that the file takes as it is, not read here."""

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

    ``data`` is valid until the next chunk is asked for; of a range, the bytes are still to be read.
    """

    tensor: PlannedTensor
    data: memoryview | SourceRange
    overflows: int = 0

    @property
    def nbytes(self) -> int:
        """The bytes that the chunk takes in the file."""
        return self.data.nbytes


class Target(Protocol):
    """Where chunks go as soon as they are encoded, each to its own place."""

    def write(self, position: int, parts: "Sequence[Buffer]") -> None:
        """Write the parts one after the other, from a position on and from any thread; raises OSError."""


class Workspace:
    """What a thread needs while it encodes a chunk: a buffer that it reads into, and the encoders' scratch."""

    __slots__ = ("scratch", "source")

    def __init__(self) -> None:
        """Make them."""
        # Takes memory as far as it is used, which is little where the sources are mapped.
        self.source = np.empty(SOURCE_NBYTES, np.uint8)
        self.scratch = np.full(SCRATCH_NBYTES, 0, np.uint8)


@dataclass(frozen=True, slots=True)
class Job:
    """A chunk that is still to be encoded: ``nbytes`` of a source, from ``start`` on, or a block of a view.

    ``kept`` are the sources that it needs, and ``position`` is its place in the target.
    """

    tensor: PlannedTensor
    codec: Encoder
    kept: Sequence[Kept]
    source: "Source | ComputedBytes | Block"
    nbytes: int
    position: int
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
        if isinstance(self.source, Block | ComputedBytes):
            return nullcontext()
        if not is_aligned or is_quantized or self.nbytes < LEAST_WINDOW:
            return nullcontext()
        if self.source.read_at_once(self.start, target.data):
            return nullcontext(target.data)
        return self.source.window(self.start, self.nbytes)

    def read(self, target: NDArray[np.uint8], scratch: NDArray[np.uint8]) -> None:
        """Read the source into ``target``, which has its size, row by row."""
        if isinstance(self.source, Block):
            elements = target.view(self.codec.source_dtype).reshape(self.source.shape)
            self.source.view.read_block(self.source.start, elements, scratch)
        else:
            self.source.read(self.start, target.data)


@dataclass(frozen=True, slots=True)
class Block:
    """A block of a view of elements that are not contiguous."""

    view: StridedBlocks | OrderedBlocks
    start: tuple[int, ...]
    shape: tuple[int, ...]


def run(
    jobs: Sequence[Job], workspaces: "SimpleQueue[Workspace]", buffer: NDArray[np.uint8], target: Target | None = None
) -> list[Chunk]:
    """Do jobs in order, one after the other in the buffer. There is a workspace for every thread.

    With a target, they are written to it as well.
    """
    workspace = workspaces.get()
    try:
        chunks: list[Chunk] = []
        start = 0
        for codec, group in itertools.groupby(jobs, key=attrgetter("codec")):
            together = list(group)
            nbytes = sum(job.nbytes_out for job in together)
            chunks += _encode(codec, together, workspace, buffer[start : start + nbytes])
            start += aligned(nbytes, ALIGNMENT)
        if target is not None:
            _write(jobs, chunks, target)
        return chunks
    finally:
        workspaces.put(workspace)


def _write(jobs: Sequence[Job], chunks: Sequence[Chunk], target: Target) -> None:
    """Write chunks, and zeros between tensors, with one call."""
    parts: list[Buffer] = []
    end = jobs[0].position
    for job, chunk in zip(jobs, chunks, strict=True):
        assert isinstance(chunk.data, memoryview)
        if job.position > end:
            parts.append(bytes(job.position - end))
        parts.append(chunk.data)
        end = job.position + chunk.nbytes
    target.write(jobs[0].position, parts)


def _encode(codec: Encoder, jobs: Sequence[Job], workspace: Workspace, target: NDArray[np.uint8]) -> Iterator[Chunk]:
    """Encode jobs of one codec as if they were one: with small tensors, each step costs more than its work."""
    overflows = _fill(codec, jobs, workspace, target)
    end = 0
    for job in jobs:
        start, end = end, end + job.nbytes_out
        if overflows and len(jobs) > 1:  # Whose they are, encoding each by itself will tell.
            yield from _encode(codec, [job], workspace, target[start:end])
        else:
            yield Chunk(job.tensor, target[start:end].data, overflows)


def _fill(codec: Encoder, jobs: Sequence[Job], workspace: Workspace, target: NDArray[np.uint8]) -> int:
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
