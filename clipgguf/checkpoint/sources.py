"""What a sequence of tensors is read from: files and compressed storages, of which few are open at a time."""

from collections.abc import Sequence
from pathlib import Path

from clipgguf.checkpoint.tensors import OpenFiles, SourceBytes, SourceFile
from clipgguf.tensor import Deflated, View


class Sources:
    """The files of tensors whose turns come in order."""

    def __init__(self, tensors: Sequence[View]) -> None:
        """Look at every file once. Raises CheckpointError when one is gone or has become shorter."""
        self._tensors = tensors
        self.open_files = OpenFiles()
        self._sources: dict[tuple[Path, Deflated | None], SourceBytes] = {}
        self._last_use = {(tensor.path, tensor.deflated): number for number, tensor in enumerate(tensors)}
        sizes: dict[Path, int] = {}
        for tensor in tensors:
            end = 0 if tensor.deflated else tensor.offset + tensor.extent
            sizes[tensor.path] = max(sizes.get(tensor.path, 0), end)
        try:
            for path, size in sizes.items():
                self._sources[path, None] = SourceFile(path, size, self.open_files)
        except BaseException:
            self.close()
            raise

    def of(self, number: int) -> SourceBytes:
        """Return what the tensor of that number is read from.

        After its last tensor's turn, who has it is all that keeps it open, and a compressed storage on disk.
        """
        tensor = self._tensors[number]
        key = tensor.path, tensor.deflated
        source = self._sources.pop(key, None)
        if source is None:
            from clipgguf.checkpoint.deflate import InflatedStorage

            assert tensor.deflated is not None
            source = InflatedStorage(tensor.path, tensor.deflated, self.open_files)
        is_needed_again = number < self._last_use[key]
        if is_needed_again:
            self._sources[key] = source
        # It would be inflated for every tensor, where many share few.
        source.stays_open = is_needed_again and tensor.deflated is not None
        return source

    def close(self) -> None:
        """Close all files."""
        self.open_files.close()
