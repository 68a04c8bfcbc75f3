"""Files of torch.save read without torch: every value as torch saved it, and every other file refused in one line."""

import hashlib
import math
import os
import pickle
import random
import shutil
import struct
import sys
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from clipgguf.checkpoint.deflate import Deflated, InflatedStorage
from clipgguf.checkpoint.torch_zip import read_torch_file
from clipgguf.errors import CheckpointError
from clipgguf.regular_file import NO_MODEL_FILES
from clipgguf.sources import Source
from clipgguf.sources.local import LocalFile
from clipgguf.tensor import View
from tests.torch_bytes import (
    archive,
    call,
    checkpoint,
    group,
    mapping,
    named,
    number,
    numbers,
    ordered_dict,
    pickled,
    storage,
    stream,
    tensor,
    text,
)

FIXTURES = Path(__file__).parent / "fixtures" / "torch"
GOOD = sorted((FIXTURES / "good").glob("*.bin"))
TRACE = "clipgguf-was-here"

# numpy's type for each of safetensors' codes; unsigned integers with the same bits where it has none.
NUMPY_DTYPES = {
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "F64": "<f8",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U8": "u1",
    "U16": "<u2",
    "BOOL": "?",
    "C64": "<c8",
    "F8_E4M3": "u1",
    "F8_E5M2": "u1",
}

FOUR = {"0": np.arange(4, dtype="<f4").tobytes()}
WEIGHT = tensor(storage("0", 4), 0, (4,), (1,))


def values(source: View) -> NDArray[Any]:
    """Return a tensor's elements by what its record says, and nothing else."""
    dtype = np.dtype(NUMPY_DTYPES[source.dtype])
    if not source.nbytes:
        return np.empty(source.shape, dtype)
    strides = None if source.strides is None else [stride * dtype.itemsize for stride in source.strides]
    storage = source.file
    stored = np.empty(source.extent, np.uint8)
    try:
        storage.read(source.offset, stored.data)
    finally:
        storage.close()
    return np.ndarray(source.shape, dtype, stored.data, strides=strides).copy()


def one(path: Path) -> NDArray[Any]:
    (source,) = read_torch_file(LocalFile(path))
    return values(source)


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[bytes], Path]:
    def save(content: bytes) -> Path:
        path = tmp_path / "pytorch_model.bin"
        path.write_bytes(content)
        return path

    return save


def problem(path: Path) -> str:
    """Return the one line that refuses a file, without the path that it begins with."""
    with pytest.raises(CheckpointError) as caught:
        read_torch_file(LocalFile(path, NO_MODEL_FILES))
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert message.isprintable()
    assert len(message) < 1000
    return message.removeprefix(f"{path}: ")


# What torch saved.


@pytest.mark.parametrize("path", GOOD, ids=lambda path: path.name)
def test_tensors_have_the_values_that_torch_saved(path: Path) -> None:
    with np.load(FIXTURES / "good" / "expected.npz") as file:
        expected = {key: file[key] for key in file.files if key.startswith(f"{path.name}/")}
    assert expected
    sources = read_torch_file(LocalFile(path))
    found = {f"{path.name}/{source.dtype}/{source.name}": source for source in sources}
    assert list(found) == list(expected)
    for key, source in found.items():
        wanted = expected[key]
        array = values(source)
        assert str(source.file) == str(path)
        assert source.shape == wanted.shape
        assert source.nbytes == wanted.nbytes
        assert array.dtype == wanted.dtype
        assert array.tobytes() == wanted.tobytes()
        # A stored tensor names no strides when it needs none.
        assert source.strides is None or values(source).tobytes() != read_range(source)


def read_range(source: View) -> bytes:
    if not isinstance(source.file, LocalFile):
        return b""
    return source.file.path.read_bytes()[source.offset : source.offset + source.nbytes]


