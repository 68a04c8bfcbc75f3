"""Write a plan as a GGUF file: the only user of GGUFWriter. The file appears under its name when it is complete."""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import IO, Any, cast

import numpy as np
from gguf import GGUFEndian, GGUFValueType, GGUFWriter, Keys

from clipgguf.checkpoint.gguf_file import MetadataItem
from clipgguf.errors import OutputError, os_reason
from clipgguf.plan import Plan, PlannedTensor
from clipgguf.stream import Chunk, ChunkStream, SourceRange, default_threads

Progress = Callable[[int, int], None]

# A name of its own, and not one made from the file's, which may already be as long as names can be.
TEMPORARY_PREFIX = ".clipgguf-"
TEMPORARY_SUFFIX = ".tmp"
# After how many bytes the system is told to begin writing them to disk.
WRITE_BACK_NBYTES = 1 << 26


def write_plan(
    plan: Plan, path: Path, *, threads: int | None = None, progress: Progress | None = None
) -> dict[str, int]:
    """Write the file that a plan describes to ``path``, whose directories are made when they are missing.

    ``progress`` is called with the bytes of tensor data written so far and in all. Returns, by GGUF name, how many
    finite source values became infinite, for the tensors where any did.

    The bytes go to a temporary file beside ``path``, which is flushed to disk and then renamed; until then whatever
    is there stays as it is. Raises OutputError when the file cannot be written, CheckpointError when a source file
    has changed; then, as after Ctrl-C, nothing new is left behind.
    """
    if threads is not None and threads < 1:
        raise ValueError(f"threads is {threads}, should be at least 1")
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{os.urandom(8).hex()}{TEMPORARY_SUFFIX}")
    made: list[Path] = []
    with _output_errors(path):
        if path.is_dir():
            raise OutputError(f"{path}: is a directory, should be a file name")
        try:
            _make_directory(path.parent, made)
            with ChunkStream(plan.tensors, threads or default_threads(), ranges=True) as stream:
                overflows = _write(plan, temporary, iter(stream), progress)
            # Only now that the sources are closed: Windows replaces no open file, and a source may be what is replaced.
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):  # Not even the directory is there, or may be searched.
                temporary.unlink()
            for directory in reversed(made):
                with contextlib.suppress(OSError):  # Somebody else has put something there in the meantime.
                    directory.rmdir()
            raise
    return overflows


@contextlib.contextmanager
def _output_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        raise OutputError(f"{path}: cannot be written: {os_reason(e)}") from e


def _make_directory(directory: Path, made: list[Path]) -> None:
    """Make a directory and its parents, and add each that was not there to ``made`` as soon as it is."""
    for missing in reversed([d for d in (directory, *directory.parents) if not d.exists()]):
        # Another process may be quicker.
        with contextlib.suppress(FileExistsError):
            missing.mkdir()
            made.append(missing)


def _write(plan: Plan, path: Path, chunks: Iterator[Chunk], progress: Progress | None) -> dict[str, int]:
    """Write the whole file to a new ``path`` and flush it to disk."""
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

    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        assert writer.fout is not None
        file = writer.fout[0]
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


class _WriteBack:
    """Has a file written to disk while it grows, in a thread of its own: little is left to wait for at its end.

    Left alone, the system begins when a good part of the memory holds unwritten pages, and then slows the writer down.
    """

    def __init__(self, file: int) -> None:
        self._file = file
        self._since = 0
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="write-back")
        self._running: Future[None] | None = None

    def __enter__(self) -> "_WriteBack":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._executor.shutdown()
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
        self._running = self._executor.submit(getattr(os, "fdatasync", os.fsync), self._file)


def _add_metadata(writer: GGUFWriter, item: MetadataItem) -> None:
    if item.key == Keys.General.ALIGNMENT:
        writer.add_custom_alignment(item.value)
    elif isinstance(item.value, Sequence) and not isinstance(item.value, str):
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
