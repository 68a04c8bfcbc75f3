"""What somebody who means harm puts into a checkpoint: refused in a line, at once, in little memory, and not repeated.

``tests/test_torch_zip.py`` has what is hostile in torch's formats, ``tests/test_gguf_file.py`` in GGUF files; what
``tests/test_fuzz.py`` finds goes here if it is about neither.
"""

import errno
import faulthandler
import json
import os
import struct
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader

from clipgguf import CheckpointError, ClipGGUFError, ConfigError, Options, convert
from clipgguf import plan as plan_conversion
from clipgguf.checkpoint.safetensors import LARGEST_HEADER, read_safetensors_header
from clipgguf.errors import shown
from clipgguf.json_file import LARGEST_JSON, MOST_VALUES, read_json_object
from clipgguf.regular_file import open_regular
from clipgguf.sources.given import given_file
from clipgguf.sources.local import LocalFile
from tests import layouts, llava_checkpoints
from tests.checkpoints import TINY, edit_json, safetensors_header, write_json, write_model, write_safetensors
from tests.conftest import Run
from tests.llava_checkpoints import Llava
from tests.processes import HANGS_AFTER, taking_at_most

# An escape sequence that clears the screen, its one-character form, a bell, and what turns text around.
CONTROL = "\x1b[2J\x9b2J\x07\u202e\r"


