"""One file of torch.save: which tensors its state dict has and where their bytes lie, without torch.

Reads the directory and the pickle, and no storage's bytes. Since torch 1.6 the file is a zip archive, as ``_save`` of
``torch/serialization.py`` (torch 2.13) writes it: in one folder ``data.pkl``, the object; ``data/0``, ``data/1``, ...,
the storages; and entries that older files lack, of which ``byteorder`` matters. torch stores every entry without
compression; other programs that pack the archive anew compress it. Files of before are for torch_stream.
"""

import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from clipgguf.checkpoint.deflate import Deflated, InflatedStorage, inflate
from clipgguf.checkpoint.torch_globals import Storage, name_text
from clipgguf.checkpoint.torch_pickle import LARGEST_PICKLE, unpickle
from clipgguf.checkpoint.torch_state import StorageBytes, source_tensors
from clipgguf.checkpoint.torch_stream import read_stream
from clipgguf.errors import CheckpointError
from clipgguf.sources import FarSource, Source, SourceIO
from clipgguf.sources.ahead import read_many
from clipgguf.tensor import View

# An archive's directory takes about 100 bytes for a storage.
LARGEST_DIRECTORY = 1 << 22
# Trained weights hardly compress at all; deflate makes at best 1 byte of 1,032.
BOMB_RATIO = 100
BOMB_SIZE = 1 << 20

ZIP_MAGIC = b"PK\x03\x04"
GZIP_MAGIC = b"\x1f\x8b"
TAR_MAGIC, TAR_MAGIC_OFFSET = b"ustar", 257

# The general purpose bits (PKWARE's APPNOTE.TXT, 4.4.4) that make an entry unreadable: encrypted, a patch, strongly
# encrypted, masked.
UNREADABLE_FLAGS = 1 << 0 | 1 << 5 | 1 << 6 | 1 << 13

# The fixed part of an entry's local header (APPNOTE.TXT 4.3.7): signature, flags, compression method, CRC-32, the sizes
# compressed and not, and the lengths of the name, which follows, and of the extra field after it.
LOCAL_HEADER = struct.Struct("<4s2xHH4xIIIHH")
# The flag by which CRC-32 and sizes come after the bytes, as torch writes them, and may be 0 in the header (4.4.4).
SIZES_COME_LATER = 1 << 3
# A size that is in the extra field (4.5.3).
IN_EXTRA_FIELD = 0xFFFFFFFF
_NO_HEADERS: Mapping[int, bytes] = {}


@dataclass(frozen=True, slots=True)
class _Entry:
    """An entry as the archive's directory describes it, and the byte where the next one, or the directory, begins."""

    info: zipfile.ZipInfo
    end: int

    @property
    def raw_name(self) -> bytes:
        """The name as it stands in the archive."""
        return self.info.orig_filename.encode("utf-8" if self.info.flag_bits & 1 << 11 else "cp437")


def read_torch_file(source: Source) -> list[View]:
    """Return the tensors of a state dict that torch.save wrote, in the dict's order; reads no tensor's bytes.

    Raises CheckpointError when the file is truncated or damaged, is no torch.save's, or asks for anything else than
    tensors. Nothing in it is executed.
    """
    head = SourceIO(source).read(512)
    if head.startswith(ZIP_MAGIC):
        state, locate = _read_zip(source)
    elif head.startswith(pickle.PROTO):
        state, locate = read_stream(source)
    else:
        raise CheckpointError(f"{source}: {_describe_foreign(head)}")
    return source_tensors(state, locate, source)


def _describe_foreign(head: bytes) -> str:
    """Return what the user may have instead of a checkpoint, by the first bytes; regular_file knows more."""
    if not head:
        return "is empty"
    if head.startswith(TAR_MAGIC, TAR_MAGIC_OFFSET):
        advice = "if an early torch.save wrote it, it should be loaded and saved again with a newer torch"
        return f"is a tar archive; {advice}"
    if head.lstrip().startswith(GZIP_MAGIC):
        return "is compressed with gzip, should be unpacked first"
    if head[8:9] == b"{":
        return "is a safetensors file, and should have a name that ends in .safetensors"
    begins, right = head[:4].hex(" "), ZIP_MAGIC.hex(" ")
    return f"is no file of torch.save: begins with {begins}, should with {right} (a zip archive)"


