"""What is planned is no more than what our own reader takes."""

import json
from pathlib import Path

import pytest
from gguf import GGUFValueType

from clipgguf import CheckpointError, convert, inspect, plan
from clipgguf.checkpoint.gguf_file import MetadataItem, too_much
from clipgguf.checkpoint.gguf_reader import read_gguf
from clipgguf.limits import LARGEST_HEADER, MOST_ENTRIES, MOST_VALUES
from clipgguf.planning import Plan
from clipgguf.sources.local import LocalFile
from tests.checkpoints import TINY
from tests.conftest import Run
from tests.gguf_bytes import string, tensor


def long_vocabulary(model: Path, nbytes: int) -> None:
    """Make the vocabulary so large that its last token has so many bytes."""
    count = TINY.text.vocab_size
    tokens = {"x" * nbytes if i == count - 1 else f"tok{i}</w>": i for i in range(count)}
    (model / "vocab.json").write_text(json.dumps(tokens))


def header_nbytes(path: Path) -> int:
    """Return where the entry of a file's last tensor ends."""
    last = read_gguf(LocalFile(path)).tensors[-1]
    return path.read_bytes().rindex(string(last.name)) + len(tensor(last.name, last.shape))


@pytest.mark.slow
def test_header_of_the_largest_size_and_one_byte_more(model: Path, tmp_path: Path, run: Run) -> None:
    long_vocabulary(model, 1)
    path = convert(model, tmp_path / "x.gguf").path
    room = LARGEST_HEADER - header_nbytes(path)
    long_vocabulary(model, 1 + room)
    assert header_nbytes(convert(model, path).path) == LARGEST_HEADER
    assert inspect(path).metadata[-1].key == "clip.use_gelu"
    long_vocabulary(model, 2 + room)
    result = run(model, "-o", "out")
    assert result.returncode == 1
    assert result.stderr == (
        f"clipgguf: error: model-f16.gguf: would have a header of {LARGEST_HEADER + 1:,} bytes, "
        f"at most {LARGEST_HEADER:,} are supported\n"
    )
    assert not (tmp_path / "work" / "out").exists()


def test_as_many_tensors_as_are_read(model: Path) -> None:
    tensors = plan(model).tensors
    many = (tensors * (MOST_ENTRIES // len(tensors) + 1))[:MOST_ENTRIES]
    Plan("x.gguf", (), many, (), ())
    with pytest.raises(CheckpointError, match=r"^x\.gguf: would have 65,537 tensors, at most 65,536 are supported$"):
        Plan("x.gguf", (), (*many, tensors[0]), (), ())


def test_as_many_values_as_are_read() -> None:
    items = [MetadataItem(key, GGUFValueType.UINT8, range(MOST_VALUES // 2)) for key in "ab"]
    assert too_much(items, []) is None
    items.append(MetadataItem("c", GGUFValueType.UINT8, [1]))
    assert too_much(items, []) == "2,097,153 values in its metadata's arrays, at most 2,097,152 are supported"
