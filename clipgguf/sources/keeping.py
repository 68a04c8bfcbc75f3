"""Which sources a sequence of tensors still needs: each stays open until the last one's bytes are taken."""

from collections.abc import Sequence

from clipgguf.sources import Source
from clipgguf.sources.local import OpenedSource


class Kept:
    """A source that is needed; it is closed when nobody has this any more."""

    __slots__ = ("__weakref__", "source")

    def __init__(self, source: Source) -> None:
        """Take the source."""
        self.source = source

    def __del__(self) -> None:
        """Close the source until it is used again."""
        self.source.close()


class Keeping:
    """The sources of tensors whose turns come in order."""

    def __init__(self, sources: Sequence[Source]) -> None:
        """Look at every file once. Raises CheckpointError when one is gone or has become shorter."""
        self._sources = sources
        self._kept: dict[int, Kept] = {}
        self._last_use = {id(source): number for number, source in enumerate(sources)}
        try:
            for origin in {id(origin): origin for origin in map(_origin, sources)}.values():
                with origin.in_use():
                    pass
        except BaseException:
            self.close()
            raise

    def of(self, number: int) -> Kept:
        """Return what the tensor of that number is read from.

        After its last tensor's turn, who has it is all that keeps it open, and a compressed storage on disk.
        """
        source = self._sources[number]
        kept = self._kept.pop(id(source), None) or Kept(source)
        is_needed_again = number < self._last_use[id(source)]
        if is_needed_again:
            self._kept[id(source)] = kept
        if isinstance(source, OpenedSource):
            # It would be inflated for every tensor, where many share few.
            source.stays_open = is_needed_again and source.origin is not source
        return kept

    def close(self) -> None:
        """Close all files."""
        self._kept.clear()
        for source in self._sources:
            source.close()
            _origin(source).close()


def _origin(source: Source) -> Source:
    return source.origin if isinstance(source, OpenedSource) else source
