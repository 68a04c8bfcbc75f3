"""What files of llama.cpp's own converter have wrong and can be made right of the files alone, by their family's table.

The tensors' bytes stay what they are: some have another name or shape than the reader looks for, and some metadata is
missing that all models of a family have alike.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

from clipgguf.checkpoint.gguf_file import MetadataItem
from clipgguf.clip_file import ClipFile
from clipgguf.family import Mends
from clipgguf.keys import KEYS
from clipgguf.shape import lengths, parse, shape_of
from clipgguf.tensor import View


@dataclass(frozen=True, slots=True)
class Mended:
    """A file's tensors and the metadata to add, with a line for every kind of change; none where nothing is wrong."""

    tensors: tuple[View, ...]
    added: tuple[MetadataItem, ...]
    changes: tuple[str, ...]

    @property
    def lines(self) -> tuple[str, ...]:
        """All that is mended, a line each."""
        return (*self.changes, *(f"{item.key} is added" for item in self.added))


def mended(file: ClipFile) -> Mended:
    """Return what a file would have without its converter's faults, as its family's ``mends`` tell them."""
    mends = Mends() if file.family is None or file.is_llava else file.family.mends
    tensors: list[View] = []
    counts: Counter[str] = Counter()
    for tensor in file.tensors.values():
        # None has both another name and another shape.
        change, right = [*_other_names(file, mends, tensor), *_other_shapes(mends, tensor), ("", tensor)][0]
        counts[change] += bool(change)
        tensors.append(right)
    added = [KEYS[name].item(value) for name, value in mends.added if KEYS[name].key not in file.items]
    changes = [
        f"{count:,} {'tensor' if count == 1 else 'tensors'} {change}" for change, count in counts.items() if count
    ]
    return Mended(tuple(tensors), tuple(added), tuple(changes))


def _other_names(file: ClipFile, mends: Mends, tensor: View) -> Iterator[tuple[str, View]]:
    """Yield what becomes of a tensor's name, in words, and the tensor with it."""
    for wrong, right in mends.renamed:
        name = tensor.name.replace(wrong, right)
        if name != tensor.name and name not in file.tensors:
            yield f"*{wrong}* called *{right}*", replace(tensor, name=name)


def _other_shapes(mends: Mends, tensor: View) -> Iterator[tuple[str, View]]:
    """Yield what becomes of a tensor's shape, in words, and the tensor with it."""
    for end, text in mends.reshaped:
        stored, _, written = text.partition(" -> ")
        sizes = lengths(parse(stored).stored, tensor.shape, {}) if tensor.name.endswith(end) else None
        if sizes is not None:
            shape = tuple(length for length in shape_of(parse(text).written, sizes) if length is not None)
            yield f"*{end} of shape ({stored}) given the shape ({written})", replace(tensor, shape=shape)
