"""The reader of GGUF headers: what it says of real files, and every way in which a header can lie."""

import os
import struct
import sys
from pathlib import Path
from typing import Any

import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType

from clipgguf import CheckpointError, Options, convert
from clipgguf.checkpoint.gguf_reader import (
    LARGEST_ALIGNMENT,
    LONGEST_NAME,
    read_gguf,
)
from clipgguf.limits import LARGEST_HEADER, MOST_ENTRIES, MOST_VALUES
from clipgguf.options import Outtype
from clipgguf.sources.local import LocalFile
from tests.checkpoints import write_model
from tests.gguf_bytes import array, gguf, key, string, tensor, uint32
from tests.llava_checkpoints import Llava, write_hf
from tests.processes import peak_of, peak_rss, taking_at_most

T = GGUFValueType
F32, Q8_0 = GGMLQuantizationType.F32, GGMLQuantizationType.Q8_0
FUZZ = int(os.environ.get("CLIPGGUF_FUZZ", "1000"))
FEW = 200
# Limits for any input at all.
SECONDS = 2.0
MEBIBYTES = 256


def read(path: Path, data: bytes) -> Any:
    path.write_bytes(data)
    return read_gguf(LocalFile(path))


@pytest.mark.parametrize("outtype", ["f32", "f16", "bf16", "q8_0", "q4_1"])
@pytest.mark.parametrize("what", ["clip", "mmproj"])
def test_same_as_ggufs_own_reader(what: str, outtype: Outtype, tmp_path: Path) -> None:
    model = write_model(tmp_path / "m") if what == "clip" else write_hf(tmp_path / "m", Llava(has_newline=True))
    path = convert(model, tmp_path / "x.gguf", options=Options(outtype=outtype)).path
    file, reader = read_gguf(LocalFile(path)), GGUFReader(path)
    fields = [field for name, field in reader.fields.items() if not name.startswith("GGUF.")]
    assert [item.key for item in file.metadata] == [field.name for field in fields]
    assert [item.value_type for item in file.metadata] == [field.types[-1] for field in fields]
    values = [list(item.value) if item.is_array else item.value for item in file.metadata]
    assert values == [field.contents() for field in fields]
    assert [
        (t.name, t.dtype, list(reversed(t.shape)), t.offset, t.nbytes, str(t.file)) for t in file.tensors
    ] == [
        (t.name, t.tensor_type.name, t.shape.tolist(), t.data_offset, t.n_bytes, str(path)) for t in reader.tensors
    ]  # fmt: skip
    assert (file.version, file.alignment, file.source.size) == (3, reader.alignment, path.stat().st_size)
    assert file.data_start == reader.data_offset


SCALARS: dict[GGUFValueType, tuple[str, Any]] = {
    T.UINT8: ("B", 255),
    T.INT8: ("b", -128),
    T.UINT16: ("H", 65_535),
    T.INT16: ("h", -32_768),
    T.UINT32: ("I", 2**32 - 1),
    T.INT32: ("i", -(2**31)),
    T.UINT64: ("Q", 2**64 - 1),
    T.INT64: ("q", -(2**63)),
    T.FLOAT32: ("f", 0.5),
    T.FLOAT64: ("d", 0.1),
    T.BOOL: ("?", True),
}


@pytest.mark.parametrize("version", [2, 3])
def test_every_type_of_value(version: int, tmp_path: Path) -> None:
    keys = [key(f"{t.name}.one", t, struct.pack(f"<{code}", value)) for t, (code, value) in SCALARS.items()]
    keys += [array(f"{t.name}.two", t, 2, struct.pack(f"<2{code}", value, 0)) for t, (code, value) in SCALARS.items()]
    keys += [array(f"{t.name}.none", t, 0, b"") for t in (*SCALARS, T.STRING)]
    keys += [key("text", T.STRING, string("né\0\n")), key("empty", T.STRING, string(""))]
    keys += [array("texts", T.STRING, 3, string("a") + string("") + string("日本"))]
    file = read(tmp_path / "x.gguf", gguf(keys, version=version))
    assert file.version == version
    for value_type, (_, value) in SCALARS.items():
        assert file.value(f"{value_type.name}.one") == value
        assert file.value(f"{value_type.name}.two") == (value, 0)
        assert type(file.value(f"{value_type.name}.one")) is type(value)
    assert {item.value for item in file.metadata if item.key.endswith(".none")} == {()}
    assert (file.value("text"), file.value("empty")) == ("né\0\n", "")
    assert file.value("texts") == ("a", "", "日本")
    assert file.value("missing") is None


