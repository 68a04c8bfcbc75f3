"""Change a file a little, at random but repeatably: bytes, numbers in headers, and JSON as the tree that it is."""

import json
import math
import random
import re
import struct
import zipfile
from collections.abc import Callable
from typing import Any

from tests import torch_bytes
from tests.weights import safetensors_header

Chance = random.Random
Mutate = Callable[[bytes, Chance], bytes]

# Lengths, offsets and counts that programs get wrong.
NUMBERS = (
    *(0, 1, -1, 2, 3, 127, 128, 255, 2**15, 2**16 - 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53, 2**62),
    *(2**63 - 1, 2**63, 2**64 - 1),
)


# Bytes of an element; float8 and integers are what no tower has.
ITEMSIZE = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "U8": 1, "BOOL": 1, "F8_E4M3": 1}
ODD_NAMES = ("\x1b[31m", "\n", "{}", "{0}", "%s", "weight", "bias", "a" * 64, "é", "\U0001f600")
# Elements of a tensor whose data are written.
LARGEST = 1 << 20


class Literal(str):
    """JSON source text, which is written as it is."""

    __slots__ = ()


class Members(list[list[Any]]):
    """A JSON object as a list of [key, value], so that a key may come twice."""


LITERALS = tuple(
    map(
        Literal,
        (
            *(
                "null",
                "true",
                "false",
                "NaN",
                "Infinity",
                "-Infinity",
                "-1",
                "0",
                "1",
                "1.5",
                "-0.0",
                "1e-400",
                "1e999",
            ),
            *(
                str(10**400),
                "-" + str(10**400),
                "9" * 5000,
                '""',
                '"\\u001b[31mred\\u0007"',
                '"\\ud800"',
                '"a\\u0000b"',
            ),
            *('"../../x"', '"/dev/zero"', '"C:\\\\x"', '"."', '"clip"', '"llava"', '"a/b"', f'"{"x" * 5000}"'),
            *('"\\ud83d\\ude00"', "[]", "{}", "[[]]", "[1, 2, 3]", '{"a": 1}', "[null]", '["clip"]', "[0, 0]"),
            *("[" * depth + "]" * depth for depth in (40, 480, 900, 960, 985, 100_000)),
            *('{"a":' * depth + "1" + "}" * depth for depth in (40, 480, 900, 960)),
        ),
    )
)


def mutate_json(data: bytes, chance: Chance) -> bytes:
    """Change JSON: values, keys, and which of them there are; now and then its bytes."""
    if chance.random() < 0.1:
        return mutate_bytes(data, chance)
    tree = [json.loads(data, object_pairs_hook=lambda pairs: Members([key, value] for key, value in pairs))]
    for _ in range(chance.choice((1, 1, 1, 2, 2, 4, 8))):
        _edit(tree, chance)
    return _source(tree[0]).encode("utf-8", "surrogatepass") if tree else b""


def _source(node: Any) -> str:
    if isinstance(node, Literal):
        return str(node)
    if isinstance(node, Members):
        return "{" + ", ".join(f"{_source(key)}: {_source(value)}" for key, value in node) + "}"
    return f"[{', '.join(map(_source, node))}]" if isinstance(node, list) else json.dumps(node)


def _places(tree: list[Any]) -> list[tuple[list[Any], int]]:
    """Return where values are: a list and an index, or one of the pairs of Members and 1."""
    places: list[tuple[list[Any], int]] = []
    under_way: list[list[Any]] = [tree]
    while under_way:
        node = under_way.pop()
        slots = [(pair, 1) for pair in node] if isinstance(node, Members) else [(node, i) for i in range(len(node))]
        places += slots
        under_way += [container[index] for container, index in slots if isinstance(container[index], list)]
    return places


