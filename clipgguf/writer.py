"""Write a plan as a GGUF file: the only user of GGUFWriter. The file appears under its name when it is complete."""

import contextlib
import io
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import numpy as np
from gguf import GGUFEndian, GGUFValueType, GGUFWriter, Keys

from clipgguf.output_file import replacing
from clipgguf.planning import Plan
from clipgguf.stream import Chunk, ChunkStream, SourceRange
from clipgguf.workers import Workers, thread_count

if TYPE_CHECKING:
    from typing_extensions import Buffer

Progress = Callable[[int, int], None]

# After how many bytes the system is told to begin writing them to disk.
WRITE_BACK_NBYTES = 1 << 26
# What is larger is written at once.
OUTPUT_BUFFER_NBYTES = 1 << 18


def write_plan(
    plan: Plan, path: Path, *, threads: int | None = None, progress: Progress | None = None
) -> dict[str, int]:
    """Write the file that a plan describes to ``path``, flushed to disk; see ``replacing`` for what happens there.

    ``progress`` is called with the bytes of tensor data written so far and in all. Returns, by GGUF name, how many
    finite source values became infinite, for the tensors where any did. Raises OutputError when the file cannot be
    written, CheckpointError when a source file cannot be read to its end.
    """
    threads = thread_count(threads)
    # The sources are closed before the file is replaced: Windows replaces no open file, and one may be a source.
    with replacing(path, plan.bytes_out) as temporary, ChunkStream(plan.tensors, threads, ranges=True) as stream:
        return _write(plan, temporary, iter(stream), progress)


def _write(plan: Plan, path: Path, chunks: Iterator[Chunk], progress: Progress | None) -> dict[str, int]:
    """Write the whole file to ``path`` and flush it to disk."""
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
    total, done = plan.bytes_out, 0
    overflows: dict[str, int] = {}

    def wrote(chunk: Chunk) -> None:
        nonlocal done
        done += chunk.nbytes
        if chunk.overflows:
            overflows[chunk.tensor.name] = overflows.get(chunk.tensor.name, 0) + chunk.overflows
        if progress is not None:
            progress(done, total)

    writer.open_output_file()
    assert writer.fout is not None
    file = _OutputBuffer(writer.fout[0].detach())
    writer.fout[0] = file
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        with _write_back(file.fileno()) as written:
            for tensor in plan.tensors:
                streamed = cast(Any, _StreamedTensor(tensor.nbytes, chunks, wrote))
                writer.write_tensor_data(streamed, tensor_endianess=GGUFEndian.LITTLE)
                written(tensor.nbytes)
        writer.flush()
        os.fsync(file.fileno())
    except BaseException:
        # Closing flushes once more, and fails once more on a full disk; the first error is the one to tell.
        with contextlib.suppress(OSError):
            writer.close()
        raise
    writer.close()
    return overflows


class _OutputBuffer(io.BufferedWriter):
    """A buffer in which small tensors become one write, and which knows its position: gguf-py asks at every tensor.

    Each question to the system would cost a thread switch, and with ten thousand tensors more than converting them.
    """

    def __init__(self, raw: io.RawIOBase) -> None:
        super().__init__(raw, OUTPUT_BUFFER_NBYTES)
        self._position = 0

    def write(self, data: "Buffer") -> int:
        count = super().write(data)
        self._position += count
        return count

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = super().seek(offset, whence)
        return self._position

    def tell(self) -> int:
        return self._position


@contextlib.contextmanager
def _write_back(file: int) -> Iterator[Callable[[int], None]]:
    """Have a file written to disk while it grows, in a thread of its own: little is left to wait for at its end.

    Left alone, the system begins when a good part of the memory holds unwritten pages, and then slows the writer down.
    What is yielded is called with the bytes that were written; it raises OSError when bytes before them cannot be.
    """
    sync = getattr(os, "fdatasync", os.fsync)
    since = 0
    running: Future[None] = Future()
    running.set_result(None)

    def written(nbytes: int) -> None:
        nonlocal since, running
        since += nbytes
        if since >= WRITE_BACK_NBYTES and running.done():
            running.result()
            since, running = 0, workers.submit(sync, file)

    with Workers(1, "write-back") as workers:
        yield written
    running.result()


@dataclass
class _StreamedTensor:
    """What ``GGUFWriter.write_tensor_data`` needs of an array, ``nbytes`` and ``tofile``, over a stream of chunks."""

    nbytes: int
    chunks: Iterator[Chunk]
    wrote: Callable[[Chunk], None]

    def tofile(self, file: IO[bytes]) -> None:
        left = self.nbytes
        while left:
            chunk = next(self.chunks)
            if isinstance(chunk.data, SourceRange):
                chunk.data.file.copy(chunk.data.offset, chunk.data.nbytes, file)
            else:
                file.write(chunk.data)
            left -= chunk.nbytes
            self.wrote(chunk)