class _DirectoryFile(SourceIO):
    """A file for zipfile to read the directory from, which allocates whatever a damaged length asks for."""

    def read(self, size: int | None = -1, /) -> bytes:
        """Read at most LARGEST_DIRECTORY bytes."""
        if size is not None and size > LARGEST_DIRECTORY:
            raise zipfile.BadZipFile(f"its directory has {size:,} bytes, should have {LARGEST_DIRECTORY:,} at most")
        return super().read(size)


def _read_zip(source: Source) -> tuple[object, Callable[[Storage], StorageBytes]]:
    """Return the object that an archive describes, and what finds its storages' bytes."""
    entries = _read_directory(source)
    root = _find_root(source, entries)
    # torch writes the entry since 2.1; files of before come from little-endian machines, as torch assumes too.
    if (entry := entries.get(f"{root}/byteorder")) and (order := _read_entry(source, entry, 16)) != b"little":
        raise CheckpointError(f"{source}: has the byte order {name_text(order.decode('latin-1'))}, should be little")
    pickled = _read_entry(source, entries[f"{root}/data.pkl"], LARGEST_PICKLE)
    state = unpickle(pickled, f"{source}: data.pkl").value
    found: dict[str, StorageBytes] = {}
    compressed = [0, 0]
    headers = _far_headers(source, [entry for name, entry in entries.items() if name.startswith(f"{root}/data/")])

    def locate(storage: Storage) -> StorageBytes:
        if storage.key not in found:
            entry = entries.get(f"{root}/data/{storage.key}")
            if entry is None:
                what = f"lacks the entry data/{name_text(storage.key)}, a storage that data.pkl refers to"
                raise CheckpointError(f"{source}: {what}")
            found[storage.key] = _locate(source, entry, headers)
            if isinstance(found[storage.key].file, InflatedStorage):
                compressed[0] += entry.info.compress_size
                compressed[1] += entry.info.file_size
                _check_ratio(f"{source}: its storages", *compressed)
        return found[storage.key]

    return state, locate


def _read_directory(source: Source) -> dict[str, _Entry]:
    """Return an archive's entries by name, after making sure that every one can be read."""
    try:
        with zipfile.ZipFile(_DirectoryFile(source)) as archive:
            infos, directory_offset = archive.infolist(), archive.start_dir
    except (zipfile.BadZipFile, OSError, RuntimeError, ValueError, struct.error) as e:
        # zipfile's own error, and what it lets through: a seek to nowhere, a version or feature that it does not know,
        # a name that is no UTF-8, an extra field that is too short.
        what = f"is a truncated or damaged zip archive: {e} (the file has {source.size:,} bytes)"
        raise CheckpointError(f"{source}: {what}") from e
    infos.sort(key=lambda info: info.header_offset)
    ends = [*(info.header_offset for info in infos), directory_offset][1:]
    entries: dict[str, _Entry] = {}
    for info, end in zip(infos, ends, strict=True):
        # Not info.filename: zipfile cuts that off at a NUL, and changes it on Windows.
        name, entry = info.orig_filename, _Entry(info, end)
        where = f"{source}: entry {name_text(name)}"
        if problem := _entry_problem(info, name):
            raise CheckpointError(f"{where} {problem}")
        if name in entries:
            raise CheckpointError(f"{source}: has two entries of the name {name_text(name)}")
        # Without an extra field, which only the local header tells of.
        _check_end(where, info.header_offset + LOCAL_HEADER.size + len(entry.raw_name) + info.compress_size, end)
        entries[name] = entry
    return entries


def _entry_problem(info: zipfile.ZipInfo, name: str) -> str | None:
    """Return what is wrong with an entry, as the end of a sentence that begins with its name."""
    if "\0" in name or "\\" in name or name.startswith("/") or name[1:2] == ":" or ".." in name.split("/"):
        return "has no name inside the archive's folder"
    if info.flag_bits & UNREADABLE_FLAGS:
        return "is encrypted"
    if info.volume:
        return "is in another part of a multi-part archive, should be all in one file"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f"is compressed by zip's method {info.compress_type}, should be stored (0) or deflated (8)"
    if info.compress_type == zipfile.ZIP_STORED and info.compress_size != info.file_size:
        return f"is stored in {info.compress_size:,} bytes, its size is {info.file_size:,}"
    return None


