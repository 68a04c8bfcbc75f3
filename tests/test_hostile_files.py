"""Something else in place of a file, and an index that leads elsewhere: refused, and never waited for."""

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clipgguf import CheckpointError, ClipGGUFError, ConfigError, Options, plan
from clipgguf.json_file import read_json_object
from clipgguf.regular_file import open_regular
from clipgguf.sources.given import given_file
from tests.checkpoints import TINY, write_model
from tests.clip_checkpoints import write_clip, write_tower
from tests.hostile_models import INDEX, JSON_FILES, sharded, tokenizer
from tests.json_files import edit_json, write_json
from tests.llava_checkpoints import Llava, write_original, write_projector, write_vision_config
from tests.open_clip_checkpoints import write_open_clip
from tests.refusals import refusal, refused_plan
from tests.weights import safetensors_header

# Something else in place of a file.


def with_projector(directory: Path) -> Path:
    model = write_clip(directory, Llava().clip)
    write_projector(model / "llava.projector", Llava())
    write_projector(model / "projector.safetensors", Llava())
    return model


def with_inner_tower(directory: Path) -> Path:
    model = write_original(directory, Llava(), tower="inside")
    write_vision_config(model / "vision.json", Llava())
    return model


def with_tower(directory: Path) -> Path:
    model = write_original(directory, Llava())
    write_tower(model / "tower", "vision", Llava().clip)
    return model


def torch_model(directory: Path) -> Path:
    return write_clip(directory, suffix=".bin")


def torch_shards(directory: Path) -> Path:
    return write_clip(directory, suffix=".bin", shards=2)


# Every file that is read: what writes a model that has it, and the option that names it, if one does.
FILES: dict[str, tuple[Callable[[Path], Path], str | None]] = {
    **{name: (write, None) for name, write in JSON_FILES.items()},
    "model.safetensors": (write_model, None),
    "model-00002-of-00003.safetensors": (sharded, None),
    "pytorch_model.bin": (torch_model, None),
    "pytorch_model.bin.index.json": (torch_shards, None),
    "pytorch_model-00002-of-00002.bin": (torch_shards, None),
    "open_clip_model.safetensors": (write_open_clip, None),
    "llava.projector": (with_projector, "llava_projector"),
    "projector.safetensors": (with_projector, "llava_projector"),
    "vision.json": (with_inner_tower, "vision_config"),
    "tower": (with_tower, "vision_tower"),
    "tower/config.json": (with_tower, None),
    "tower/model.safetensors": (with_tower, None),
    # The model's file as MODEL_DIR, and a vocabulary as --vocab, beside the one that is not read then.
    "model.safetensors as model": (write_model, "model"),
    "pytorch_model.bin as model": (torch_model, "model"),
    "tokenizer.json as vocabulary": (tokenizer, "vocab"),
}


def device(path: str) -> Callable[[Path], None]:
    return lambda place: place.symlink_to(path)


def loop(place: Path) -> None:
    place.symlink_to(place.with_name("loop"))
    place.with_name("loop").symlink_to(place)


INSTEAD: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "pipe": (lambda place: os.mkfifo(place), ("is no regular file", "is no directory", "is missing")),
    "zeros": (device("/dev/zero"), ("is no regular file", "is no directory", "is missing")),
    "full": (device("/dev/full"), ("is no regular file", "is no directory", "is missing")),
    "loop": (loop, ("is a broken symbolic link", "is no directory", "is missing")),
    "directory": (lambda place: place.mkdir(), ("is no regular file", "has no weights", "no vocab.json", "is missing")),
    "empty": (
        lambda place: place.write_bytes(b""),
        ("is empty", "not valid JSON", "has 0 bytes", "is no directory", "is missing"),
    ),
}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pipes and devices among files")
@pytest.mark.parametrize("instead", INSTEAD)
@pytest.mark.parametrize("name", FILES)
def test_something_else_in_place_of_a_file(name: str, instead: str, tmp_path: Path) -> None:
    write, option = FILES[name]
    put, expected = INSTEAD[instead]
    model = write(tmp_path / "m")
    place = model / name.partition(" ")[0]
    place.rename(tmp_path / "the-real-one")
    put(place)
    options: dict[str, Any] = {"model": model}
    if model / "tower" in (place, place.parent):
        options["vision_tower"] = model / "tower"
    if option is not None:
        options[option] = place
    message = refused_plan(**options)
    assert str(place) in message
    assert any(words in message for words in expected), message


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pipes among files")
@pytest.mark.parametrize("path", ["pipe", "/dev/zero", "loop"])
def test_something_else_in_place_of_the_model(path: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    loop(tmp_path / "loop-to-it")
    refused_plan(tmp_path / path)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pipes among files")
def test_file_that_becomes_a_pipe_while_it_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setattr(Path, "is_file", lambda path: True)
    assert "is no regular file" in refusal(lambda: open_regular(tmp_path / "pipe", ConfigError))
    assert "is no regular file" in refusal(lambda: open_regular(Path("/dev/zero"), ConfigError))


# Paths in an index.


@pytest.mark.parametrize(
    "file",
    ["", "..", "..\\x", "x\\..\\..\\y", "\\x", "C:x", "//server/share/x", "\\\\server\\share\\x", "/dev/zero", "a\0b"],
    ids=ascii,
)
def test_index_that_leads_out_of_the_directory(file: str, tmp_path: Path) -> None:
    model = sharded(tmp_path / "m")
    edit_json(model / INDEX, lambda index: index["weight_map"].update(logit_scale=file))
    message = refused_plan(model)
    assert f"puts tensor 'logit_scale' into {file!r}, which is no file name inside the directory" in message


@pytest.mark.parametrize(
    "file", ["\ud800", "x" * 5000, "a/" * 3000 + "x", "config.json/x", "a\nb"], ids=lambda f: ascii(f[:9])
)
def test_index_of_files_that_cannot_be(file: str, tmp_path: Path) -> None:
    model = sharded(tmp_path / "m")
    edit_json(model / INDEX, lambda index: index["weight_map"].update(logit_scale=file))
    with pytest.raises(ClipGGUFError, match=r"is missing|name too long|Not a directory"):
        plan(model)


def test_index_that_names_a_file_in_many_ways(tmp_path: Path) -> None:
    # "x", "./x", "././x", ...: read once, and not a thousand times.
    model = write_model(tmp_path / "m")
    (model / "model.safetensors").rename(model / "x.safetensors")
    weight_map = {name: "./" * number + "x.safetensors" for number, name in enumerate(TINY.shapes())}
    write_json(model / INDEX, {"weight_map": weight_map})
    assert len(plan(model).tensors) == len(TINY.shapes()) - 1


@pytest.mark.slow
def test_shards_of_more_tensors_than_can_be(tmp_path: Path) -> None:
    model = sharded(tmp_path / "m")
    for number in (1, 2):
        names = {f"{number}.{n:x}": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for n in range(35_000)}
        (model / f"model-0000{number}-of-00003.safetensors").write_bytes(safetensors_header(names))
    with pytest.raises(CheckpointError, match="have more than 65,536 tensors, no model has as many"):
        plan(model, options=Options(ignore_unknown=True))


def test_json_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    path = tmp_path / "config.json"
    path.write_text("{}")
    monkeypatch.setattr("clipgguf.sources.local.OpenedSource._read_some", fail)
    with pytest.raises(ConfigError, match=r"config\.json: bytes 0 to 2 cannot be read: Input/output error"):
        read_json_object(given_file(path))
