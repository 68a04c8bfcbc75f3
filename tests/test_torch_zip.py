"""Files of torch.save read without torch: every value as torch saved it."""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from clipgguf.checkpoint.deflate import InflatedStorage
from clipgguf.checkpoint.torch_zip import read_torch_file
from clipgguf.sources.local import LocalFile
from clipgguf.tensor import View
from tests.processes import peak_of
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
from tests.torch_files import FIXTURES, FOUR, GOOD, WEIGHT, one, problem, values

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
    assert peak_of(lambda: read_torch_file(LocalFile(path))) < 1 << 20
    assert [source.nbytes for source in read_torch_file(LocalFile(path))] == [size]


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