def _find_root(source: Source, entries: dict[str, _Entry]) -> str:
    """Return the name of the folder that everything is in."""
    inside = [entry.split("/") for entry in entries]
    if any(parts[1:] == ["constants.pkl"] or parts[1:2] == ["code"] for parts in inside):
        right = "a state dict: torch.save(torch.jit.load(...).state_dict(), ...)"
        raise CheckpointError(f"{source}: is a TorchScript archive, which holds a program; should be {right}")
    roots = [parts[0] for parts in inside if parts[1:] == ["data.pkl"]]
    if len(roots) != 1:
        what = f"is a zip archive with {len(roots)} entries <folder>/data.pkl"
        raise CheckpointError(f"{source}: {what}, one of torch.save has exactly one")
    return roots[0]


def _far_headers(source: Source, entries: list[_Entry]) -> dict[int, bytes]:
    """Return the local headers of entries by offset where each would be a wait of its own; else none."""
    if not isinstance(source, FarSource):
        return {}
    ranges = [(e.info.header_offset, e.info.header_offset + LOCAL_HEADER.size + len(e.raw_name)) for e in entries]
    return read_many(source, [(start, stop) for start, stop in ranges if 0 <= start < stop <= source.size])


def _locate(source: Source, entry: _Entry, headers: Mapping[int, bytes] = _NO_HEADERS) -> StorageBytes:
    """Return where an entry's bytes lie, which only its local header says; it may be among ``headers``."""
    info, name = entry.info, entry.info.orig_filename
    where, header = f"{source}: entry {name_text(name)}", headers.get(info.header_offset, b"")
    if not header and info.header_offset >= 0:
        header = SourceIO(source, info.header_offset).read(LOCAL_HEADER.size + len(entry.raw_name))
    if len(header) < LOCAL_HEADER.size or not header.startswith(ZIP_MAGIC):
        raise CheckpointError(f"{where} has no local header at byte {info.header_offset:,}, where it should be")
    _, flags, method, crc32, compressed_size, file_size, name_length, extra_length = LOCAL_HEADER.unpack_from(header)
    if method != info.compress_type:
        what = f"by method {method} in its header, by {info.compress_type} in the directory"
        raise CheckpointError(f"{where} is compressed {what}")
    if name_length != len(entry.raw_name) or header[LOCAL_HEADER.size :] != entry.raw_name:
        raise CheckpointError(f"{where} has another name in its header than in the directory")
    if flags & UNREADABLE_FLAGS:
        raise CheckpointError(f"{where} is encrypted by its header, is not by the directory")
    absent = (0,) if flags & SIZES_COME_LATER else ()
    for what, found, *right in (
        ("CRC-32", crc32, info.CRC, *absent),
        ("compressed size", compressed_size, info.compress_size, IN_EXTRA_FIELD, *absent),
        ("size", file_size, info.file_size, IN_EXTRA_FIELD, *absent),
    ):
        if found not in right:
            raise CheckpointError(f"{where} has the {what} {found:,} in its header, {right[0]:,} in the directory")
    offset = info.header_offset + LOCAL_HEADER.size + name_length + extra_length
    _check_end(where, offset + info.compress_size, entry.end)
    if method == zipfile.ZIP_STORED or not info.file_size:
        return StorageBytes(name, source, offset, info.file_size)
    _check_ratio(where, info.compress_size, info.file_size)
    deflated = Deflated(offset, info.compress_size, info.file_size, info.CRC)
    return StorageBytes(name, InflatedStorage(source, deflated), 0, info.file_size)


def _check_end(where: str, end: int, most: int) -> None:
    if end > most:
        right = f"where the next one or the directory begins, at byte {most:,}"
        raise CheckpointError(f"{where} ends at byte {end:,}, should {right}")


def _check_ratio(where: str, compressed: int, inflated: int) -> None:
    if inflated > BOMB_SIZE and inflated > compressed * BOMB_RATIO:
        what = "looks like a zip bomb, weights do not compress like that"
        raise CheckpointError(f"{where} would inflate from {compressed:,} to {inflated:,} bytes: {what}")


def _read_entry(source: Source, entry: _Entry, most: int) -> bytes:
    """Return the bytes of a small entry."""
    info = entry.info
    if info.file_size > most:
        what = f"has {info.file_size:,} bytes, should have {most:,} at most"
        raise CheckpointError(f"{source}: entry {name_text(info.orig_filename)} {what}")
    stored = _locate(source, entry)
    if isinstance(stored.file, InflatedStorage):
        return b"".join(inflate(source, stored.file.deflated))
    # Not held against its CRC-32, which is wrong after ``torch.serialization.set_crc32_options(False)``.
    return SourceIO(source, stored.offset).read(stored.nbytes)
