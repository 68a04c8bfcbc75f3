"""Zip archives that are wrong: encrypted, overlapping, inconsistent, or made to inflate without end."""

import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from clipgguf.checkpoint.torch_zip import read_torch_file
from clipgguf.sources.local import LocalFile
from tests.torch_bytes import (
    archive,
    mapping,
    pickled,
    storage,
    tensor,
)
from tests.torch_files import FOUR, WEIGHT, problem

# Archives that are wrong.


def patched(content: bytes, signature: bytes, offset: int, layout: str, value: int, *, which: int = -1) -> bytes:
    """Return an archive with a field of a header replaced, by default of the last header of its kind."""
    positions = [at for at in range(len(content)) if content.startswith(signature, at)]
    changed = bytearray(content)
    struct.pack_into(layout, changed, positions[which] + offset, value)
    return bytes(changed)


LOCAL, CENTRAL, END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
PLAIN = archive({"data.pkl": pickled(mapping({"weight": WEIGHT})), "data/0": FOUR["0"]})
DEFLATED = archive(
    {"data.pkl": pickled(mapping({"weight": WEIGHT})), "data/0": FOUR["0"]}, compression=zipfile.ZIP_DEFLATED
)


def repeated_entry() -> bytes:
    # zipfile warns of a name that it writes twice, so one of the same length is written and changed.
    return archive({"data.pkl": pickled(b"}"), "data/0": b"", "data/1": b""}).replace(b"data/1", b"data/0")


def patched_twice(local_offset: int, central_offset: int, value: int) -> bytes:
    """Return a compressed archive in which both headers of the pickle have that value."""
    content = patched(DEFLATED, LOCAL, local_offset, "<I", value, which=0)
    return patched(content, CENTRAL, central_offset, "<I", value, which=0)


ARCHIVES = {
    "encrypted": (patched(PLAIN, CENTRAL, 8, "<H", 1), "entry archive/data/0 is encrypted"),
    "multi-disk": (patched(PLAIN, CENTRAL, 34, "<H", 1), "in another part of a multi-part archive"),
    "method": (patched(PLAIN, CENTRAL, 10, "<H", 14), "is compressed by zip's method 14"),
    "stored-sizes": (patched(PLAIN, CENTRAL, 20, "<I", 15), "is stored in 15 bytes, its size is 16"),
    "methods-differ": (patched(PLAIN, LOCAL, 8, "<H", 8), "is compressed by method 8 in its header, by 0"),
    "no-local-header": (patched(PLAIN, LOCAL, 0, "<I", 0), "entry archive/data/0 has no local header at byte"),
    "local-header-outside": (patched(PLAIN, CENTRAL, 42, "<I", 10**9), "entry archive/data/0 ends at byte 1,000,000,0"),
    "entry-outside": (patched(PLAIN, LOCAL, 28, "<H", 65535), "entry archive/data/0 ends at byte"),
    "entries-overlap": (patched(PLAIN, CENTRAL, 42, "<I", 3), "entry archive/data.pkl ends at byte"),
    "entry-into-the-next": (patched(PLAIN, LOCAL, 28, "<H", 20, which=0), "entry archive/data.pkl ends at byte"),
    "entry-into-the-directory": (patched(PLAIN, LOCAL, 28, "<H", 1), "entry archive/data/0 ends at byte"),
    "names-differ": (patched(PLAIN, LOCAL, 30, "<B", ord("A")), "entry archive/data/0 has another name in its header"),
    "sizes-differ": (patched(PLAIN, LOCAL, 18, "<I", 15), "has the compressed size 15 in its header, 16 in the"),
    "inflated-sizes-differ": (patched(PLAIN, LOCAL, 22, "<I", 0), "has the size 0 in its header, 16 in the directory"),
    "crc32-differ": (patched(PLAIN, LOCAL, 14, "<I", 0), "entry archive/data/0 has the CRC-32 0 in its header"),
    "encrypted-in-the-header": (patched(PLAIN, LOCAL, 6, "<H", 1), "is encrypted by its header"),
    "directory-of-great-size": (patched(PLAIN, END, 12, "<I", 2**31), "is a truncated or damaged zip archive"),
    "nul-in-name": (PLAIN.replace(b"data/0", b"data\0" + b"0"), "has no name inside"),
    "two-of-a-name": (repeated_entry(), "has two entries of the name archive/data/0"),
    "no-pickle": (archive({"model.json": b"{}"}), "is a zip archive with 0 entries <folder>/data.pkl"),
    "pickle-at-the-top": (archive({"data.pkl": pickled(b"}")}, root=""), "with 0 entries <folder>/data.pkl"),
    "two-folders": (archive({"a/data.pkl": b"", "b/data.pkl": b""}, root=""), "with 2 entries <folder>/data.pkl"),
    "big-endian": (archive({"data.pkl": pickled(b"}"), "byteorder": b"big"}), "has the byte order big"),
    "byte-order-of-great-size": (archive({"data.pkl": b"", "byteorder": bytes(99)}), "should have 16 at most"),
    "truncated-pickle": (archive({"data.pkl": b"\x80\x02}"}), "data.pkl is truncated or damaged"),
    "deflated-pickle-damaged": (
        patched(DEFLATED, LOCAL, 46, "<I", 0xFFFFFFFF, which=0),
        "the entry compressed at byte 46 is damaged",
    ),
    "deflated-pickle-too-short": (
        patched_twice(22, 24, 10_000),
        "bytes, it should to 10,000",
    ),
    "deflated-pickle-too-long": (
        patched_twice(22, 24, 10),
        "inflates to more than the 10 bytes it should",
    ),
    "deflated-pickle-crc": (patched_twice(14, 16, 0), "it should be 00000000"),
}


