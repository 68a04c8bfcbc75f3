"""Headers of safetensors files that lie are refused in a line, at once and in little memory."""

import os
import struct
import sys
from pathlib import Path
from typing import Any

import pytest

from clipgguf.checkpoint.safetensors import LARGEST_SAFETENSORS_HEADER, read_safetensors_header
from clipgguf.sources.local import LocalFile
from tests.refusals import assert_refused_without_reading, refusal

# safetensors.

ENTRY = '{"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}'


def entry(begin: Any = 0, end: Any = 8, shape: str = "[2]", dtype: str = "F32") -> str:
    return f'{{"dtype": "{dtype}", "shape": {shape}, "data_offsets": [{begin}, {end}]}}'


def header(text: str | bytes, body: bytes = bytes(8), length: int | None = None) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data) if length is None else length) + data + body


SOUND = f'{{"a": {ENTRY}}}'
NOT_SAFETENSORS = "is no safetensors file: its first 8 bytes tell of a header of"
HEADERS: dict[str, tuple[bytes, str]] = {
    "seven-bytes": (b"\0" * 7, "has 7 bytes"),
    "length-of-nothing": (header(SOUND, length=0), "no safetensors file"),
    "length-too-short": (header(SOUND, length=len(SOUND) - 1), "no safetensors file"),
    "length-into-the-tensors": (header(SOUND, length=len(SOUND) + 8), "no safetensors file"),
    "length-past-the-end": (header(SOUND, length=len(SOUND) + 9), "truncated or no safetensors file"),
    "length-of-the-file": (header(SOUND, length=len(SOUND) + 16), "truncated or no safetensors file"),
    "length-with-a-sign": (header(SOUND, length=2**64 - 1), NOT_SAFETENSORS),
    "length-that-overflows": (header(SOUND, length=2**64 - 8), NOT_SAFETENSORS),
    "length-of-two-gigabytes": (header(SOUND, length=2**31), NOT_SAFETENSORS),
    "header-of-great-length": (header(SOUND + " " * LARGEST_SAFETENSORS_HEADER), NOT_SAFETENSORS),
    "tensors-that-overlap": (header(f'{{"a": {entry()}, "b": {entry(4, 12)}}}', bytes(12)), "no safetensors file"),
    "tensors-in-one-place": (header(f'{{"a": {entry()}, "b": {entry()}}}'), "no safetensors file"),
    "hole-at-the-beginning": (header(f'{{"a": {entry(8, 16)}}}', bytes(16)), "no safetensors file"),
    "hole-between-tensors": (header(f'{{"a": {entry()}, "b": {entry(12, 20)}}}', bytes(20)), "no safetensors file"),
    "bytes-at-the-end": (header(SOUND, bytes(9)), "truncated or no safetensors file"),
    "tensor-past-the-end": (header(SOUND, bytes(7)), "truncated or no safetensors file"),
    "end-before-beginning": (header(f'{{"a": {entry(8, 0)}}}'), "no safetensors file"),
    "negative-offset": (header(f'{{"a": {entry(-8, 0)}}}'), "no safetensors file"),
    "offset-of-64-bits": (header(f'{{"a": {entry(2**64 - 8, 2**64 - 1)}}}'), "no safetensors file"),
    "offset-of-many-digits": (header(f'{{"a": {entry(0, 10**400)}}}'), "no safetensors file"),
    "offset-that-is-a-fraction": (header(f'{{"a": {entry("0.0", "8.0")}}}'), "no safetensors file"),
    "shape-that-overflows": (header(f'{{"a": {entry(shape="[4294967296, 4294967296]")}}}'), "no safetensors file"),
    "negative-shape": (header(f'{{"a": {entry(shape="[-2]")}}}'), "no safetensors file"),
    "unknown-type": (header(f'{{"a": {entry(dtype="OBJECT")}}}'), "no safetensors file"),
    "tensor-twice": (header(f'{{"a": {entry(dtype="U8", shape="[8]")}, "a": {ENTRY}}}'), "has the key 'a' twice"),
    "tensor-twice-alike": (header(f'{{"a": {ENTRY}, "a": {ENTRY}}}'), "has the key 'a' twice in its header"),
    "tensor-twice-by-an-escape": (header(f'{{"a": {ENTRY}, "\\u0061": {ENTRY}}}'), "has the key 'a' twice"),
    "type-twice": (header(f'{{"a": {ENTRY[:-1]}, "dtype": "I32"}}}}'), "no safetensors file"),
    "metadata-twice": (header(f'{{"__metadata__": {{}}, "a": {ENTRY}, "__metadata__": {{}}}}'), "no safetensors file"),
    "nested-deeply": (header('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}"), "no safetensors file"),
    "nested-in-metadata": (header('{"__metadata__": ' + '{"a":' * 500 + "1" + "}" * 501), "no safetensors file"),
    "name-that-is-no-unicode": (header(f'{{"\\ud800": {ENTRY}}}'), "no safetensors file"),
    "name-that-is-no-utf-8": (header(b'{"\xff": ' + ENTRY.encode() + b"}"), "no safetensors file"),
    "a-number": (header("1"), "no safetensors file"),
    "not-a-number": (header('{"a": NaN}'), "no safetensors file"),
}


@pytest.mark.parametrize(("content", "words"), HEADERS.values(), ids=HEADERS)
def test_safetensors_that_lie(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    message = refusal(lambda: read_safetensors_header(LocalFile(path)))
    assert message.startswith(f"{path}: ")
    assert words in message


def test_the_header_that_the_lies_are_made_of_is_sound(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(header(SOUND))
    (tensor,) = read_safetensors_header(LocalFile(path))
    assert (tensor.name, tensor.shape, tensor.offset, tensor.nbytes) == ("a", (2,), 8 + len(SOUND), 8)


@pytest.mark.skipif(sys.platform == "win32", reason="files have no holes on Windows unless they are asked to")
def test_safetensors_header_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 2**32))
    os.truncate(path, 2**33)
    assert_refused_without_reading(lambda: read_safetensors_header(LocalFile(path)), NOT_SAFETENSORS)