def test_views_share_their_storage() -> None:
    sources = {source.name: source for source in read_torch_file(LocalFile(FIXTURES / "good" / "shared.bin"))}
    whole = sources["a"]
    assert sources["a.t"].offset == whole.offset
    assert sources["a.t"].strides == (1, 4)
    assert sources["a.1"].offset == whole.offset + 16
    assert sources["a.1"].strides is None
    assert sources["a.columns"].strides == (4, 1)
    assert sources["a.columns"].extent == (2 * 4 + 2) * 4


def test_stored_entries_need_no_inflating_and_deflated_ones_do() -> None:
    for name, expected in (("shared.bin", False), ("deflated-shared.bin", True)):
        sources = read_torch_file(LocalFile(FIXTURES / "good" / name))
        assert [isinstance(source.file, InflatedStorage) for source in sources] == [expected] * len(sources)


def test_opening_reads_neither_the_storages_nor_the_rest_of_the_file(saved: Callable[[bytes], Path]) -> None:
    size = 64 << 20
    elements = size // 4
    content = checkpoint(mapping({"weight": tensor(storage("0", elements), 0, (elements,), (1,))}), {"0": bytes(size)})
    path = saved(content)
    del content
    tracemalloc.start()
    try:
        (source,) = read_torch_file(LocalFile(path))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert source.nbytes == size
    assert peak < 1 << 20


# What we put together ourselves: the same format, other writers.


def test_archive_in_zip64_form_with_another_root(saved: Callable[[bytes], Path]) -> None:
    entries = {"data.pkl": pickled(mapping({"weight": WEIGHT})), "data/0": FOUR["0"]}
    assert one(saved(archive(entries, root="pytorch_model/", zip64=True))).tolist() == [0, 1, 2, 3]


def test_archive_after_something_else_of_a_self_extracting_kind_is_refused(saved: Callable[[bytes], Path]) -> None:
    assert "begins with 23 21 2f 62" in problem(saved(b"#!/bin/sh\n" + checkpoint(mapping({"weight": WEIGHT}), FOUR)))


def test_archive_with_entries_for_folders(saved: Callable[[bytes], Path]) -> None:
    entries = {"": b"", "data.pkl": pickled(mapping({"weight": WEIGHT})), "data/": b"", "data/0": FOUR["0"]}
    assert one(saved(archive(entries))).tolist() == [0, 1, 2, 3]


def test_objects_of_a_long_number(saved: Callable[[bytes], Path]) -> None:
    put, get = pickle.LONG_BINPUT + b"\0\1\0\0", pickle.LONG_BINGET + b"\0\1\0\0"
    value = b"}(" + text("a") + WEIGHT + put + text("b") + get + b"u"
    a, b = read_torch_file(LocalFile(saved(checkpoint(value, FOUR))))
    assert (a.name, b.name) == ("a", "b")
    assert values(a).tolist() == values(b).tolist() == [0, 1, 2, 3]


def test_legacy_views_of_a_storage(saved: Callable[[bytes], Path]) -> None:
    view = group(text("view"), number(1), number(3))
    value = mapping({"weight": tensor(storage("7", 4, "FloatStorage", view), 1, (2,), (1,))})
    assert one(saved(stream(value, {"7": (4, FOUR["0"])}))).tolist() == [2, 3]


def test_rebuild_tensor_of_before_version_2(saved: Callable[[bytes], Path]) -> None:
    rebuild = call(
        named("torch._utils", "_rebuild_tensor"), storage("0", 4), number(0), numbers((2, 2)), numbers((2, 1))
    )
    assert one(saved(checkpoint(mapping({"weight": rebuild}), FOUR))).tolist() == [[0, 1], [2, 3]]


def test_size_made_by_torch_size(saved: Callable[[bytes], Path]) -> None:
    size = call(named("torch", "Size"), numbers((2, 2)))
    rebuild = call(named("torch._utils", "_rebuild_tensor"), storage("0", 4), number(0), size, size)
    assert problem(saved(checkpoint(mapping({"weight": rebuild}), FOUR))).startswith("tensor 'weight' with offset 0")


