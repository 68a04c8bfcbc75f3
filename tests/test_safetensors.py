"""What the safetensors package cannot judge, or lets through: files too large to be mapped, and odd entries."""

import json
import os
import random
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest
from safetensors import SafetensorError, safe_open

from clipgguf import CheckpointError, convert
from clipgguf.checkpoint.safetensors import check_header, read_safetensors_header
from clipgguf.sources.local import LocalFile, OpenedSource
from tests.checkpoints import write_model
from tests.clip_checkpoints import write_clip
from tests.conftest import Run
from tests.weights import safetensors_header

SOUND = {
    "__metadata__": {"format": "pt"},
    "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b": {"dtype": "BF16", "shape": [], "data_offsets": [24, 26]},
    "c": {"dtype": "F64", "shape": [0, 7], "data_offsets": [26, 26]},
    "d": {"dtype": "U8", "shape": [6], "data_offsets": [26, 32]},
}


@pytest.mark.parametrize(
    "entry", [["F32", [2], [0, 8]], {"dtype": {"F32": None}, "shape": [2], "data_offsets": [0, 8]}]
)
def test_entry_in_another_form(entry: object, tmp_path: Path) -> None:
    # The package takes both.
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors_header({"a": entry}) + bytes(8))
    with safe_open(path, framework="numpy"):
        pass
    with pytest.raises(CheckpointError, match=r"tensor 'a' is .*, should be an object with dtype"):
        read_safetensors_header(LocalFile(path))


def test_file_of_torch_under_the_wrong_name(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    for content in (b"PK\3\4" + bytes(60), b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46" + bytes(60)):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"is a file of torch\.save, and should have a name"):
            read_safetensors_header(LocalFile(path))


@pytest.mark.slow
@pytest.mark.parametrize("most", [1, 7, 1000])
@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_reads_that_give_less_than_asked(
    suffix: str, most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_clip(tmp_path / "m", suffix=suffix, shards=2)
    expected = convert(model, tmp_path / "x.gguf").path.read_bytes()
    asked = []
    read = OpenedSource._read_some

    def read_some(self: OpenedSource, file: IO[bytes], offset: int, target: memoryview) -> int:
        asked.append(len(target))
        return read(self, file, offset, target[:most])

    monkeypatch.setattr(OpenedSource, "_read_some", read_some)
    assert convert(model, tmp_path / "y.gguf").path.read_bytes() == expected
    assert max(asked) > most


# A file that cannot be mapped.


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems do not limit a process's addresses")
def test_file_that_cannot_be_mapped(tmp_path: Path, run_alone: Run) -> None:
    import resource

    model = write_model(tmp_path / "m")
    assert run_alone(model, "-o", "small.gguf").returncode == 0
    weights = model / "model.safetensors"
    content = weights.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    end = len(content) - 8 - length
    header["more"] = {"dtype": "U8", "shape": [1 << 34], "data_offsets": [end, end + (1 << 34)]}
    beginning = safetensors_header(header)

    def run_limited(*args: object) -> Any:
        limit = 1 << 33
        return run_alone(
            model,
            "-o",
            "large.gguf",
            *args,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
        )

    weights.write_bytes(beginning + content[8 + length :])
    os.truncate(weights, len(beginning) + end + (1 << 34))
    result = run_limited("--ignore-unknown")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "work" / "large.gguf").read_bytes() == (tmp_path / "work" / "small.gguf").read_bytes()
    # It is no less strict then.
    os.truncate(weights, len(beginning) + end + (1 << 34) - 1)
    result = run_limited("--ignore-unknown")
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert "model.safetensors: is truncated or no safetensors file" in line


def mutations(seed: int) -> Iterator[dict[str, Any]]:
    """Yield headers with a fault or two, and now and then none."""
    choose = random.Random(seed)
    numbers: list[Any] = [0, 1, -1, 2, 3, 7, 24, 26, 32, 2**32, 2**63, 2**64 - 1, 2**64, 1.0, True, None, "1", [], {}]
    dtypes: list[Any] = ["F32", "F4", "F6_E2M3", "BOOL", "C64", "f32", "", None, 1, "I128"]
    for _ in range(600):
        header: dict[str, Any] = json.loads(json.dumps(SOUND))
        for _ in range(choose.randint(0, 2)):
            name = choose.choice("abcd")
            entry = header.get(name)
            if not isinstance(entry, dict):
                continue
            change = choose.randrange(9)
            if change == 0:
                entry["dtype"] = choose.choice(dtypes)
            elif change in (1, 2):
                key = choose.choice(["shape", "data_offsets"])
                if isinstance(entry.get(key), list) and entry[key]:
                    entry[key][choose.randrange(len(entry[key]))] = choose.choice(numbers)
            elif change == 3:
                del entry[choose.choice(list(entry))]
            elif change == 4:
                entry[choose.choice(["shape", "data_offsets", "more"])] = choose.choice(numbers)
            elif change == 5:
                header[choose.choice("abcde")] = header.pop(name)
            elif change == 6:
                header["__metadata__"] = choose.choice([None, {}, {"a": 1}, {"a": "b"}, [], 1, {"a": None}])
            elif change == 7:
                header[name] = choose.choice([None, 1, [], {}, "a"])
            else:
                entry["data_offsets"] = [choose.choice([0, 24, 26, 32]), choose.choice([0, 24, 26, 32])]
        yield header


def test_own_check_agrees_with_the_package(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    verdicts = []
    for number, header in enumerate(mutations(1)):
        body = (32, 32, 32, 31, 33)[number % 5]
        path.write_bytes(safetensors_header(header) + bytes(body))
        try:
            with safe_open(path, framework="numpy"):
                is_sound = True
        except SafetensorError:
            is_sound = False
        try:
            check_header(header, body)
            assert is_sound, header
        except ValueError:
            assert not is_sound, header
        verdicts.append(is_sound)
    assert 50 < sum(verdicts) < 550


@pytest.mark.parametrize("text", ['{"a": NaN}', '{"\\ud800": {}}', "[]", "1", '{"__metadata__": {"a": "\\udfff"}}'])
def test_own_check_of_what_json_allows(text: str) -> None:
    with pytest.raises(ValueError, match=r"no JSON|surrogates|should be an object"):
        check_header(json.loads(text), 0)


def test_header_that_ends_early(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", 100) + b"{}")
    with pytest.raises(CheckpointError, match="truncated or no safetensors file"):
        read_safetensors_header(LocalFile(path))
