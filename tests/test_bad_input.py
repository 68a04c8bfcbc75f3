"""Everything that can be wrong with a request: one clear line for each fault, exit code 1, and the disk as it was."""

import os
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints import TINY, write_model
from tests.conftest import Run
from tests.json_files import edit_json, write_json
from tests.weights import safetensors_header, write_safetensors

Break = Callable[[Path], object]
LAYER = "text_model.encoder.layers.0.self_attn.q_proj"


def config(edit: Callable[[dict[str, Any]], object]) -> Break:
    return lambda model: edit_json(model / "config.json", edit)


def fields(text: dict[str, Any] | None = None, vision: dict[str, Any] | None = None) -> Break:
    return config(lambda c: (c["text_config"].update(text or {}), c["vision_config"].update(vision or {})))


def index(edit: Callable[[dict[str, Any]], object]) -> Break:
    return lambda model: edit_json(model / "model.safetensors.index.json", lambda value: edit(value["weight_map"]))


def tensors(**changes: tuple[int, ...] | None) -> Break:
    """Leave out, add or reshape tensors; underscores stand for dots where two of them meet."""
    shapes: dict[str, Any] = {**TINY.shapes(), **{name.replace("__", "."): shape for name, shape in changes.items()}}
    return lambda model: write_safetensors(
        model / "model.safetensors", {name: shape for name, shape in shapes.items() if shape is not None}
    )


def truncate(model: Path) -> None:
    path = model / "model.safetensors"
    os.truncate(path, path.stat().st_size - 1)


def directory_instead_of_config(model: Path) -> None:
    (model / "config.json").unlink()
    (model / "config.json").mkdir()


def raw_weights(data: bytes) -> Break:
    return lambda model: (model / "model.safetensors").write_bytes(data)


def vocabulary(edit: Callable[[dict[str, Any]], object]) -> Break:
    return lambda model: edit_json(model / "vocab.json", edit)


def tokenizer_instead(value: object) -> Break:
    def replace(model: Path) -> None:
        (model / "vocab.json").unlink()
        write_json(model / "tokenizer.json", value)

    return replace


SECOND_BLOCK = [name for name in TINY.shapes() if name.startswith("text_model.encoder.layers.1.")]

