"""Names and values that a checkpoint has reach a terminal in part, and without control characters."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from clipgguf import CheckpointError, convert
from clipgguf.errors import shown
from tests.checkpoints import TINY, write_model
from tests.clip_checkpoints import write_tower
from tests.conftest import Run
from tests.hostile_models import INDEX
from tests.json_files import edit_json, write_json
from tests.llava_checkpoints import Llava, write_projector
from tests.weights import arrays_of, write_file, write_safetensors

# An escape sequence that clears the screen, its one-character form, a bell, and what turns text around.
CONTROL = "\x1b[2J\x9b2J\x07\u202e\r"


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
    write_tower(model, "vision", Llava().clip, prefix=CONTROL)
    return [model]


def index_of_a_name(model: Path) -> list[object]:
    write_json(model / INDEX, {"weight_map": {CONTROL: f"../{CONTROL}", f"b{CONTROL}": 1}})
    return [model]


def torch_entry_of_a_name(model: Path) -> list[object]:
    (model / "model.safetensors").unlink()
    arrays = arrays_of({**TINY.shapes(), CONTROL: (1,)})
    write_file(model / "pytorch_model.bin", arrays)
    return [model]


def projector_of_a_name(model: Path) -> list[object]:
    path = model / f"{CONTROL}.projector"
    write_projector(path, Llava(), prefix=f"{CONTROL}.")
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
        result = run(*arguments, *options)
        output = result.stdout + result.stderr
        assert all(character.isprintable() or character == "\n" for character in output), ascii(output)
        shown_as_escapes += "\\x1b[2J" in output
    assert shown_as_escapes