@pytest.mark.parametrize(("content", "words"), ARCHIVES.values(), ids=ARCHIVES)
def test_archives_that_are_wrong(content: bytes, words: str, saved: Callable[[bytes], Path]) -> None:
    assert words in problem(saved(content))


def shared_block(entries: int, size: int) -> bytes:
    """Return an archive whose directory has many entries, all of which point at one compressed block."""
    keys = [f"{number:06}" for number in range(entries)]
    value = mapping({key: tensor(storage(key, size // 4), 0, (size // 4,), (1,)) for key in keys})
    random = np.random.default_rng(0).integers(0, 2, size, np.uint8)
    content = {"data.pkl": pickled(value), f"data/{keys[0]}": random.tobytes()}
    raw = archive(content, compression=zipfile.ZIP_DEFLATED)
    directory, end = raw.index(CENTRAL), raw.index(END)
    first = raw.index(CENTRAL, directory + 1)
    records = b"".join(raw[first:end].replace(keys[0].encode(), key.encode()) for key in keys)
    changed = bytearray(raw[:first] + records + raw[end:])
    struct.pack_into("<HHI", changed, len(changed) - 22 + 8, entries + 1, entries + 1, first - directory + len(records))
    return bytes(changed)


def test_entries_that_share_one_compressed_block(saved: Callable[[bytes], Path]) -> None:
    assert len(read_torch_file(LocalFile(saved(shared_block(1, 1 << 20))))) == 1
    assert "entry archive/data/000000 ends at byte" in problem(saved(shared_block(100, 1 << 20)))


def test_many_small_entries_that_compress_too_well_together(saved: Callable[[bytes], Path]) -> None:
    size = 1 << 19
    value = mapping({str(n): tensor(storage(str(n), size // 4), 0, (size // 4,), (1,)) for n in range(8)})
    content = {"data.pkl": pickled(value), **{f"data/{n}": bytes(size) for n in range(8)}}
    assert "its storages would inflate from" in problem(saved(archive(content, compression=zipfile.ZIP_DEFLATED)))