def test_shapes(tmp_path: Path) -> None:
    shapes = {"scalar": (), "empty": (0, 3), "vector": (3,), "kernel": (2, 3, 1, 2)}
    entries = [tensor(name, shape, offset=64 * n) for n, (name, shape) in enumerate(shapes.items())]
    file = read(tmp_path / "x.gguf", gguf((), entries, bytes(64 * len(shapes))))
    assert {t.name: t.shape for t in file.tensors} == shapes
    assert [t.nbytes for t in file.tensors] == [4, 0, 12, 48]


X = tensor("x")
ALIGNMENT = "general.alignment"
DATA = bytes(64)
LIES: dict[str, tuple[bytes, list[str]]] = {
    "empty": (b"", ["truncated", "0 bytes"]),
    "magic": (gguf(magic=b"GGML"), ["no GGUF file", "b'GGML'", "b'GGUF'"]),
    "magic alone": (b"GGUF", ["truncated", "version"]),
    "version 0": (gguf(version=0), ["version 0", "2 and 3"]),
    "version 1": (gguf(version=1), ["version 1", "2 and 3"]),
    "version 4": (gguf(version=4), ["version 4"]),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), ["big-endian", "little-endian"]),
    "no counts": (b"GGUF" + struct.pack("<I", 3), ["truncated", "number of tensors"]),
    "many keys": (gguf(key_count=2**63), ["truncated", "9,223,372,036,854,775,808 metadata keys"]),
    "many tensors": (gguf(tensor_count=2**64 - 1), ["truncated", "18,446,744,073,709,551,615 tensors"]),
    "more keys than there are": (gguf([uint32("a", 1)], key_count=2), ["key 1", "empty name"]),
    "more tensors than there are": (gguf([], [X], tensor_count=2), ["truncated"]),
    "too many tensors to hold": (gguf(tensor_count=MOST_ENTRIES + 1, data=bytes(2 * 2**20)), ["at most 65,536"]),
    "a long key": (gguf([struct.pack("<Q", 2**40)], data=DATA), ["name of metadata key 0", "1,099,511,627,776"]),
    "a key beyond the end": (gguf([struct.pack("<Q", 1000)], data=DATA), ["truncated", "metadata key 0"]),
    "an empty key": (gguf([uint32("", 1)]), ["metadata key 0", "empty name"]),
    "a key that is no UTF-8": (gguf([key(b"a\xff", T.UINT32, bytes(4))]), ["UTF-8", "0xff", "33"]),
    "the same key": (gguf([uint32("a", 1), uint32("b", 1), uint32("a", 2)]), ["'a' twice"]),
    "a type of value": (gguf([key("a", 13, bytes(8))]), ["'a'", "value type 13", "0 to 12"]),
    "a type of array": (gguf([array("a", 99, 1, bytes(8))]), ["array of metadata key 'a'", "value type 99"]),
    "an array of arrays": (gguf([array("a", T.ARRAY, 1, bytes(64))]), ["'a'", "array of arrays"]),
    "a long array": (gguf([array("a", T.UINT8, 2**40, b"")], data=DATA), ["truncated", "1,099,511,627,776 values"]),
    "an array of 2^64 - 1": (gguf([array("a", T.UINT64, 2**64 - 1, DATA)]), ["truncated", "'a'"]),
    "an array a bit too long": (gguf([array("a", T.UINT32, 3, bytes(8))], alignment=1), ["truncated", "'a'", "3 val"]),
    "an array too long to hold": (gguf([array("a", T.BOOL, MOST_VALUES + 1, bytes(MOST_VALUES + 1))]), ["2,097,152"]),
    "many strings": (gguf([array("a", T.STRING, 2**60, DATA)]), ["truncated", "1,152,921,504,606,846,976 values"]),
    "a long string": (gguf([key("a", T.STRING, struct.pack("<Q", 2**62))], data=DATA), ["'a'", "4,611,686,018,427"]),
    "a string beyond the end": (gguf([key("a", T.STRING, struct.pack("<Q", 999))], data=DATA), ["truncated", "'a'"]),
    "a long string in an array": (
        gguf([array("a", T.STRING, 2, string("x") + struct.pack("<Q", 2**64 - 1))], data=DATA),
        ["truncated", "string 1 of metadata key 'a'"],
    ),
    "a string in an array, cut off": (
        gguf([array("a", T.STRING, 2, string("12345678901") + b"\1")], alignment=1),
        ["truncated", "string 1 of metadata key 'a'"],
    ),
    "text that is no UTF-8": (gguf([key("a", T.STRING, string(b"ok\xc3"))]), ["'a'", "UTF-8", "0xc3", "47"]),
    "a token that is no UTF-8": (
        gguf([array("a", T.STRING, 2, string("ok") + string(b"a\xfe"))]),
        ["string 1 of metadata key 'a'", "0xfe", "offset 68"],
    ),
    "a bool": (gguf([key("a", T.BOOL, b"\2")], data=DATA), ["'a'", "is 2", "0 or 1"]),
    "a bool in an array": (gguf([array("a", T.BOOL, 3, b"\0\1\xff")]), ["'a'", "255", "0 or 1"]),
    "alignment 0": (gguf([uint32(ALIGNMENT, 0)]), [ALIGNMENT, "is 0", "power of two"]),
    "alignment 4": (gguf([uint32(ALIGNMENT, 4)]), [ALIGNMENT, "is 4", "8"]),
    "alignment 48": (gguf([uint32(ALIGNMENT, 48)]), [ALIGNMENT, "is 48", "power of two"]),
    "alignment 2^31": (gguf([uint32(ALIGNMENT, 2**31)]), [ALIGNMENT, "2,147,483,648", f"{LARGEST_ALIGNMENT:,}"]),
    "alignment of another type": (gguf([key(ALIGNMENT, T.UINT64, bytes(8))]), [ALIGNMENT, "UINT64", "UINT32"]),
    "an array of alignments": (gguf([array(ALIGNMENT, T.UINT32, 1, bytes(4))]), [ALIGNMENT, "an array of UINT32"]),
    "a long name": (gguf([], [tensor("n" * (LONGEST_NAME + 1))], DATA), ["tensor 0", "64 bytes", "63"]),
    "a name that is no UTF-8": (gguf([], [tensor(b"\x80")], DATA), ["tensor 0", "UTF-8", "0x80"]),
    "the same name": (gguf([], [X, tensor("y", offset=32), X], bytes(96)), ["'x' twice"]),
    "5 axes": (gguf([], [tensor("x", (1,) * 5)], DATA), ["'x'", "5 axes", "at most 4"]),
    "2^32 - 1 axes": (gguf([], [string("x") + b"\xff" * 4], bytes(99)), ["'x'", "4,294,967,295 axes"]),
    "an overflow": (gguf([], [tensor("x", (2**32, 2**32))], DATA), ["'x'", "more values"]),
    "a type of tensor": (gguf([], [tensor("x", ggml_type=999)], DATA), ["'x'", "GGML type 999"]),
    "a type that is gone": (gguf([], [tensor("x", ggml_type=4)], DATA), ["'x'", "GGML type 4"]),
    "rows of half a block": (gguf([], [tensor("x", (2, 16), Q8_0)], DATA), ["'x'", "16 values", "Q8_0", "32"]),
    "a number of type Q8_0": (gguf([], [tensor("x", (), Q8_0)], DATA), ["'x'", "Q8_0"]),
    "an odd offset": (gguf([], [tensor("x", offset=4)], DATA), ["'x'", "offset 4", "multiple of 32"]),
    "an offset beyond the end": (gguf([], [tensor("x", offset=2**63)], DATA), ["'x'", "truncated"]),
    "an offset of 2^64 - 32": (gguf([], [tensor("x", offset=2**64 - 32)], DATA), ["'x'", "truncated"]),
    "a tensor beyond the end": (gguf([], [tensor("x", (17,))], DATA), ["'x'", "truncated", "1 of 1"]),
    "no data": (gguf([], [X]), ["'x'", "truncated"]),
    "no padding": (gguf([], [X], alignment=1), ["'x'", "truncated"]),
    "tensors in one place": (gguf([], [X, tensor("y")], DATA), ["'x'", "'y'", "overlap"]),
    "tensors that overlap": (gguf([], [tensor("y", offset=32), tensor("x", (9,))], DATA), ["'x'", "'y'", "overlap"]),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_lies(lie: str, tmp_path: Path) -> None:
    data, words = LIES[lie]
    path = tmp_path / "lie.gguf"
    with taking_at_most(SECONDS), pytest.raises(CheckpointError) as caught:
        read(path, data)
    (line,) = caught.value.problems
    assert line.startswith(f"{path}: ")
    assert all(word in line.removeprefix(str(path)) for word in words), line


