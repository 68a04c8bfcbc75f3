"""Files that are read by requests for ranges: what is small or lies together is read with few of them."""

import contextlib
import re
from collections.abc import Mapping
from types import MappingProxyType

from clipgguf.errors import CheckpointError
from clipgguf.sources import FarSource
from clipgguf.sources.fetch import Body, RangeFetch

# The first request of a file: nearly every header is in it (the 590 tensors of a CLIP have one of 77 kB).
HEAD_NBYTES = 1 << 18
# A request that is larger does not fit the socket's buffer, in which its answer waits for its turn.
REQUEST_NBYTES = 2 << 20
# What is kept of a file when it is closed: small configurations are opened several times.
KEPT_NBYTES = 1 << 14
NOTHING: Mapping[bytes, str] = MappingProxyType({})


class RangedFile(FarSource):
    """A file that answers to requests for ranges, which ``answer`` sends. It must stay as it is."""

    read_cost = 1 << 20

    def __init__(self, name: str, refused: Mapping[bytes, str] = NOTHING) -> None:
        """Ask for its beginning. Raises CheckpointError when there is none, or what is ``refused``."""
        self.name, self.size = name, -1
        self._block = 0, b""
        fetch = self.fetch(0, HEAD_NBYTES)
        with contextlib.closing(fetch):
            head = bytearray(fetch.begun())
            fetch.read(memoryview(head))
        self._block = 0, bytes(head)
        # Then ranges are of no use, or there is nothing else to read.
        self._is_kept = len(head) > HEAD_NBYTES or self.size == len(head) <= KEPT_NBYTES
        for pattern, what in refused.items():
            if re.match(pattern, head[:64]):
                raise CheckpointError(f"{name}: {what}")

    def answer(self, start: int, stop: int) -> tuple[Body, int]:
        """Ask once for a range; return an answer that begins at its first byte, and the byte where it ends.

        The first one tells the size. Raises LineError when it is worth to ask again, CheckpointError when it is not.
        """
        raise NotImplementedError

    def read(self, offset: int, target: memoryview) -> None:
        """Fill ``target``, of single bytes, with those from ``offset`` on; CheckpointError when they cannot be read."""
        if offset + len(target) > self.size:
            what = f"bytes {offset:,} to {offset + len(target):,} cannot be read"
            raise CheckpointError(f"{self.name}: {what}: the file has {self.size:,}")
        while target:
            start, block = self._block
            if start <= offset < start + len(block):
                part = memoryview(block)[offset - start :][: len(target)]
                target[: len(part)] = part
                offset, target = offset + len(part), target[len(part) :]
                continue
            # What is read on from where the last block ended is read in ever larger ones.
            grown = 2 * len(block) if offset == start + len(block) else 0
            nbytes = min(self.size - offset, max(HEAD_NBYTES, min(grown, REQUEST_NBYTES)))
            if len(target) >= nbytes:
                for at in range(0, len(target), REQUEST_NBYTES):
                    self._read_into(offset + at, target[at : at + REQUEST_NBYTES])
                return
            data = bytearray(nbytes)
            self._read_into(offset, memoryview(data))
            self._block = offset, bytes(data)

    def _read_into(self, offset: int, target: memoryview) -> None:
        with contextlib.closing(self.fetch(offset, offset + len(target))) as fetch:
            fetch.read(target)

    def fetch(self, start: int, stop: int) -> RangeFetch:
        """Ask for a range, to be read in order."""
        return RangeFetch(self, start, stop)

    def close(self) -> None:
        """Forget what was read, unless that is all and little, or could not be read again."""
        if not self._is_kept:
            self._block = 0, b""
