"""Storages that a zip archive holds compressed: torch never writes them so, programs that pack an archive anew do."""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from clipgguf.errors import CheckpointError
from clipgguf.sources import Source, SourceIO
from clipgguf.sources.local import OpenedSource, temporary_file

# How many bytes are inflated at once; about twice this is in memory.
INFLATE_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Deflated:
    """Where a zip archive holds a storage compressed, and what must come out of it."""

    offset: int
    compressed_size: int
    inflated_size: int
    crc32: int


class InflatedStorage(OpenedSource):
    """A deflated storage's bytes, in a temporary file without a name that they are inflated into when they are used."""

    def __init__(self, archive: Source, deflated: Deflated) -> None:
        """Take where the storage is."""
        super().__init__(archive.name, deflated.inflated_size)
        self._archive, self.deflated = archive, deflated

    @property
    def origin(self) -> Source:
        """The archive."""
        return self._archive

    @property
    def version(self) -> str | None:
        """That of the archive, and which of its storages it is."""
        return None if self._archive.version is None else f"{self._archive.version} {self.deflated}"

    def _open(self) -> IO[bytes]:
        """Inflate the storage; takes its time, and its inflated size on disk until ``close``."""
        what = f"{self.name}: is compressed, and a storage of {self.size:,} bytes cannot be inflated into"
        return temporary_file(inflate(self._archive, self.deflated), what)


def inflate(archive: Source, deflated: Deflated) -> Iterator[bytes]:
    """Yield a storage's bytes, deflated by zip's method 8 (raw deflate, RFC 1951), in chunks of at most INFLATE_CHUNK.

    Raises CheckpointError when the size or the CRC-32 turns out to be another than the archive's directory says.
    """
    where = f"{archive.name}: the entry compressed at byte {deflated.offset:,}"
    decompressor = zlib.decompressobj(-zlib.MAX_WBITS)
    left, right = deflated.compressed_size, deflated.inflated_size
    size, crc32, pending = 0, 0, b""
    file = SourceIO(archive, deflated.offset)
    try:
        with archive.in_use():
            while not decompressor.eof:
                if not pending:
                    pending = file.read(min(left, INFLATE_CHUNK))
                    left -= len(pending)
                chunk = decompressor.decompress(pending, INFLATE_CHUNK)
                if not chunk and not pending:
                    break
                pending = decompressor.unconsumed_tail
                size += len(chunk)
                crc32 = zlib.crc32(chunk, crc32)
                if size > right:
                    raise CheckpointError(f"{where} inflates to more than the {right:,} bytes it should")
                yield chunk
    except zlib.error as e:
        raise CheckpointError(f"{where} is damaged: {e}") from e
    if size != right:
        raise CheckpointError(f"{where} inflates to {size:,} bytes, it should to {right:,}")
    if crc32 != deflated.crc32:
        raise CheckpointError(f"{where} is damaged: its CRC-32 is {crc32:08x}, it should be {deflated.crc32:08x}")