def _edit(tree: list[Any], chance: Chance) -> None:
    places = _places(tree)
    if not places:
        return
    # The beginning of a list of places is the upper levels; a vocabulary is most of what comes then.
    container, index = places[int(len(places) * chance.random() ** chance.choice((1, 2)))]
    value = container[index]
    objects = [node for node in (c[i] for c, i in places) if isinstance(node, Members) and node]
    match chance.choice(("literal", "literal", "literal", "number", "graft", "remove", "double", "rename")):
        case "literal":
            container[index] = chance.choice(LITERALS)
        case "number" if type(value) is int:
            nudged = (value - 1, value + 1, 2 * value, -value, value // 2, float(value), str(value), *NUMBERS)
            container[index] = chance.choice(nudged)
        case "number" | "graft":
            other, there = chance.choice(places)
            if not isinstance(other[there], list):
                container[index] = other[there]
        case "remove" if objects:
            members = chance.choice(objects)
            del members[chance.randrange(len(members))]
        case "double" if objects:
            members = chance.choice(objects)
            key, known = chance.choice(members)
            known = Literal(_source(known)) if chance.random() < 0.5 else chance.choice(LITERALS)
            members.insert(chance.randrange(len(members) + 1), [key, known])
        case "rename" if objects:
            names = [key for key, _ in chance.choice(objects)]
            odd = ("", "__metadata__", "x" * 300, Literal('"\\u001b[2J"'), Literal('"\\ud800"'), Literal('"\\u0000"'))
            chance.choice(chance.choice(objects))[0] = chance.choice((*names, *odd))


def mutate_bytes(data: bytes, chance: Chance, head: int | None = None) -> bytes:
    """Change bytes here and there, mostly among the first ``head``, where a file says what it holds."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
        size = len(changed)
        end = min(size, head) if head is not None and chance.random() < 0.85 else size
        at = chance.randrange(end + 1)
        length = min(chance.choice((1, 2, 4, 8, 16, 100, 1000)), size - at)
        match chance.choice(("flip", "flip", "set", "number", "number", "number", "cut", "insert", "remove", "copy")):
            case "flip" if at < size:
                changed[at] ^= 1 << chance.randrange(8)
            case "set" if at < size:
                changed[at] = chance.choice((0, 1, 0x1B, 0x7F, 0x80, 0xFF, chance.randrange(256)))
            case "number":
                width = chance.choice((1, 2, 4, 8))
                number = chance.choice((*NUMBERS, size, chance.randrange(1 << 16))) % (1 << 8 * width)
                changed[at : at + width] = number.to_bytes(width, chance.choice(("little", "little", "big")))
            case "cut":
                del changed[at:]
            case "insert":
                changed[at:at] = chance.choice((bytes(length), chance.randbytes(length), b"\xff" * length))
            case "remove":
                del changed[at : at + length]
            case "copy":
                there = chance.randrange(size + 1)
                changed[there:there] = changed[at : at + length]
    return bytes(changed)


def mutate_safetensors(data: bytes, chance: Chance) -> bytes:
    """Change the header's JSON, its length, or what comes after it."""
    length = int.from_bytes(data[:8], "little")
    header, body = data[8 : 8 + length], data[8 + length :]
    if chance.random() < 0.25:
        return mutate_bytes(data, chance, head=8 + length)
    if chance.random() < 0.9:
        header = mutate_json(header, chance)
        header += b" " * (-len(header) % 8)
    length = len(header)
    if chance.random() < 0.15:
        length = chance.choice((*NUMBERS, length - 1, length + 1, len(data), len(data) - 8)) % 2**64
    if chance.random() < 0.15:
        body = chance.choice((body[:-1], body + b"\0", b"", body * 2))
    return struct.pack("<Q", length) + header + body


def mutate_tensors(data: bytes, chance: Chance) -> bytes:
    """Change a safetensors file's names, shapes and dtypes so that it is a sound file still, whose data are zeros."""
    length = int.from_bytes(data[:8], "little")
    tensors = {
        name: (about["dtype"], tuple(about["shape"]))
        for name, about in json.loads(data[8 : 8 + length]).items()
        if name != "__metadata__"
    }
    for _ in range(chance.choice((1, 1, 1, 2, 4, 16))):
        if not tensors:
            break
        name, other = chance.choice(list(tensors)), chance.choice(list(tensors))
        dtype, shape = tensors.pop(name)
        match chance.choice(("rename", "rename", "shape", "shape", "shape", "dtype", "remove")):
            case "rename":
                name = _renamed(name, other, chance)
            case "shape":
                shape = _reshaped(shape, chance)
            case "dtype":
                dtype = chance.choice(tuple(ITEMSIZE))
            case "remove":
                continue
        tensors[name] = (dtype, shape)
    header, offset = {}, 0
    for name, (dtype, shape) in tensors.items():
        end = offset + math.prod(shape) * ITEMSIZE[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, end]}
        offset = end
    return safetensors_header(header) + bytes(offset)