@pytest.mark.parametrize("wrapper", ["state_dict", "module"])
def test_wrapper_beside_tensors_is_a_part_of_names(wrapper: str, saved: Callable[[bytes], Path]) -> None:
    value = mapping({wrapper: mapping({"weight": WEIGHT}), "bias": WEIGHT})
    names = [source.name for source in read_torch_file(LocalFile(saved(checkpoint(value, FOUR))))]
    assert names == [f"{wrapper}.weight", "bias"]


def test_state_dict_of_a_wrapped_module(saved: Callable[[bytes], Path]) -> None:
    value = mapping({"state_dict": mapping({"module": mapping({"weight": WEIGHT})}), "epoch": number(3)})
    assert [source.name for source in read_torch_file(LocalFile(saved(checkpoint(value, FOUR))))] == ["weight"]


def test_attributes_of_a_state_dict_are_ignored(saved: Callable[[bytes], Path]) -> None:
    value = ordered_dict() + text("weight") + WEIGHT + b"s" + mapping({"_metadata": ordered_dict()}) + b"b"
    assert one(saved(checkpoint(value, FOUR))).tolist() == [0, 1, 2, 3]


def test_storage_shared_by_types_of_other_sizes_when_empty(saved: Callable[[bytes], Path]) -> None:
    value = mapping(
        {"a": tensor(storage("0", 0), 0, (0,), (1,)), "b": tensor(storage("0", 0, "LongStorage"), 5, (3, 0), (9, 9))}
    )
    for source in read_torch_file(LocalFile(saved(checkpoint(value, {"0": b""})))):
        assert source.nbytes == source.extent == 0
        assert source.strides is None


def test_state_dict_without_tensors(saved: Callable[[bytes], Path]) -> None:
    assert read_torch_file(LocalFile(saved(checkpoint(mapping({"epoch": number(3)}))))) == []


# Files of torch that hold something else than a state dict, and files of somebody who means harm.

NOTHING = "which is nothing that a checkpoint of tensors needs; refused"
REFUSED = {
    "refused/conjugated.bin": "as negated or conjugated",
    "refused/list.bin": "holds a list, should hold a state dict",
    "refused/module.bin": f"data.pkl asks for torch.nn.modules.linear.Linear, {NOTHING}",
    "refused/negated.bin": "as negated or conjugated",
    "refused/quantized.bin": f"data.pkl asks for torch._utils._rebuild_qtensor, {NOTHING}",
    "refused/sparse.bin": f"data.pkl asks for torch._utils._rebuild_sparse_tensor, {NOTHING}",
    "refused/tensor.bin": "holds a tensor, should hold a state dict",
    "refused/torchscript.pt": "is a TorchScript archive, which holds a program; should be a state dict",
    "refused/unnamed.bin": "has a tensor under the key 0, should be a string",
    "hostile/absolute-name.bin": "entry /tmp/x has no name inside the archive's folder",
    "hostile/bool-shape.bin": "whose offset, shape or strides are malformed",
    "hostile/build-global.bin": "data.pkl gives attributes to a function, only an OrderedDict takes them",
    "hostile/build.bin": "data.pkl gives attributes to a dict, only an OrderedDict takes them",
    "hostile/eval.bin": f"data.pkl asks for builtins.eval, {NOTHING}",
    "hostile/extension.bin": "data.pkl uses the pickle opcode EXT1",
    "hostile/huge-numbers.bin": "whose offset, shape or strides are malformed",
    "hostile/inst.bin": f"data.pkl asks for posix.system, {NOTHING}",
    "hostile/larger-than-storage.bin": "tensor 'weight' is larger than its storage",
    "hostile/many-axes.bin": "whose offset, shape or strides are malformed",
    "hostile/negative-offset.bin": "tensor 'weight' has offset -1",
    "hostile/negative-shape.bin": "none of them should be negative",
    "hostile/negative-strides.bin": "strides (-1,), none of them should be negative",
    "hostile/nested-reduce.bin": f"data.pkl asks for builtins.getattr, {NOTHING}",
    "hostile/newobj.bin": "data.pkl uses the pickle opcode NEWOBJ",
    "hostile/obj.bin": f"data.pkl asks for posix.system, {NOTHING}",
    "hostile/os-system.bin": f"data.pkl asks for posix.system, {NOTHING}",
    "hostile/out-of-range-by-stride.bin": "ends at byte 20 of its storage, which has 16",
    "hostile/out-of-range.bin": "ends at byte 20 of its storage, which has 16",
    "hostile/parent-name.bin": "has no name inside the archive's folder",
    "hostile/persistent-id.bin": "data.pkl uses the pickle opcode PERSID",
    "hostile/stack-global.bin": f"data.pkl asks for posix.system, {NOTHING}",
    "hostile/storage-larger-than-entry.bin": "needs a storage of 20 bytes, archive/data/0 has 16",
    "hostile/storage-missing.bin": "lacks the entry data/1",
    "hostile/storage-outside.bin": "lacks the entry data/../data.pkl",
    "hostile/windows-name.bin": "has no name inside the archive's folder",
    "hostile/zip-bomb.bin": "looks like a zip bomb, weights do not compress like that",
}


