"""Go through the tensors of a GGUF file and their sources together, a chunk at a time, on several threads."""

import contextlib
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from clipgguf.jobs import SourceRange
from clipgguf.planning import PlannedTensor
from clipgguf.sources import Source
from clipgguf.stream import LOOK_AHEAD, ChunkStream
from clipgguf.tensor import Computed, View
from clipgguf.verification.values import PIECE, Bytes, Comparison, compare_values
from clipgguf.workers import Workers
from clipgguf.writer import Progress


@dataclass(frozen=True, slots=True)
class Pair:
    """A tensor as it is planned, and as a GGUF file has it, with the same shape and a type in COMPARABLE."""

    planned: PlannedTensor
    stored: View


def compare_tensors(
    pairs: Sequence[Pair], file: Source, threads: int, progress: Progress | None
) -> dict[str, Comparison]:
    """Compare tensors of a GGUF file with their sources; return the results by name.

    ``progress`` counts the sources' bytes. Raises CheckpointError when a file is gone or has become shorter.
    """
    # Planned as copies, so that the stream hands out the sources as they are.
    sources = [
        replace(p.planned, ggml_type=GGMLQuantizationType[p.planned.source.dtype], nbytes=p.planned.source.nbytes)
        for p in pairs
    ]
    stored = {pair.planned.name: pair.stored for pair in pairs}
    results = {name: Comparison() for name in stored}
    done, total = 0, sum(source.nbytes for source in sources)
    with (
        # What is contiguous comes as ranges, which are read where they are compared; for the rest one thread will do.
        ChunkStream(sources, 1, ranges=True) as stream,
        contextlib.closing(file),
        Workers(threads, "compare") as workers,
    ):
        try:
            for chunk_nbytes, name, future in _ahead(stream, stored, file, workers, threads + LOOK_AHEAD):
                results[name] = results[name].followed_by(future.result())
                done += chunk_nbytes
                if progress is not None:
                    progress(done, total)
        finally:
            workers.shutdown(cancel_futures=True)
    return results


def _ahead(
    stream: ChunkStream, stored: dict[str, View], file: Source, workers: Workers, most: int
) -> Iterator[tuple[int, str, "Future[Comparison]"]]:
    """Yield for each chunk its bytes, its tensor's name and its comparison, of which ``most`` are under way."""
    under_way: deque[tuple[int, str, Future[Comparison]]] = deque()
    started: dict[str, int] = {}
    for chunk in stream:
        tensor, target = chunk.tensor, stored[chunk.tensor.name]
        start = started.get(tensor.name, 0)
        count = chunk.nbytes // tensor.source.itemsize
        started[tensor.name] = start + count
        # The stream uses its buffer again.
        data = chunk.data if isinstance(chunk.data, SourceRange) else np.frombuffer(bytes(chunk.data), np.uint8)
        made = tensor.source if isinstance(tensor.source, Computed) else None
        within = (made.within, made.relative) if made else (0.0, 0.0)
        compared = workers.submit(_compare, data, tensor.source.dtype, count, file, target, start, within)
        under_way.append((chunk.nbytes, tensor.name, compared))
        if len(under_way) == most:
            yield under_way.popleft()
    yield from under_way


def _compare(
    data: SourceRange | Bytes,
    source_dtype: str,
    count: int,
    file: Source,
    stored: View,
    first: int,
    within: tuple[float, float],
) -> Comparison:
    """Compare ``count`` values of a source with those of a file's tensor from ``first`` on, a piece at a time.

    ``within`` is the error that values may have which others compute otherwise, and how much more of their own size.
    """
    ggml_type = GGMLQuantizationType[stored.dtype]
    block, block_nbytes = GGML_QUANT_SIZES[ggml_type]
    # Chunks have whole rows, or a power of two of values in a row.
    assert first % block == count % block == 0
    itemsize = data.nbytes // count
    result = Comparison()
    with data.file.in_use() if isinstance(data, SourceRange) else contextlib.nullcontext():
        for start in range(0, count, PIECE):
            size = min(PIECE, count - start)
            if isinstance(data, SourceRange):
                source = np.empty(size * itemsize, np.uint8)
                data.file.read(data.offset + start * itemsize, source.data)
            else:
                source = data[start * itemsize :][: size * itemsize]
            target = np.empty(size // block * block_nbytes, np.uint8)
            file.read(stored.offset + (first + start) // block * block_nbytes, target.data)
            result = result.followed_by(compare_values(source, source_dtype, target, ggml_type, within))
    return result
