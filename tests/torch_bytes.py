"""Pickles and archives as torch.save writes them, put together by hand: what torch itself would never write, too."""

import io
import pickle
import struct
import zipfile
from collections.abc import Mapping


def number(value: int) -> bytes:
    if -(2**31) <= value < 2**31:
        return pickle.BININT + struct.pack("<i", value)
    encoded = pickle.encode_long(value)
    return pickle.LONG1 + bytes([len(encoded)]) + encoded


def text(value: str) -> bytes:
    encoded = value.encode("utf-8", "surrogatepass")
    return pickle.BINUNICODE + struct.pack("<I", len(encoded)) + encoded


def named(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def group(*items: bytes) -> bytes:
    return pickle.MARK + b"".join(items) + pickle.TUPLE


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + group(*arguments) + pickle.REDUCE


def numbers(values: tuple[int, ...]) -> bytes:
    return group(*map(number, values))


def ordered_dict() -> bytes:
    return named("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE


def storage(key: str, elements: int, kind: str = "FloatStorage", *view: bytes) -> bytes:
    return group(text("storage"), named("torch", kind), text(key), text("cpu"), number(elements), *view) + (
        pickle.BINPERSID
    )


def tensor(where: bytes, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> bytes:
    rebuild = named("torch._utils", "_rebuild_tensor_v2")
    rest = (pickle.NEWFALSE, ordered_dict())
    return call(rebuild, where, number(offset), numbers(shape), numbers(strides), *rest)


def mapping(items: Mapping[str, bytes]) -> bytes:
    pairs = b"".join(text(key) + value for key, value in items.items())
    return pickle.EMPTY_DICT + pickle.MARK + pairs + pickle.SETITEMS


def pickled(value: bytes) -> bytes:
    return pickle.PROTO + b"\x02" + value + pickle.STOP


def archive(
    entries: Mapping[str, bytes], *, root: str = "archive/", compression: int = zipfile.ZIP_STORED, zip64: bool = False
) -> bytes:
    """Return a zip archive with the entries inside a folder; the same bytes at any time, as no clock goes in."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as file:
        for name, content in entries.items():
            info = zipfile.ZipInfo(root + name)
            info.compress_type = compression
            info.create_system = 3  # Unix, wherever this runs.
            with file.open(info, "w", force_zip64=zip64) as entry:
                entry.write(content)
    return target.getvalue()


def checkpoint(value: bytes, storages: Mapping[str, bytes] | None = None) -> bytes:
    """Return an archive as torch.save writes it, with a pickle of the value and the storages' bytes."""
    data = {f"data/{key}": content for key, content in (storages or {}).items()}
    return archive({"data.pkl": pickled(value), "byteorder": b"little", **data, "version": b"3\n"})


def stream(value: bytes, storages: Mapping[str, tuple[int, bytes]], *, little_endian: bool = True) -> bytes:
    """Return a file as torch.save wrote it before torch 1.6; a storage is the count of its elements and its bytes."""
    system = {
        "protocol_version": number(1001),
        "little_endian": pickle.NEWTRUE if little_endian else pickle.NEWFALSE,
        "type_sizes": mapping({"short": number(2), "int": number(4), "long": number(4)}),
    }
    keys = pickle.EMPTY_LIST + pickle.MARK + b"".join(map(text, storages)) + pickle.APPENDS
    parts = (number(0x1950A86A20F9469CFC6C), number(1001), mapping(system), value, keys)
    data = (struct.pack("<q", count) + content for count, content in storages.values())
    return b"".join(map(pickled, parts)) + b"".join(data)


def entries(content: bytes) -> dict[str, bytes]:
    """Return what an archive has inside its folder."""
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        return {info.filename.partition("/")[2]: file.read(info) for info in file.infolist()}