def _renamed(name: str, other: str, chance: Chance) -> str:
    """Return a tensor's name changed a little: its numbers, what stands in front, or what other tensors are called."""
    parts = name.split(".")
    at = chance.randrange(len(parts))
    match chance.choice(("number", "number", "drop", "double", "tail", "front", "odd")):
        case "number":
            return re.sub(r"\d+", lambda _: str(chance.choice((0, 1, 2, 9, 10**8, 10**30, "007"))), name)
        case "drop":
            return ".".join(parts[:at] + parts[at + 1 :])
        case "double":
            return ".".join(parts[: at + 1] + parts[at:])
        case "tail":
            return ".".join((*parts[:-1], other.rpartition(".")[2]))
        case "front":
            return f"{chance.choice(('model', 'module', 'language_model', 'lm_head', 'visual'))}.{name}"
    return chance.choice((other, "", "\u0000", f"{name}.{chance.choice(ODD_NAMES)}", name.upper(), name * 20))


def _reshaped(shape: tuple[int, ...], chance: Chance) -> tuple[int, ...]:
    """Return a shape with axes in another order, more or fewer of them, or of other lengths; never very large."""
    axes = list(shape)
    match chance.choice(("order", "length", "length", "length", "insert", "drop", "flat", "none")):
        case "order":
            chance.shuffle(axes)
        case "length" if axes:
            at = chance.randrange(len(axes))
            axes[at] = chance.choice((0, 1, 2, 3, axes[at] + 1, axes[at] - 1, axes[at] * 2, axes[at] // 2, 2**31))
        case "insert":
            axes.insert(chance.randrange(len(axes) + 1), chance.choice((1, 1, 2, 0)))
        case "drop" if axes:
            del axes[chance.randrange(len(axes))]
        case "flat":
            axes = [math.prod(axes)]
        case "none":
            axes = []
    return tuple(axes) if math.prod(axes) <= LARGEST else shape


def mutate_torch(data: bytes, chance: Chance) -> bytes:
    """Change an archive's pickle, its entries or its bytes; of what is no archive, the bytes."""
    if not data.startswith(b"PK"):
        return mutate_bytes(data, chance, head=len(data) - 1000)
    if chance.random() < 0.3:
        # The directory is at the end.
        return (
            mutate_bytes(data[::-1], chance, head=1000)[::-1] if chance.random() < 0.7 else mutate_bytes(data, chance)
        )
    entries = torch_bytes.entries(data)
    root = "archive/"
    if chance.random() < 0.75:
        entries["data.pkl"] = mutate_bytes(entries["data.pkl"], chance)
    for _ in range(chance.choice((0, 0, 1, 2))):
        name = chance.choice(list(entries))
        match chance.choice(("bytes", "rename", "remove", "add", "root")):
            case "bytes":
                entries[name] = mutate_bytes(entries[name], chance)
            case "rename":
                entries[chance.choice(("../x", "/tmp/x", "C:/x", "a\\b", "", "data/../0", "constants.pkl"))] = (
                    entries.pop(name)
                )
            case "remove":
                del entries[name]
            case "add":
                entries[chance.choice(("byteorder", "code/x", ".data/x", "data/99"))] = chance.randbytes(9)
            case "root":
                root = chance.choice(("", "/", "../", "x/y/", "\x1b[2J/", "archive//"))
        if not entries:
            break
    return torch_bytes.archive(
        entries, root=root, compression=chance.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    )


def mutate_gguf(data: bytes, chance: Chance) -> bytes:
    """Change the bytes of a GGUF file's header more often than those of its tensors."""
    return mutate_bytes(data, chance, head=data.rfind(b".weight") + 48)
