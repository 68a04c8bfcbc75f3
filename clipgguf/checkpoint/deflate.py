"""Storages that a zip archive holds compressed: torch never writes them so, programs that pack an archive anew do."""

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from clipgguf.checkpoint.tensors import OpenFiles, SourceBytes, temporary_file
from clipgguf.errors import CheckpointError, os_reason
from clipgguf.regular_file import open_regular
from clipgguf.tensor import Deflated

# How many bytes are inflated at once; about twice this is in memory.
INFLATE_CHUNK = 1 << 20


class InflatedStorage(SourceBytes):
    """A deflated storage's bytes, in a temporary file without a name that they are inflated into when they are used."""

    def __init__(self, path: Path, deflated: Deflated, open_files: OpenFiles | None = None) -> None:
        """Take where the storage is."""
        super().__init__(path, open_files)
        self._deflated = deflated

    def _open(self) -> IO[bytes]:
        """Inflate the storage; takes its time, and its inflated size on disk until ``close``.

        Raises CheckpointError when what comes out is not what the archive's directory says, or does not fit the disk.
        """
        try:
            return temporary_file(inflate(self.path, self._deflated))
        except OSError as e:
            raise CheckpointError(
                f"{self.path}: is compressed, and a storage of {self._deflated.inflated_size:,} bytes cannot be "
                f"inflated into a temporary file: {os_reason(e)}"
            ) from e


def inflate(path: Path, deflated: Deflated) -> Iterator[bytes]:
    """Yield a deflated storage's bytes in chunks of at most INFLATE_CHUNK, never more than ``inflated_size`` in all.

    The compression is zip's method 8, which is raw deflate (RFC 1951). Raises CheckpointError when the size or the
    CRC-32 turns out to be another than the archive's directory says.
    """
    where = f"{path}: the entry compressed at byte {deflated.offset:,}"
    decompressor = zlib.decompressobj(-zlib.MAX_WBITS)
    left, size, crc32 = deflated.compressed_size, 0, 0
    pending = b""
    try:
        with open_regular(path, CheckpointError) as file:
            file.seek(deflated.offset)
            while not decompressor.eof:
                if not pending:
                    pending = file.read(min(left, INFLATE_CHUNK)) or b""
                    left -= len(pending)
                chunk = decompressor.decompress(pending, INFLATE_CHUNK)
                if not chunk and not pending:
                    break
                pending = decompressor.unconsumed_tail
                size += len(chunk)
                crc32 = zlib.crc32(chunk, crc32)
                if size > deflated.inflated_size:
                    raise CheckpointError(
                        f"{where} inflates to more than the {deflated.inflated_size:,} bytes it should"
                    )
                yield chunk
    except OSError as e:
        raise CheckpointError(f"{path}: cannot be read: {os_reason(e)}") from e
    except zlib.error as e:
        raise CheckpointError(f"{where} is damaged: {e}") from e
    if size != deflated.inflated_size:
        raise CheckpointError(f"{where} inflates to {size:,} bytes, it should to {deflated.inflated_size:,}")
    if crc32 != deflated.crc32:
        raise CheckpointError(f"{where} is damaged: its CRC-32 is {crc32:08x}, it should be {deflated.crc32:08x}")