@pytest.fixture(autouse=True)
def never_waits() -> Iterator[None]:
    """End the tests where one waits for a pipe or reads without end."""
    faulthandler.dump_traceback_later(HANGS_AFTER, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


def refusal(read: Callable[[], object]) -> str:
    """Return the lines that refuse something, after making sure that they come soon and are short."""
    with taking_at_most(2), pytest.raises(ClipGGUFError) as caught:
        read()
    assert all(0 < len(line) < 2000 for line in caught.value.problems)
    return str(caught.value)


def refused(model_dir: Path, **options: Any) -> str:
    """Return the lines that refuse a model."""
    return refusal(lambda: plan_conversion(model_dir, options=Options(**options)))


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
    "header-of-great-length": (header(SOUND + " " * LARGEST_HEADER), NOT_SAFETENSORS),
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


def assert_refused_without_reading(read: Callable[[], object], words: str) -> None:
    tracemalloc.start()
    try:
        message = refusal(read)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert words in message
    assert peak < LARGEST_JSON + (1 << 20)


# JSON.


def tokenizer(directory: Path) -> Path:
    return layouts.write_clip(directory, vocabulary="tokenizer.json", processor="processor_config.json")


def sharded(directory: Path) -> Path:
    return write_model(directory, shards=3)


# Every JSON file that is read, and what writes a model that has it.
JSON_FILES: dict[str, Callable[[Path], Path]] = {
    "config.json": write_model,
    "preprocessor_config.json": write_model,
    "vocab.json": write_model,
    "processor_config.json": tokenizer,
    "tokenizer.json": tokenizer,
    "model.safetensors.index.json": sharded,
    "open_clip_config.json": layouts.write_open_clip,
}
INDEX = "model.safetensors.index.json"


def refused_with(name: str, text: str, directory: Path) -> str:
    """Return the lines that refuse a model one of whose JSON files has another text."""
    model = JSON_FILES[name](directory / "model")
    (model / name).write_text(text, encoding="utf-8")
    return refused(model)


@pytest.mark.parametrize("name", JSON_FILES)
def test_json_that_is_nested_too_deeply(name: str, tmp_path: Path) -> None:
    for deep in ("[" * 200_000, '{"a":' * 200_000):
        assert f"{name}: is JSON nested too deeply to be read" in refused_with(name, deep, tmp_path)


@pytest.mark.parametrize("depth", [20, 900, 920, 940, 950, 960, 970, 980, 990, 5000])
def test_json_that_is_nested_just_not_too_deeply(depth: int, tmp_path: Path) -> None:
    # What Python reads, it can neither print nor compare from a deeper place.
    def check(path: Path, *keys: str) -> None:
        config = json.loads(path.read_text())
        target = config
        for key in keys[:-1]:
            target = target[key]
        target[keys[-1]] = "DEEP"
        path.write_text(json.dumps(config).replace('"DEEP"', "[" * depth + "]" * depth))
        refused(path.parent)

    for key in ("model_type", "text_config", "quantization_config"):
        # Of integers, so that the config is asked what quantized them.
        model = write_model(tmp_path / key, dtype=lambda name: "U8" if name == "logit_scale" else "F32")
        check(model / "config.json", key)
    for key in ("model_type", "vision_feature_layer", "vision_feature_select_strategy"):
        check(llava_checkpoints.write_hf(tmp_path / f"llava-{key}", Llava()) / "config.json", key)
    for key in ("image_size", "timm_model_name", "pool_type", "head_width", "width"):
        model = layouts.write_open_clip(tmp_path / f"open-clip-{key}")
        check(model / "open_clip_config.json", "model_cfg", "vision_cfg", key)


@pytest.mark.parametrize("name", JSON_FILES)
def test_json_with_a_key_twice(name: str, tmp_path: Path) -> None:
    model = JSON_FILES[name](tmp_path / "sound")
    text = (model / name).read_text().removeprefix("{")
    assert f"{name}: has the key 'again' twice in one object, with different values" in refused_with(
        name, f'{{"again": 1, "again": "1", {text}', tmp_path
    )
    assert "has the key 'again' twice" in refused_with(name, f'{{"x": [{{"again": 1, "again": 2}}], {text}', tmp_path)


def test_json_with_a_key_twice_and_one_value(model: Path) -> None:
    # It does not depend on the reader what this says.
    path = model / "config.json"
    path.write_text('{"model_type": "clip", ' + path.read_text().removeprefix("{"))
    plan_conversion(model)


def test_tensor_that_the_index_puts_into_two_files(tmp_path: Path) -> None:
    model = sharded(tmp_path / "m")
    shards = [f"model-0000{n}-of-00003.safetensors" for n in (1, 2)]
    pairs = ", ".join(f'"logit_scale": "{shard}"' for shard in shards)
    (model / INDEX).write_text(f'{{"weight_map": {{{pairs}}}}}')
    message = refused(model)
    assert f"{INDEX}: has the key 'logit_scale' twice" in message


@pytest.mark.skipif(sys.platform == "win32", reason="files have no holes on Windows unless they are asked to")
@pytest.mark.parametrize("name", JSON_FILES)
def test_json_of_gigabytes_is_not_read(name: str, tmp_path: Path) -> None:
    model = JSON_FILES[name](tmp_path / "m")
    os.truncate(model / name, 2**32)
    words = f"{name}: has 4,294,967,296 bytes, should have {LARGEST_JSON:,} at most"
    assert_refused_without_reading(lambda: plan_conversion(model), words)


def test_json_of_the_largest_size_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(b'{"a": 1}' + b" " * (LARGEST_JSON - 8))
    assert read_json_object(given_file(path)) == {"a": 1}
    path.write_bytes(b'{"a": 1}' + b" " * (LARGEST_JSON - 7))
    assert f"has {LARGEST_JSON + 1:,} bytes" in refusal(lambda: read_json_object(given_file(path)))


def test_json_of_too_many_values_is_not_parsed(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    for value in ("[]", "{}", '""'):
        path.write_text(f'{{"a": [{",".join([value] * (2 * MOST_VALUES))}]}}')
        assert f"values, should have {MOST_VALUES:,} at most" in refusal(lambda: read_json_object(given_file(path)))


# Numbers that are none, or too large: the file, where in it, its new value, and what the error says.
HUGE = str(10**400)
NUMBERS: list[tuple[str, str, str, str]] = [
    ("config.json", "vision_config.hidden_size", HUGE, "a positive integer of 32 bits"),
    ("config.json", "vision_config.num_hidden_layers", "1e999", "num_hidden_layers is inf"),
    ("config.json", "vision_config.image_size", "NaN", "image_size is nan"),
    ("config.json", "text_config.layer_norm_eps", HUGE, "a positive number"),
    ("config.json", "text_config.layer_norm_eps", "1e39", "layer_norm_eps is 1e+39"),
    ("config.json", "text_config.layer_norm_eps", "-Infinity", "layer_norm_eps is -inf"),
    # As float32 they are zero.
    ("config.json", "text_config.layer_norm_eps", "1e-50", "layer_norm_eps is 1e-50, should be a positive number"),
    ("preprocessor_config.json", "image_std", "[1, 1, 1e-46]", "image_std is [1, 1, 1e-46], should be 3 positive"),
    ("open_clip_config.json", "preprocess_cfg.std", "[1e-46, 1, 1]", "std is [1e-46, 1, 1], should be 3 positive"),
    ("config.json", "text_config.projection_dim", HUGE, "projection_dim is 1000"),
    ("preprocessor_config.json", "image_mean", f"[0, 0, {HUGE}]", "should be 3 numbers"),
    ("preprocessor_config.json", "image_mean", "[0, 0, -Infinity]", "image_mean is [0, 0, -inf]"),
    ("preprocessor_config.json", "image_std", "[1, 1, NaN]", "image_std is [1, 1, nan]"),
    ("vocab.json", "tok7</w>", HUGE, "no token has id 7, but the ids go up to 1000"),
    ("vocab.json", "tok7</w>", "1e999", "has id inf, should be an integer"),
    ("vocab.json", "tok7</w>", "7.0", "has id 7.0"),
    ("open_clip_config.json", "model_cfg.vision_cfg.width", HUGE, "width is 1000"),
    ("open_clip_config.json", "model_cfg.vision_cfg.width", "-48", "width is -48"),
    ("open_clip_config.json", "model_cfg.vision_cfg.mlp_ratio", "1e999", "mlp_ratio is inf"),
    ("open_clip_config.json", "model_cfg.vision_cfg.mlp_ratio", "NaN", "mlp_ratio is nan"),
    ("open_clip_config.json", "model_cfg.vision_cfg.mlp_ratio", HUGE, "mlp_ratio is 1000"),
    ("open_clip_config.json", "model_cfg.vision_cfg.head_width", HUGE, "head_width is 1000"),
    ("open_clip_config.json", "model_cfg.vision_cfg.image_size", f"[{HUGE}, {HUGE}]", "image_size is 1000"),
    ("open_clip_config.json", "preprocess_cfg.std", "[1, 1, 1e999]", "std is [1, 1, inf]"),
]


@pytest.mark.parametrize(("name", "where", "value", "words"), NUMBERS, ids=[f"{n[1]}-{n[2][:9]}" for n in NUMBERS])
def test_numbers_that_are_none_or_too_large(name: str, where: str, value: str, words: str, tmp_path: Path) -> None:
    config = json.loads((JSON_FILES[name](tmp_path / "sound") / name).read_text())
    *path, key = where.split(".")
    target = config
    for part in path:
        target = target[part]
    target[key] = "NUMBER"
    assert words in refused_with(name, json.dumps(config).replace('"NUMBER"', value), tmp_path)


@pytest.mark.parametrize(
    "value", [10**400, -(10**400), 2**63, "NaN", [10**400], float("inf")], ids=lambda v: f"{v}"[:9]
)
def test_feature_layers_that_are_none(value: object, tmp_path: Path) -> None:
    model = llava_checkpoints.write_hf(tmp_path / "m", Llava())
    edit_json(model / "config.json", lambda config: config.update(vision_feature_layer=value))
    assert "vision_feature_layer is" in refused(model)


@pytest.mark.parametrize(
    "value",
    [[[10**400, 28]], [[float("nan"), 28]], [[2**31, 28]], 10**400, [28] * 10**5],
    ids=["digits", "no-number", "33-bits", "no-list", "long"],
)
def test_grid_pinpoints_that_are_none(value: object, tmp_path: Path) -> None:
    model = llava_checkpoints.write_hf(tmp_path / "m", Llava(has_newline=True))
    edit_json(model / "config.json", lambda config: config.update(image_grid_pinpoints=value))
    plan = plan_conversion(model)
    assert any("image_grid_pinpoints" in warning and len(warning) < 2000 for warning in plan.warnings)
    assert not [item for item in plan.metadata if item.key == "clip.vision.image_grid_pinpoints"]


# What the fuzzers found.


@pytest.mark.parametrize("value", [[], {}, [["llava"]], {"llava": 1}, 1.5, True])
def test_model_type_that_is_no_string(value: object, tmp_path: Path) -> None:
    for model in (write_model(tmp_path / "clip"), llava_checkpoints.write_hf(tmp_path / "llava", Llava())):
        edit_json(model / "config.json", lambda config: config.update(model_type=value))
        assert "is of model_type" in refused(model)


@pytest.mark.parametrize("value", [[], {}, [["siglip"]], 7])
def test_model_type_of_a_tower_that_is_no_string(value: object, tmp_path: Path) -> None:
    model = llava_checkpoints.write_original(tmp_path / "m", Llava())
    tower = llava_checkpoints.write_tower(tmp_path / "tower", Llava())
    edit_json(tower / "config.json", lambda config: config.update(model_type=value))
    message = refused(model, vision_tower=tower)
    assert f"is of model_type {value!r}, a vision tower's is" in message


def test_text_that_is_no_unicode_where_it_is_written(tmp_path: Path) -> None:
    model = llava_checkpoints.write_original(tmp_path / "m", Llava(has_newline=True))
    tower = llava_checkpoints.write_tower(tmp_path / "tower", Llava())
    texts = {"mm_patch_merge_type": "\ud800x", "_name_or_path": "\udfff"}
    edit_json(model / "config.json", lambda config: config.update(texts))
    fields = GGUFReader(convert(model, tmp_path / "out", options=Options(vision_tower=tower)).path).fields
    assert fields["clip.vision.mm_patch_merge_type"].contents() == "?x"
    assert fields["general.name"].contents() == "?"


# Values of a file in messages.


def test_values_are_shown_in_part() -> None:
    assert shown("clip") == "'clip'"
    assert shown([0.5, 0.5]) == "[0.5, 0.5]"
    assert shown({"a": None}) == "{'a': None}"
    for value in (
        "x" * 10**6,
        10**4000,
        list(range(10**6)),
        dict.fromkeys(map(str, range(10**6)), 1),
        [["x" * 999] * 99],
    ):
        assert len(shown(value)) < 4000


def test_long_values_make_no_long_messages(model: Path, run: Run) -> None:
    edit_json(model / "config.json", lambda config: config.update(model_type="x" * 10**6))
    result = run(model)
    assert result.returncode == 1
    assert len(result.stderr) < 1000


def test_names_of_great_length_are_cut_on_the_command_line(model: Path, run: Run) -> None:
    name = "x" * 10**6
    write_safetensors(model / "model.safetensors", {**TINY.shapes(), name: (1,)})
    for options in ((), ("--ignore-unknown", "-o", "out")):
        result = run(model, *options)
        assert result.returncode == (0 if options else 1)
        assert "characters ...]" in result.stderr
        assert "is unknown" in result.stderr
        assert len(result.stderr) < 20_000


def test_messages_of_great_number_are_cut_on_the_command_line(model: Path, run: Run) -> None:
    write_safetensors(model / "model.safetensors", {**TINY.shapes(), **{f"extra.{n}": (1,) for n in range(1500)}})
    lines = run(model).stderr.splitlines()
    assert len(lines) == 11
    assert lines[-1] == "clipgguf: error: and 1,490 more like these"
    with pytest.raises(CheckpointError) as caught:
        convert(model)
    assert len(caught.value.problems) == 1500


# Names, on the way to a terminal.


def named(name: str) -> Callable[[Path], list[object]]:
    """Add an unknown tensor."""

    def change(model: Path) -> list[object]:
        write_safetensors(model / "model.safetensors", {**TINY.shapes(), name: (1,)})
        return [model]

    return change


def edited(**values: object) -> Callable[[Path], list[object]]:
    def change(model: Path) -> list[object]:
        edit_json(model / "config.json", lambda config: config.update(values))
        return [model]

    return change


def directory_of_a_name(model: Path) -> list[object]:
    return [model.rename(model.with_name(f"m{CONTROL}"))]


def prefix_of_a_tower(model: Path) -> list[object]:
    """Make it a tower alone, whose tensors may have anything before their names."""
    llava_checkpoints.write_tower(model, Llava(), prefix=CONTROL)
    return [model]


def index_of_a_name(model: Path) -> list[object]:
    write_json(model / INDEX, {"weight_map": {CONTROL: f"../{CONTROL}", f"b{CONTROL}": 1}})
    return [model]


def torch_entry_of_a_name(model: Path) -> list[object]:
    (model / "model.safetensors").unlink()
    arrays = layouts.arrays_of({**TINY.shapes(), CONTROL: (1,)})
    layouts.write_file(model / "pytorch_model.bin", arrays)
    return [model]


def projector_of_a_name(model: Path) -> list[object]:
    path = model / f"{CONTROL}.projector"
    llava_checkpoints.write_projector(path, Llava(), prefix=f"{CONTROL}.")
    return [model, "--llava-projector", path]


def token_of_a_name(model: Path) -> list[object]:
    edit_json(model / "vocab.json", lambda vocabulary: vocabulary.update({CONTROL: 7}))
    return [model]


def quantized_by_a_name(model: Path) -> list[object]:
    write_model(model, dtype=lambda name: "U8" if name == "logit_scale" else "F32")
    return edited(quantization_config={"quant_method": CONTROL})(model)


NAMES: dict[str, Callable[[Path], list[object]]] = {
    "tensor": named(f"x{CONTROL}"),
    "model-type": edited(model_type=CONTROL),
    "name-or-path": edited(_name_or_path=CONTROL),
    "quantization": quantized_by_a_name,
    "activation": edited(vision_config={**TINY.config_json()["vision_config"], "hidden_act": CONTROL}),
    "directory": directory_of_a_name,
    "tower": prefix_of_a_tower,
    "index": index_of_a_name,
    "torch": torch_entry_of_a_name,
    "projector": projector_of_a_name,
    "token": token_of_a_name,
}


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such file names")
@pytest.mark.parametrize("name", NAMES)
def test_control_characters_are_escaped_wherever_they_come_from(name: str, model: Path, run: Run) -> None:
    arguments = NAMES[name](model)
    shown_as_escapes = 0
    for options in (["--dry-run"], ["--dry-run", "--ignore-unknown"], ["-o", "out"], ["-o", "out", "--ignore-unknown"]):
        result = run(*arguments, *options, encoding="utf-8")
        output = result.stdout + result.stderr
        assert all(character.isprintable() or character == "\n" for character in output), ascii(output)
        shown_as_escapes += "\\x1b[2J" in output
    assert shown_as_escapes


# Something else in place of a file.


def with_projector(directory: Path) -> Path:
    model = llava_checkpoints.write_clip(directory, Llava())
    llava_checkpoints.write_projector(model / "llava.projector", Llava())
    llava_checkpoints.write_projector(model / "projector.safetensors", Llava())
    return model


def with_inner_tower(directory: Path) -> Path:
    model = llava_checkpoints.write_original(directory, Llava(), tower="inside")
    llava_checkpoints.write_vision_config(model / "vision.json", Llava())
    return model


def with_tower(directory: Path) -> Path:
    model = llava_checkpoints.write_original(directory, Llava())
    llava_checkpoints.write_tower(model / "tower", Llava())
    return model


def torch_model(directory: Path) -> Path:
    return layouts.write_clip(directory, suffix=".bin")


def torch_shards(directory: Path) -> Path:
    return layouts.write_clip(directory, suffix=".bin", shards=2)


# Every file that is read: what writes a model that has it, and the option that names it, if one does.
FILES: dict[str, tuple[Callable[[Path], Path], str | None]] = {
    **{name: (write, None) for name, write in JSON_FILES.items()},
    "model.safetensors": (write_model, None),
    "model-00002-of-00003.safetensors": (sharded, None),
    "pytorch_model.bin": (torch_model, None),
    "pytorch_model.bin.index.json": (torch_shards, None),
    "pytorch_model-00002-of-00002.bin": (torch_shards, None),
    "open_clip_model.safetensors": (layouts.write_open_clip, None),
    "llava.projector": (with_projector, "llava_projector"),
    "projector.safetensors": (with_projector, "llava_projector"),
    "vision.json": (with_inner_tower, "vision_config"),
    "tower": (with_tower, "vision_tower"),
    "tower/config.json": (with_tower, None),
    "tower/model.safetensors": (with_tower, None),
    # The model's file as MODEL_DIR, and a vocabulary as --vocab, beside the one that is not read then.
    "model.safetensors as model": (write_model, "model_dir"),
    "pytorch_model.bin as model": (torch_model, "model_dir"),
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
    options: dict[str, Any] = {"model_dir": model}
    if model / "tower" in (place, place.parent):
        options["vision_tower"] = model / "tower"
    if option is not None:
        options[option] = place
    message = refused(**options)
    assert str(place) in message
    assert any(words in message for words in expected), message


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pipes among files")
@pytest.mark.parametrize("path", ["pipe", "/dev/zero", "loop"])
def test_something_else_in_place_of_the_model(path: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    loop(tmp_path / "loop-to-it")
    refused(tmp_path / path)


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
    message = refused(model)
    assert f"puts tensor 'logit_scale' into {file!r}, which is no file name inside the directory" in message


@pytest.mark.parametrize(
    "file", ["\ud800", "x" * 5000, "a/" * 3000 + "x", "config.json/x", "a\nb"], ids=lambda f: ascii(f[:9])
)
def test_index_of_files_that_cannot_be(file: str, tmp_path: Path) -> None:
    model = sharded(tmp_path / "m")
    edit_json(model / INDEX, lambda index: index["weight_map"].update(logit_scale=file))
    with pytest.raises(ClipGGUFError, match=r"is missing|name too long|Not a directory"):
        plan_conversion(model)


def test_index_that_names_a_file_in_many_ways(tmp_path: Path) -> None:
    # "x", "./x", "././x", ...: read once, and not a thousand times.
    model = write_model(tmp_path / "m")
    (model / "model.safetensors").rename(model / "x.safetensors")
    weight_map = {name: "./" * number + "x.safetensors" for number, name in enumerate(TINY.shapes())}
    write_json(model / INDEX, {"weight_map": weight_map})
    assert len(plan_conversion(model).tensors) == len(TINY.shapes()) - 1


def test_shards_of_more_tensors_than_can_be(tmp_path: Path) -> None:
    model = sharded(tmp_path / "m")
    for number in (1, 2):
        names = {f"{number}.{n:x}": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for n in range(35_000)}
        (model / f"model-0000{number}-of-00003.safetensors").write_bytes(safetensors_header(names))
    with pytest.raises(CheckpointError, match="have more than 65,536 tensors, no model has as many"):
        plan_conversion(model, options=Options(ignore_unknown=True))


def test_json_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    path = tmp_path / "config.json"
    path.write_text("{}")
    monkeypatch.setattr("clipgguf.sources.local.OpenedSource._read_some", fail)
    with pytest.raises(ConfigError, match=r"config\.json: bytes 0 to 2 cannot be read: Input/output error"):
        read_json_object(given_file(path))