# What is wrong: how to break a sound model, and what each line of the error must say.
FAULTS: dict[str, tuple[Break, list[list[str]]]] = {
    "no config": (lambda m: (m / "config.json").unlink(), [["config.json", "is missing"]]),
    "config is a directory": (
        directory_instead_of_config,
        [["config.json", "no regular file"]],
    ),
    "config is no JSON": (
        lambda m: (m / "config.json").write_text("{,"),
        [["config.json", "not valid JSON", "line 1"]],
    ),
    "config is no UTF-8": (lambda m: (m / "config.json").write_bytes(b'{"a": "\xff"}'), [["config.json", "0xff"]]),
    "config is a list": (lambda m: write_json(m / "config.json", []), [["config.json", "JSON list", "object"]]),
    "config is nested too deeply": (
        lambda m: (m / "config.json").write_text('{"a":' * 100_000),
        [["config.json", "nested too deeply"]],
    ),
    "config has an endless integer": (
        lambda m: (m / "config.json").write_text('{"a": ' + "9" * 10_000 + "}"),
        [["config.json", "not valid JSON", "digits"]],
    ),
    "another model": (config(lambda c: c.update(model_type="t5")), [["config.json", "'t5'", "`clipgguf families`"]]),
    "a config of nothing": (
        lambda m: write_json(m / "config.json", {}),
        [["config.json", "no model_type", "`clipgguf families`"]],
    ),
    "sub-config is no object": (config(lambda c: c.update(text_config=3)), [["text_config is 3", "object"]]),
    "fields of wrong types": (
        fields(
            text={"hidden_size": "32", "layer_norm_eps": float("nan")},
            vision={"image_size": 28.0, "hidden_act": 1, "num_hidden_layers": True},
        ),
        [
            ["text_config", "hidden_size is '32'", "positive integer"],
            ["text_config", "layer_norm_eps is nan", "positive number"],
            ["vision_config", "num_hidden_layers is True"],
            ["vision_config", "image_size is 28.0"],
            ["vision_config", "hidden_act is 1", "string"],
        ],
    ),
    "sizes that are no sizes": (
        fields(text={"hidden_size": 0, "vocab_size": -1, "intermediate_size": 2**32}),
        [["hidden_size is 0"], ["intermediate_size is 4294967296"], ["vocab_size is -1"]],
    ),
    "heads do not divide the width": (
        fields(text={"num_attention_heads": 5}, vision={"num_attention_heads": 7}),
        [["text_config", "32", "multiple", "5"], ["vision_config", "48", "multiple", "7"]],
    ),
    "a patch larger than the image": (fields(vision={"patch_size": 29}), [["patch_size 29", "image_size 28"]]),
    "more blocks than there can be": (
        fields(text={"num_hidden_layers": 4_000_000_000}),
        [["4,000,000,000 blocks", "text_model", "94 tensors"]],
    ),
    "no vocabulary": (lambda m: (m / "vocab.json").unlink(), [["vocab.json", "tokenizer.json", "--vision-only"]]),
    "a hole in the vocabulary": (vocabulary(lambda v: v.pop("tok7</w>")), [["vocab.json", "no token has id 7", "98"]]),
    "two tokens of one id": (
        vocabulary(lambda v: v.update(again=7)),
        [["vocab.json", "id 7", "'tok7</w>'", "'again'"]],
    ),
    "an id that is none": (vocabulary(lambda v: v.update(x="7")), [["vocab.json", "'x'", "'7'", "integer"]]),
    "a token that is no Unicode": (
        vocabulary(lambda v: v.update({"\ud800": 99})),
        [["vocab.json", "'\\ud800'", "UTF-8"]],
    ),
    "an empty vocabulary": (vocabulary(lambda v: v.clear()), [["vocab.json", "empty"]]),
    "a tokenizer without vocabulary": (
        tokenizer_instead({"model": {"vocab": [["a", 0.1]]}}),
        [["tokenizer.json", "model.vocab"]],
    ),
    "a tokenizer with odd additions": (
        tokenizer_instead({"model": {"vocab": {"a": 0}}, "added_tokens": [7]}),
        [["tokenizer.json", "added_tokens"]],
    ),
    "statistics of two channels": (
        lambda m: write_json(m / "preprocessor_config.json", {"image_mean": [0.5, 0.5]}),
        [["preprocessor_config.json", "image_mean is [0.5, 0.5]", "3 numbers"]],
    ),
    "a standard deviation of zero": (
        lambda m: write_json(m / "preprocessor_config.json", {"image_std": [0.5, 0.5, 0]}),
        [["image_std is [0.5, 0.5, 0]", "positive"]],
    ),
    "statistics that are infinite": (
        lambda m: write_json(m / "preprocessor_config.json", {"image_std": [0.5, 0.5, float("inf")]}),
        [["image_std", "3 positive numbers"]],
    ),
    "no weights": (
        lambda m: (m / "model.safetensors").unlink(),
        [["model.safetensors", "model.safetensors.index.json"]],
    ),
    "truncated weights": (truncate, [["model.safetensors", "truncated", "bytes"]]),
    "empty weights": (raw_weights(b""), [["model.safetensors", "0 bytes"]]),
    "a download that failed": (
        raw_weights(b"<!DOCTYPE html>\n<html>Access denied</html>"),
        [["model.safetensors", "is a web page"]],
    ),
    "a header that lies": (
        raw_weights(struct.pack("<Q", 2**62) + b"{}"),
        [["model.safetensors", "no safetensors file"]],
    ),
    "a header that is no JSON": (
        raw_weights(struct.pack("<Q", 2) + b"{]"),
        [["model.safetensors", "no safetensors file"]],
    ),
    "a shape that belies the bytes": (
        raw_weights(safetensors_header({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}) + bytes(8)),
        [["model.safetensors", "shape"]],
    ),
    "tensors missing, unknown and of wrong shape": (
        tensors(
            **{f"{LAYER}.weight": None, f"{LAYER}.bias": (31,), "extra": (2,), "visual_projection.weight": (24, 47)}
        ),
        [
            [f"'{LAYER}.weight'", "(32, 32)"],
            [f"'{LAYER}.bias'", "has shape (31)", "asks for (32)", "model.safetensors"],
            ["'visual_projection.weight'", "(24, 47)", "(any, 48)"],
            ["'extra'", "unknown", "model.safetensors"],
        ],
    ),
    "a block more than the config says": (
        fields(text={"num_hidden_layers": 1}),
        [
            *([f"'{name}'", "unknown"] for name in SECOND_BLOCK[:10]),
            ["and 6 more like these"],
        ],
    ),
    "projections into different spaces": (
        tensors(**{"text_projection.weight": (25, 32)}),
        [["projection", "(24, 48)", "(25, 32)"]],
    ),
    "integer weights": (
        lambda m: write_model(m, dtype=lambda name: "I64" if name == f"{LAYER}.bias" else "F32"),
        [[f"'{LAYER}.bias'", "I64", "F32"]],
    ),
}