@pytest.mark.parametrize(("file", "words"), REFUSED.items(), ids=REFUSED)
def test_refused_by_name_and_nothing_is_executed(
    file: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    modules = set(sys.modules)
    assert words in problem(FIXTURES / file)
    assert list(tmp_path.iterdir()) == []
    assert set(sys.modules) == modules


def test_every_refused_fixture_is_in_the_table() -> None:
    files = [path for folder in ("refused", "hostile") for path in (FIXTURES / folder).iterdir()]
    assert {path.relative_to(FIXTURES).as_posix() for path in files} == set(REFUSED)


@pytest.mark.skipif(sys.platform == "win32", reason="posix.system is not on Windows")
@pytest.mark.parametrize("name", ["os-system", "eval", "stack-global", "inst", "obj"])
def test_the_hostile_fixtures_do_harm_to_the_standard_unpickler(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without this, the test above could pass because the fixtures do nothing.
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile(FIXTURES / "hostile" / f"{name}.bin") as file:
        result = pickle.loads(file.read("archive/data.pkl"))
    if name == "eval":
        result.close()
    assert (tmp_path / TRACE).exists()


# Pickles that are wrong.

REBUILD = named("torch._utils", "_rebuild_tensor_v2")
PICKLES = {
    "empty": (b"", "data.pkl is truncated or damaged at its byte 2"),
    "stack-underflow": (b"\x85", "truncated or damaged"),
    "mark-missing": (b"t", "truncated or damaged"),
    "mark-above-the-stack": (b"NN(\x86t", "truncated or damaged"),
    "memo-missing": (b"h\x07", "truncated or damaged"),
    "long-string": (b"X\xff\xff\xff\xff", "truncated or damaged"),
    "no-utf-8": (b"X\x01\0\0\0\xff", "truncated or damaged"),
    "surrogate": (text("\ud800"), "truncated or damaged"),
    "global-without-end": (b"ctorch" + b"h" * 1000, "truncated or damaged"),
    "global-with-control-characters": (
        text("posix") + text("sys\x1b[2Jtem\n") + b"\x93",
        r"asks for 'posix.sys\x1b[2Jtem\n'",
    ),
    "global-of-great-length": (text("x" * 10_000) + text("y") + b"\x93", "asks for 'xxxx"),
    "global-no-string": (number(1) + number(2) + b"\x93", "a global whose name is no string"),
    "torchscript-class": (named("__torch__.clip", "Model"), "a class of a TorchScript archive"),
    "long4": (b"\x8b\xff\xff\xff\x7f", "opcode LONG4"),
    "decimal": (b"I" + b"9" * 10_000 + b"\n", "opcode INT"),
    "bytes": (b"B\xff\xff\xff\xff", "opcode BINBYTES"),
    "unknown-opcode": (b"\xff", "opcode 0xff (unknown)"),
    "append-to-tuple": (b")" + number(1) + b"a", "appends to a tuple"),
    "inst-of-something-known": (b"(itorch\nSize\n", "opcode INST"),
    "item-of-list": (b"]" + number(1) + number(1) + b"s", "sets an item of a list"),
    "item-without-value": (b"}(" + number(1) + b"u", "or one without a value"),
    "tuple-as-key": (b"})" + number(1) + b"s", "a dict with a tuple for a key"),
    "long-as-key": (b"}" + number(2**61 - 1) + number(1) + b"s", "a dict with an int for a key"),
    "call-of-tuple": (b"))R", "calls a tuple"),
    "call-of-dtype": (named("torch", "bfloat16") + b")R", "calls a dtype"),
    "call-without-tuple": (REBUILD + b"]R", "calls a function"),
    "too-few-arguments": (
        call(REBUILD, storage("0", 4)),
        "calls _rebuild_tensor_v2 with 1 arguments, should be 6 to 7",
    ),
    "arguments-of-ordered-dict": (call(named("collections", "OrderedDict"), b"]"), "with 1 arguments, should be 0"),
    "storage-of-tensor": (call(REBUILD, *[number(0)] * 6), "a tensor whose storage is none"),
    "dtype-of-tensor": (
        call(named("torch._utils", "_rebuild_tensor_v3"), storage("0", 4), *[number(0)] * 6),
        "a tensor whose dtype is none",
    ),
    "parameter-of-nothing": (
        call(named("torch._utils", "_rebuild_parameter"), *[number(0)] * 3),
        "a parameter of something that is no tensor",
    ),
    "size-of-nothing": (call(named("torch", "Size"), number(0)), "a torch.Size of something that is no tuple"),
    "ranks-differ": (mapping({"weight": tensor(storage("0", 4), 0, (4,), (1, 1))}), "strides are malformed"),
    "storage-by-number": (number(3) + b"Q", "refers to something outside that is no storage"),
    "module-by-id": (group(text("module"), *[b"N"] * 4) + b"Q", "refers to something outside that is no storage"),
    "storage-class": (group(text("storage"), *[text("0")] * 4) + b"Q", "a storage whose class, key or number"),
    "storage-count": (storage("0", -1), "a storage whose class, key or number"),
    "storage-view": (storage("0", 4, "FloatStorage", group(text("1"), number(3), number(2))), "does not lie inside"),
    "storage-view-no-tuple": (storage("0", 4, "FloatStorage", number(1)), "does not lie inside"),
    "storage-of-two-sizes": (storage("0", 4) + storage("0", 5), "refers to storage 0 twice, with different sizes"),
    "attributes-no-dict": (ordered_dict() + b")b", "gives attributes to an OrderedDict"),
    "two-of-a-name": (mapping({"a": mapping({"b": WEIGHT}), "a.b": WEIGHT}), "two tensors of the name 'a.b'"),
    "long-name": (mapping({"a" * 300: WEIGHT}), "whose name has 300 characters"),
    "nothing-but-none": (b"N", "holds a NoneType"),
}


@pytest.mark.parametrize(("value", "words"), PICKLES.values(), ids=PICKLES)
def test_pickles_that_are_wrong(value: bytes, words: str, saved: Callable[[bytes], Path]) -> None:
    path = saved(checkpoint(value, FOUR) if value else archive({"data.pkl": b"\x80\x02"}))
    assert words in problem(path)


# Pickles that are made to take all memory or time.


def doubled(times: int, innermost: bytes) -> bytes:
    """Return a dict that refers to one twice, which does to another, and so on: 2 ** times paths to the innermost."""
    value = innermost
    for index in range(times):
        put = pickle.BINPUT + bytes([index])
        get = pickle.BINGET + bytes([index])
        value = b"}(" + text("a") + value + put + text("b") + get + b"u"
    return value


def nested(times: int) -> bytes:
    """Return a dict that has a dict that has a dict..."""
    return (b"}" + text("a")) * times + b"}" + b"s" * times


COSTLY = {
    "dicts-doubled": (doubled(14, mapping({str(index): b"N" for index in range(200)})), "500,000 entries"),
    "dicts-doubled-more": (doubled(40, mapping({"weight": WEIGHT})), "nested more than 16 deep"),
    "tensors-doubled": (doubled(14, mapping({str(index): WEIGHT for index in range(8)})), "65,536 tensors"),
    "dict-in-itself": (b"}q\0" + text("a") + b"h\0s", "nested more than 16 deep"),
    "dicts-nested": (nested(100_000), "nested more than 16 deep"),
    "tuples-nested": (b")" + b"\x85" * 490_000, "holds a tuple"),
    "tuples-nested-in-a-key": (b"})" + b"\x85" * 490_000 + b"Ns", "a dict with a tuple for a key"),
    "tuples-nested-in-a-reference": (b")" + b"\x85" * 490_000 + b"Q", "something outside that is no storage"),
    "tuples-doubled": (b")" + b"q\0h\0\x86" * 160_000, "holds a tuple"),
    "lists-nested": (b"]" * 245_000 + b"a" * 244_999, "holds a list"),
    "marks": (b"(" * 490_000, "truncated or damaged"),
    "dicts": (b"}" * 1_000_000, "more than 500,000 opcodes"),
    "ordered-dicts": (b"(" + (named("collections", "OrderedDict") + b")R") * 160_000 + b"t", "holds a tuple"),
    "same-tensor": (
        REBUILD + b"q\0" + group(storage("0", 4), number(0), *[numbers((1,) * 8)] * 2, b"N", b"N") + b"q\1"
        + b"h\0h\1R" * 160_000,
        "holds a tensor",
    ),
    "large-string": (text("\U0001f600" + "a" * ((16 << 20) - 100)), "holds a str"),
    "large-pickle": (text("a" * (16 << 20)), "should have 16,777,216 at most"),
}  # fmt: skip


@pytest.mark.parametrize(("value", "words"), COSTLY.values(), ids=COSTLY)
def test_pickles_that_are_costly(value: bytes, words: str, saved: Callable[[bytes], Path]) -> None:
    assert words in problem(saved(checkpoint(value, FOUR)))


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


LEGACY = {
    "magic": (pickled(number(1)), "is a pickle, but none of torch.save"),
    "protocol": (pickled(number(0x1950A86A20F9469CFC6C)) + pickled(number(1002)), "should be 1001"),
    "big-endian": (stream(b"}", {}, little_endian=False), "is not little-endian"),
    "count": (stream(mapping({"weight": WEIGHT}), {"0": (5, bytes(20))}), "has 5 elements, should have 4"),
    "negative-count": (stream(mapping({"weight": WEIGHT}), {"0": (-1, b"")}), "has -1 elements, should have 4"),
    "short": (stream(mapping({"weight": WEIGHT}), {"0": (4, bytes(15))}), "the file has"),
    "storage-missing": (stream(mapping({"weight": WEIGHT}), {}), "lacks storage 0"),
    "storage-unknown": (stream(mapping({}), {"0": (0, b"")}), "one that its state dict does not refer to"),
    "os-system": (stream(call(named("posix", "system"), text("true")), {}), f"pickle asks for posix.system, {NOTHING}"),
    "many-opcodes": (pickled(b"N" * 2000), "more than 1,000 opcodes"),
    "no-list": (stream(b"}", {}).removesuffix(pickled(b"](e")) + pickled(b"}"), "lacks the list of storages"),
}


@pytest.mark.parametrize(("content", "words"), LEGACY.values(), ids=LEGACY)
def test_legacy_files_that_are_wrong(content: bytes, words: str, saved: Callable[[bytes], Path]) -> None:
    assert words in problem(saved(content))


OVERLAPS = {
    "three-axes": ((190, 190, 190), (16_384, 16_384, 16_384), True),
    "two-axes": ((1200, 1200), (4096, 4096), True),
    "windows": ((3000, 3000), (1, 1), False),
    "rows-of-windows": ((100, 300, 300), (400, 1, 1), False),
    "far-apart": ((500,), (20_000,), False),
    "transposed": ((3000, 3333), (1, 3000), False),
}


@pytest.mark.parametrize(("shape", "strides", "are_refused"), OVERLAPS.values(), ids=OVERLAPS)
def test_views_that_take_a_read_for_each_element(
    shape: tuple[int, ...], strides: tuple[int, ...], are_refused: bool, saved: Callable[[bytes], Path]
) -> None:
    elements = 10_000_000
    value = mapping({"weight": tensor(storage("0", elements), 0, shape, strides)})
    path = saved(stream(value, {"0": (elements, b"")}))
    os.truncate(path, path.stat().st_size + 4 * elements)
    if are_refused:
        assert "by which elements overlap in too many ways" in problem(path)
    else:
        assert read_torch_file(LocalFile(path))[0].strides == strides


FOREIGN = {
    "empty": (b"", "is empty"),
    "git-lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer"),
    "html": (b"\n<!DOCTYPE html><html>", "is a web page"),
    "gguf": (b"GGUF\3\0\0\0", "is a GGUF file already"),
    "gzip": (b"\x1f\x8b\x08\0", "is compressed with gzip"),
    "tar": (bytes(257) + b"ustar\0" + bytes(249), "is a tar archive"),
    "safetensors": (struct.pack("<Q", 2) + b"{}", "is a safetensors file"),
    "text": (b"hello", "is no file of torch.save: begins with 68 65 6c 6c, should with 50 4b 03 04"),
    "plain-pickle": (pickle.dumps({"weight": [1.0]}), "is a pickle, but none of torch.save"),
}


@pytest.mark.parametrize(("content", "words"), FOREIGN.values(), ids=FOREIGN)
def test_other_files(content: bytes, words: str, saved: Callable[[bytes], Path]) -> None:
    assert words in problem(saved(content))


def test_missing_file(tmp_path: Path) -> None:
    assert problem(tmp_path / "missing.bin") == "is missing"


def test_directory(tmp_path: Path) -> None:
    assert problem(tmp_path) == "is no regular file"


# Damage by chance.


@pytest.mark.parametrize("name", ["dtypes.bin", "deflated-dtypes.bin", "legacy.bin"])
def test_truncated_anywhere(name: str, saved: Callable[[bytes], Path]) -> None:
    content = (FIXTURES / "good" / name).read_bytes()
    for length in range(0, len(content), 7):
        problem(saved(content[:length]))


@pytest.mark.parametrize("name", ["parameters.bin", "deflated-shared.bin", "legacy.bin", "protocol-4.bin"])
def test_changed_bytes_give_tensors_inside_the_file_or_an_error(name: str, saved: Callable[[bytes], Path]) -> None:
    content = (FIXTURES / "good" / name).read_bytes()
    chance = random.Random(name)
    for _ in range(300):
        damaged = bytearray(content)
        for _ in range(chance.choice((1, 1, 2, 8))):
            damaged[chance.randrange(len(damaged))] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
        path = saved(bytes(damaged))
        try:
            sources = read_torch_file(LocalFile(path))
        except CheckpointError:
            continue
        for source in sources:
            end = source.file.size
            assert 0 <= source.offset <= source.offset + source.extent <= end


# Inflating.


def deflated_weight(saved: Callable[[bytes], Path], size: int) -> tuple[View, bytes]:
    content = np.random.default_rng(0).integers(0, 16, size, np.uint8).tobytes()
    value = mapping({"weight": tensor(storage("0", size, "ByteStorage"), 0, (size,), (1,))})
    entries = {"data.pkl": pickled(value), "data/0": content}
    (source,) = read_torch_file(LocalFile(saved(archive(entries, compression=zipfile.ZIP_DEFLATED))))
    return source, content


def read_byte(source: Source) -> None:
    source.read(0, memoryview(bytearray(1)))


def test_large_storage_is_inflated_in_bounded_memory(saved: Callable[[bytes], Path]) -> None:
    source, content = deflated_weight(saved, (8 << 20) + 3)
    assert isinstance(source.file, InflatedStorage)
    tracemalloc.start()
    try:
        inflated = source.file
        read_byte(inflated)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 6 << 20
    stored = memoryview(bytearray(source.nbytes))
    inflated.read(0, stored)
    inflated.close()
    assert hashlib.sha256(stored).digest() == hashlib.sha256(content).digest()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"inflated_size": 99_999}, "inflates to more than the 99,999 bytes"),
        ({"inflated_size": 100_001}, "inflates to 100,000 bytes, it should to 100,001"),
        ({"crc32": 0}, "is damaged: its CRC-32 is"),
        ({"compressed_size": 100}, "bytes, it should to 100,000"),
        ({"offset": 0}, "is damaged"),
        ({"offset": 10**9}, "inflates to 0 bytes"),
    ],
    ids=["too-long", "too-short", "crc32", "cut-off", "offset", "outside"],
)
def test_inflating_what_the_directory_describes_wrongly(
    change: dict[str, int], words: str, saved: Callable[[bytes], Path]
) -> None:
    source, _ = deflated_weight(saved, 100_000)
    assert isinstance(source.file, InflatedStorage)
    right = source.file.deflated
    fields = {name: getattr(right, name) for name in ("offset", "compressed_size", "inflated_size", "crc32")}
    with pytest.raises(CheckpointError) as caught:
        read_byte(InflatedStorage(source.file.origin, Deflated(**fields | change)))
    assert words in str(caught.value)