def test_header_of_unbelievable_size(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(gguf([key("a", T.STRING, struct.pack("<Q", LARGEST_HEADER))]))
    os.truncate(path, 2 * LARGEST_HEADER)
    with pytest.raises(CheckpointError, match=f"header of more than {LARGEST_HEADER:,} bytes"):
        read_gguf(LocalFile(path))


def test_what_is_no_file(tmp_path: Path) -> None:
    for path, words in (
        (tmp_path, "no regular file"),
        (tmp_path / "none.gguf", "is missing"),
        (tmp_path / ("n" * 300), "n"),
    ):
        with pytest.raises(CheckpointError, match=words):
            read_gguf(LocalFile(path))


@pytest.mark.skipif(
    sys.platform == "win32", reason="Windows has no named pipes and devices among files, and no links for everybody"
)
def test_pipes_and_devices_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    (tmp_path / "link.gguf").symlink_to(tmp_path / "nowhere")
    for path, words in (
        (tmp_path / "pipe.gguf", "no regular file"),
        (Path("/dev/zero"), "no regular file"),
        (Path("/dev/null"), "no regular file"),
        (tmp_path / "link.gguf", "broken symbolic link"),
    ):
        with taking_at_most(1), pytest.raises(CheckpointError, match=words):
            read_gguf(LocalFile(path))


@pytest.mark.skipif(sys.platform == "win32", reason="files have no holes on Windows unless they are asked to")
def test_only_the_header_is_read(tmp_path: Path) -> None:
    path = tmp_path / "big.gguf"
    nbytes = 10 * 2**30
    path.write_bytes(gguf([uint32("a", 1)], [tensor("x", (nbytes // 4,))]))
    os.truncate(path, path.stat().st_size + nbytes)
    with taking_at_most(1):
        assert peak_of(lambda: read_gguf(LocalFile(path))) < 2**20
    assert [t.nbytes for t in read_gguf(LocalFile(path)).tensors] == [nbytes]


def test_a_vocabulary_takes_little_memory(tmp_path: Path) -> None:
    tokens = [f"tok{i}</w>" for i in range(49_408)]
    path = tmp_path / "x.gguf"
    path.write_bytes(gguf([array("tokenizer.ggml.tokens", T.STRING, len(tokens), b"".join(map(string, tokens)))]))
    assert (
        peak_of(lambda: read_gguf(LocalFile(path))) < 6 * 2**20
    )  # A str of 11 characters takes 60 bytes, and 8 in the tuple.
    assert list(read_gguf(LocalFile(path)).value("tokenizer.ggml.tokens")) == tokens


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss is in KiB on Linux only")
def test_the_worst_that_a_header_can_hold(tmp_path: Path) -> None:
    # Strings that take the most memory for their length: two characters, one of which is none of the 65,536 first.
    text = string("a\U0001f600")
    count = (LARGEST_HEADER - 100) // len(text)
    assert count < MOST_VALUES
    path = tmp_path / "x.gguf"
    path.write_bytes(gguf([array("a", T.STRING, count, text * count)]))
    code = (
        "import sys, time; from pathlib import Path; from clipgguf.checkpoint.gguf_reader import read_gguf\n"
        "from clipgguf.sources.local import LocalFile\n"
        "file = LocalFile(Path(sys.argv[1]))\n"
        "started = time.process_time(); read_gguf(file); seconds = time.process_time() - started\n"
        f"assert seconds < {2 * SECONDS}, seconds"
    )
    assert peak_rss("-c", code, path) < MEBIBYTES * 2**20
