"""A state dict as the pickle describes it, made into records: names flattened, tensors checked against their bytes."""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from clipgguf.checkpoint.strides import SMALL_READ, stored_cost
from clipgguf.checkpoint.torch_globals import LONGEST_TORCH_NAME, Storage, StorageView, kind_of, name_text
from clipgguf.errors import CheckpointError
from clipgguf.limits import MOST_ENTRIES
from clipgguf.sources import Source
from clipgguf.tensor import View

# A checkpoint of a training run may hold the state dict under one of these keys, with the rest of the run beside it:
# "state_dict" is PyTorch Lightning's and OpenCLIP's, "module" is DeepSpeed's.
WRAPPERS = ("state_dict", "module")

# A dict that refers to another many times, and that to a third, has few bytes and no end of entries, so they count.
MOST_ITEMS = 500_000
DEEPEST_NESTING = 16
# How many times the bytes of a view, and those it extends over, it may take to read it. Each is read twice at most
# unless they overlap, as only those of small views do.
HIGHEST_COST = 64


@dataclass(frozen=True, slots=True)
class StorageBytes:
    """Where a storage's bytes lie; ``entry`` is its name in the archive."""

    entry: str
    file: Source
    offset: int
    nbytes: int


def source_tensors(state: object, locate: Callable[[Storage], StorageBytes], source: Source) -> list[View]:
    """Return the tensors of a state dict, those of nested dicts under names joined with dots, and nothing else of it.

    ``locate`` finds a storage's bytes. Raises CheckpointError when the state is no dict, a name is no string or comes
    twice, or a tensor does not lie inside its storage.
    """
    if not isinstance(state, dict):
        raise CheckpointError(f"{source}: holds {kind_of(state)}, should hold a state dict: tensors by their names")
    tensors: dict[str, View] = {}
    for name, view in _named_views(_unwrap(state), source, itertools.count()):
        if name in tensors:
            raise CheckpointError(f"{source}: has two tensors of the name {name!r}, with and without nested dicts")
        if len(tensors) == MOST_ENTRIES:
            raise CheckpointError(f"{source}: has more than {MOST_ENTRIES:,} tensors, no model has as many in a file")
        tensors[name] = _source_tensor(name, view, locate(view.storage), source)
    return list(tensors.values())


def _unwrap(state: dict[object, object]) -> dict[object, object]:
    for key in WRAPPERS:
        inner = state.get(key)
        # With tensors beside it, the key is a part of their names instead.
        if isinstance(inner, dict) and not any(isinstance(value, StorageView) for value in state.values()):
            state = inner
    return state


def _named_views(
    state: dict[object, object], source: Source, entries: Iterator[int], keys: tuple[object, ...] = ()
) -> Iterator[tuple[str, StorageView]]:
    """Yield the tensors of a dict that lies under some keys, and those of the dicts inside; counts its entries."""
    for key, value in state.items():
        if next(entries) == MOST_ITEMS:
            raise CheckpointError(f"{source}: has more than {MOST_ITEMS:,} entries in nested dicts; refused")
        if isinstance(value, StorageView):
            yield _name((*keys, key), source), value
        elif isinstance(value, dict):
            if len(keys) + 1 == DEEPEST_NESTING:
                raise CheckpointError(f"{source}: has dicts nested more than {DEEPEST_NESTING} deep; refused")
            yield from _named_views(value, source, entries, (*keys, key))


def _name(keys: tuple[object, ...], source: Source) -> str:
    for key in keys:
        if not isinstance(key, str):
            raise CheckpointError(f"{source}: has a tensor under the key {key}, should be a string, its name")
    names = [str(key) for key in keys]
    length = sum(map(len, names)) + len(names) - 1
    if length > LONGEST_TORCH_NAME:
        what = f"a tensor whose name has {length:,} characters, should have {LONGEST_TORCH_NAME} at most"
        raise CheckpointError(f"{source}: has {what}")
    return ".".join(names)


def _source_tensor(name: str, view: StorageView, stored: StorageBytes, source: Source) -> View:
    where, layout = f"{source}: tensor {name!r}", f"shape {view.shape} and strides {view.strides}"
    storage, itemsize = view.storage, view.element.itemsize
    if storage.nbytes > stored.nbytes:
        raise CheckpointError(
            f"{where} needs a storage of {storage.nbytes:,} bytes, {name_text(stored.entry)} has {stored.nbytes:,}"
        )
    if min((view.offset, *view.shape, *view.strides)) < 0:
        raise CheckpointError(f"{where} has offset {view.offset}, {layout}, none of them should be negative")
    begin, length = storage.view or (0, storage.elements)
    start, room = stored.offset + begin * storage.element.itemsize, length * storage.element.itemsize
    nbytes = math.prod(view.shape) * itemsize
    tensor = View(name, view.element.code, view.shape, stored.file, start, nbytes)
    if not nbytes:
        return tensor
    # The stride along an axis of length 1 does not matter.
    axes = zip(view.shape, view.strides, tensor.steps, strict=True)
    if any(length > 1 and stride != step for length, stride, step in axes):
        tensor = replace(tensor, strides=view.strides)
    if (end := view.offset * itemsize + tensor.extent) > room:
        raise CheckpointError(
            f"{where} with offset {view.offset}, {layout} in {view.element.code} ends at byte {end:,} of its storage, "
            f"which has {room:,}"
        )
    # Elements that share memory make a tensor larger than its storage, which expand() does for small ones.
    if nbytes > max(source.size, room):
        raise CheckpointError(
            f"{where} is larger than its storage: shape {view.shape} in {view.element.code} makes {nbytes:,} bytes, "
            f"the whole file has {source.size:,}"
        )
    if tensor.strides:
        # No view without overlaps takes a read for nearly each of its elements.
        cost = stored_cost(view.shape, tuple(stride * itemsize for stride in tensor.strides), itemsize)
        if cost > HIGHEST_COST * (nbytes + tensor.extent + SMALL_READ):
            what = "by which elements overlap in too many ways to be read; should be saved as contiguous"
            raise CheckpointError(f"{where} has {layout}, {what}")
    return replace(tensor, offset=start + view.offset * itemsize)
