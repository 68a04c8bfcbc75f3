"""The file of torch.save before torch 1.6, and since then with ``_use_new_zipfile_serialization=False``.

As ``_legacy_save`` and ``_legacy_load`` of ``torch/serialization.py`` (torch 2.13) have it: five pickles, which are a
magic number, the protocol's number, a dict about the system, the object, and the list of the storages' keys; then for
each key the number of its elements, as a little-endian integer of 64 bits, and the elements, unaligned.
"""

from collections.abc import Callable

from clipgguf.checkpoint.torch_globals import Storage, name_text
from clipgguf.checkpoint.torch_pickle import LARGEST_PICKLE, unpickle
from clipgguf.checkpoint.torch_state import StorageBytes
from clipgguf.errors import CheckpointError
from clipgguf.sources import Source, SourceIO

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
PROTOCOL_VERSION = 1001
# The first three pickles take less than fifty.
FEW_OPCODES = 1000


def read_stream(source: Source) -> tuple[object, Callable[[Storage], StorageBytes]]:
    """Return the object that a file describes, and what finds its storages' bytes. Raises CheckpointError."""
    where = f"{source}: its pickle"
    # Where the pickles end is known only after they are read, so some of the storages may come along.
    head = SourceIO(source).read(LARGEST_PICKLE)
    magic = unpickle(head, where, 0, FEW_OPCODES)
    if magic.value != MAGIC_NUMBER:
        raise CheckpointError(f"{source}: is a pickle, but none of torch.save, which begins with a magic number")
    protocol = unpickle(head, where, magic.end, FEW_OPCODES)
    if protocol.value != PROTOCOL_VERSION:
        raise CheckpointError(f"{source}: is of another version of torch.save's format, should be {PROTOCOL_VERSION}")
    system = unpickle(head, where, protocol.end, FEW_OPCODES)
    if not isinstance(system.value, dict) or system.value.get("little_endian") is not True:
        raise CheckpointError(f"{source}: is not little-endian; should be saved on a little-endian machine")
    state = unpickle(head, where, system.end)
    keys = unpickle(head, where, state.end)
    if not isinstance(keys.value, list):
        raise CheckpointError(f"{source}: lacks the list of storages after its state dict")
    stored = _find_storages(keys.value, state.storages, keys.end, source)

    def locate(storage: Storage) -> StorageBytes:
        if storage.key not in stored:
            raise CheckpointError(f"{source}: lacks storage {name_text(storage.key)}, which its state dict refers to")
        return stored[storage.key]

    return state.value, locate


def _find_storages(
    keys: list[object], storages: dict[str, Storage], position: int, source: Source
) -> dict[str, StorageBytes]:
    stored: dict[str, StorageBytes] = {}
    for key in keys:
        if not isinstance(key, str) or key not in storages or key in stored:
            raise CheckpointError(f"{source}: lists a storage twice, or one that its state dict does not refer to")
        where, expected = f"{source}: storage {name_text(key)}", storages[key]
        count = SourceIO(source, position).read(8)
        if len(count) < 8:
            raise CheckpointError(f"{where} should begin at byte {position:,}, the file has {source.size:,} bytes")
        elements = int.from_bytes(count, "little", signed=True)
        if elements != expected.elements:
            raise CheckpointError(f"{where} has {elements:,} elements, should have {expected.elements:,}")
        offset = position + len(count)
        position = offset + expected.nbytes
        if position > source.size:
            raise CheckpointError(f"{where} ends at byte {position:,}, the file has {source.size:,} bytes")
        stored[key] = StorageBytes(f"storage {key}", source, offset, expected.nbytes)
    return stored
