"""What is none of torch's state dicts is refused in a line, and nothing of it is executed."""

import os
import pickle
import random
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from clipgguf.checkpoint.torch_zip import read_torch_file
from clipgguf.errors import CheckpointError
from clipgguf.sources.local import LocalFile
from tests.torch_bytes import (
    call,
    mapping,
    named,
    number,
    pickled,
    storage,
    stream,
    tensor,
    text,
)
from tests.torch_files import FIXTURES, NOTHING, TRACE, WEIGHT, problem

# Files of torch that hold something else than a state dict, and files of somebody who means harm.

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
    modules = {*sys.modules, "encodings.cp437"}  # That of names in zip archives, which the first one imports.
    assert words in problem(FIXTURES / file)
    assert list(tmp_path.iterdir()) == []
    assert {*sys.modules, "encodings.cp437"} == modules


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
    "zip without entries": (b"PK\3\4" + bytes(60) + b"PK\5\6" + bytes(18), "is a zip archive with 0 entries"),
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


@pytest.mark.slow
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
