"""Write a plan as a GGUF file: the only user of GGUFWriter. The file appears under its name when it is complete."""

import contextlib
import io
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, cast

import numpy as np
from gguf import GGUFEndian, GGUFValueType, GGUFWriter, Keys

from clipgguf.checkpoint.gguf_file import MetadataItem
from clipgguf.output_file import replacing
from clipgguf.planning import Plan, PlannedTensor
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
    """Write the file that a plan describes to ``path``, whose directories are made when they are missing.

    ``progress`` is called with the bytes of tensor data written so far and in all. Returns, by GGUF name, how many
    finite source values became infinite, for the tensors where any did.

    The bytes go to a temporary file beside ``path``, which is flushed to disk and then renamed; until then whatever
    is there stays as it is. Raises OutputError when the file cannot be written, CheckpointError when a source file
    cannot be read to its end; then, as after Ctrl-C, nothing new is left behind.
    """
    threads = thread_count(threads)
    # The sources are closed before the file is replaced: Windows replaces no open file, and one may be a source.
    with replacing(path, plan.bytes_out) as temporary, ChunkStream(plan.tensors, threads, ranges=True) as stream:
        return _write(plan, temporary, iter(stream), progress)


def _write(plan: Plan, path: Path, chunks: Iterator[Chunk], progress: Progress | None) -> dict[str, int]:
    """Write the whole file to ``path`` and flush it to disk."""
    writer = GGUFWriter(path, arch="clip", endianess=GGUFEndian.LITTLE)
    for item in plan.metadata:
        _add_metadata(writer, item)
    for tensor in plan.tensors:
        # The dtype says nothing beside raw_dtype, but that the shape counts elements and not bytes.
        dtype = np.dtype(np.float32)
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
        with _WriteBack(file.fileno()) as write_back:
            for tensor in plan.tensors:
                streamed = cast(Any, _StreamedTensor(tensor, chunks, wrote))
                writer.write_tensor_data(streamed, tensor_endianess=GGUFEndian.LITTLE)
                write_back.wrote(tensor.nbytes)
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


class _WriteBack:
    """Has a file written to disk while it grows, in a thread of its own: little is left to wait for at its end.

    Left alone, the system begins when a good part of the memory holds unwritten pages, and then slows the writer down.
    """

    def __init__(self, file: int) -> None:
        self._file = file
        self._since = 0
        self._workers = Workers(1, "write-back")
        self._running: Future[None] | None = None

    def __enter__(self) -> "_WriteBack":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._workers.shutdown()
        if error is None and self._running is not None:
            self._running.result()

    def wrote(self, nbytes: int) -> None:
        """Take note of bytes that were written. Raises OSError when bytes before them cannot be."""
        self._since += nbytes
        if self._since < WRITE_BACK_NBYTES or (self._running is not None and not self._running.done()):
            return
        if self._running is not None:
            self._running.result()
        self._since = 0
        self._running = self._workers.submit(getattr(os, "fdatasync", os.fsync), self._file)


def _add_metadata(writer: GGUFWriter, item: MetadataItem) -> None:
    if item.key == Keys.General.ALIGNMENT:
        writer.add_custom_alignment(item.value)
    elif item.is_array:
        writer.add_key_value(item.key, item.value, GGUFValueType.ARRAY, item.value_type)
    else:
        writer.add_key_value(item.key, item.value, item.value_type)


class _StreamedTensor:
    """What ``GGUFWriter.write_tensor_data`` needs of an array, ``nbytes`` and ``tofile``, over a stream of chunks."""

    def __init__(self, tensor: PlannedTensor, chunks: Iterator[Chunk], wrote: Callable[[Chunk], None]) -> None:
        self.nbytes = tensor.nbytes
        self._chunks = chunks
        self._wrote = wrote

    def tofile(self, file: IO[bytes]) -> None:
        left = self.nbytes
        while left:
            chunk = next(self._chunks)
            if isinstance(chunk.data, SourceRange):
                chunk.data.file.copy(chunk.data.offset, chunk.data.nbytes, file)
            else:
                file.write(chunk.data)
            left -= chunk.nbytes
            self._wrote(chunk)