SHARD_FAULTS: dict[str, tuple[Break, list[list[str]]]] = {
    "a shard is missing": (
        lambda m: (m / "model-00002-of-00003.safetensors").unlink(),
        [["model-00002-of-00003.safetensors", "missing"]],
    ),
    "two shards are damaged": (
        lambda m: [(m / f"model-0000{n}-of-00003.safetensors").write_bytes(b"") for n in (1, 3)],
        [["model-00001", "0 bytes"], ["model-00003", "0 bytes"]],
    ),
    "the index is no JSON": (
        lambda m: (m / "model.safetensors.index.json").write_text("weights"),
        [["model.safetensors.index.json", "not valid JSON"]],
    ),
    "the index has no map": (
        lambda m: write_json(m / "model.safetensors.index.json", {"metadata": {}}),
        [["model.safetensors.index.json", "weight_map"]],
    ),
    "the index climbs out": (
        index(lambda w: w.update(a="../model.safetensors", b="/etc/passwd", c="C:\\x", d="x/../../y", e=7)),
        [["'a'", "'../model.safetensors'"], ["'b'", "'/etc/passwd'"], ["'c'"], ["'d'"], ["'e'", "7"]],
    ),
    "the index names another shard": (
        index(lambda w: w.update(logit_scale="model-00002-of-00003.safetensors")),
        [["model-00002-of-00003.safetensors", "lacks tensor 'logit_scale'", "model.safetensors.index.json"]],
    ),
}


def files(directory: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def check_error(result: "subprocess.CompletedProcess[str]", expected: list[list[str]]) -> None:
    lines = result.stderr.splitlines()
    assert result.returncode == 1, result.stderr
    assert result.stdout == ""
    assert all(line.startswith("clipgguf: error: ") for line in lines), result.stderr
    assert len(lines) == len(expected), result.stderr
    for words in expected:
        assert any(all(word in line for word in words) for line in lines), (words, result.stderr)


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_in_a_model(fault: str, model: Path, tmp_path: Path, run: Run) -> None:
    damage, expected = FAULTS[fault]
    damage(model)
    before = files(tmp_path)
    check_error(run(model, "-o", tmp_path / "out"), expected)
    assert files(tmp_path) == before
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("fault", SHARD_FAULTS)
def test_fault_in_a_sharded_model(fault: str, tmp_path: Path, run: Run) -> None:
    model = write_model(tmp_path / "sharded", shards=3)
    damage, expected = SHARD_FAULTS[fault]
    damage(model)
    check_error(run(model, "-o", tmp_path / "out"), expected)
    assert not (tmp_path / "out").exists()


def test_no_directory(tmp_path: Path, run: Run) -> None:
    check_error(run(tmp_path / "nowhere"), [["nowhere", "is missing", "config.json"]])


def test_control_characters_never_reach_the_terminal(model: Path, run: Run) -> None:
    edit_json(model / "config.json", lambda c: c.update(model_type="\x1b[31mred\r\n"))
    result = run(model)
    assert "\x1b" not in result.stderr
    assert "\\x1b[31mred" in result.stderr
    check_error(result, [["red"]])