def test_inflating_a_file_that_is_gone(saved: Callable[[bytes], Path]) -> None:
    source, _ = deflated_weight(saved, 1000)
    assert isinstance(source.file, InflatedStorage)
    source.file.origin.close()
    Path(str(source.file)).unlink()
    with pytest.raises(CheckpointError, match="is missing"):
        read_byte(source.file)


def test_inflating_without_a_place_for_it(saved: Callable[[bytes], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    source, _ = deflated_weight(saved, 1000)
    assert isinstance(source.file, InflatedStorage)
    monkeypatch.setattr("tempfile.tempdir", str(Path(str(source.file)).parent / "missing"))
    with pytest.raises(CheckpointError, match="cannot be inflated into"):
        read_byte(source.file)


def test_extent_of_tensors() -> None:
    record = View("a", "F16", (3, 2), LocalFile(Path(__file__)), 0, 12)
    assert record.extent == 12
    strided = View("a", "F16", (3, 2), LocalFile(Path(__file__)), 0, 12, strides=(4, 1))
    assert strided.extent == (2 * 4 + 1 + 1) * 2
    assert strided.extent // 2 >= math.prod(strided.shape)
    assert View("a", "F16", (3, 2), LocalFile(Path(__file__)), 0, 12, strides=(0, 0)).extent == 2


def test_fixture_directory_is_not_written_to(tmp_path: Path) -> None:
    copy = tmp_path / "fixtures"
    shutil.copytree(FIXTURES / "good", copy)
    before = {path: path.read_bytes() for path in copy.iterdir()}
    for path in copy.glob("*.bin"):
        for source in read_torch_file(LocalFile(path)):
            values(source)
    assert {path: path.read_bytes() for path in copy.iterdir()} == before
