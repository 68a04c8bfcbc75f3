"""What is said of very much: some lines of each kind, the diagnosis first, and no line without end."""

from pathlib import Path

import pytest
from gguf import GGUFValueType

from clipgguf import CheckpointError, Options, convert
from clipgguf.errors import LONGEST_LINE, condensed
from tests.checkpoints import write_model
from tests.conftest import Run
from tests.gguf_bytes import array, gguf, key, string
from tests.json_files import edit_json

T = GGUFValueType


def missing(count: int) -> list[str]:
    return [
        f"/a model/m-{n:05}: no file has tensor 'v.blk.{n}.x y', config.json asks for it with shape {(n,) * (n % 4)}"
        for n in range(count)
    ]


def test_few_lines_stay_as_they_are() -> None:
    for lines in ([], ["one"], missing(10), ["b", "a", "b"], ["config.json: it isn't 'x', should be 'y'"]):
        assert condensed(lines) == lines


def test_ten_of_a_kind() -> None:
    assert condensed(missing(11)) == [*missing(10), "and 1 more like this"]


@pytest.mark.slow
def test_ten_of_very_many_of_a_kind() -> None:
    assert condensed(missing(240_000)) == [*missing(10), "and 239,990 more like these"]


def test_what_is_said_once_comes_first() -> None:
    lines = [*missing(700), "model.safetensors: the names begin with module.", *missing(3)]
    assert condensed(lines) == [lines[700], *missing(10), "and 693 more like these"]


@pytest.mark.parametrize(
    "line",
    [
        "v.blk.{}.ffn_up.weight: {} of 1,024 values are finite",
        "/tmp/it's here/{}.bin: tensor \"it's {} x\" is unknown",
        "{}: tensor 'a' has shape ({}, 2, 3), should have (1,)",
        "file: token 'a {} b' has id {}, should be an integer",
    ],
)
def test_names_numbers_and_paths_make_no_kinds(line: str) -> None:
    assert len(condensed([line.format(n, "x" * (n % 7) + str(n)) for n in range(99)])) == 11


def test_kinds_without_number_are_cut_too() -> None:
    letters = "abcdefghijklmnopqrstuvwxyz"
    lines = condensed(f"kind {a}{b} of line" for a in letters for b in letters)
    assert (len(lines), lines[-1]) == (11, "and 666 more of other kinds")


def test_long_lines_lose_their_middle() -> None:
    (line,) = condensed([f"begin {'x' * 10**6} end"])
    assert line.startswith("begin xxx")
    assert line.endswith("xxx end")
    left = len(line) - len(" [... 999,070 characters ...] ")
    assert f"x [... {10**6 + 10 - left:,} characters ...] x" in line
    assert LONGEST_LINE - 50 < len(f"warning: {line}") <= LONGEST_LINE
    assert condensed([f"warning: {line}"]) == [f"warning: {line}"]


def test_a_long_line_is_cut_once(tmp_path: Path, run: Run) -> None:
    model = write_model(tmp_path / "m", extra={"x" * 5000: (1,)})
    error = run(model).stderr
    assert error.count("characters ...]") == 1
    assert len(error) < LONGEST_LINE + len("clipgguf: \n")


def test_cells_of_tables_are_cut(tmp_path: Path, run: Run) -> None:
    path = tmp_path / "x.gguf"
    name, text = "n" * 60_000, string("x" * 10**7)
    path.write_bytes(gguf([key(name, T.STRING, text), array("a", T.STRING, 2, text * 2), key("b", T.BOOL, b"\1")]))
    assert len(run("inspect", path).stdout) < 30_000


@pytest.mark.slow
def test_an_error_keeps_all_and_says_some(tmp_path: Path, run: Run) -> None:
    model = write_model(tmp_path / "m", extra={f"tensor.{n}": (1,) for n in range(5000)})
    with pytest.raises(CheckpointError) as caught:
        convert(model)
    assert len(caught.value.problems) == 5000
    assert len(str(caught.value).splitlines()) == 11
    assert str(caught.value).endswith("\nand 4,990 more like these")
    result = run(model)
    assert result.stderr == "".join(f"clipgguf: error: {line}\n" for line in str(caught.value).splitlines())


def test_warnings_and_notes_are_cut_by_the_same_rule(tmp_path: Path, run: Run) -> None:
    model = write_model(tmp_path / "m", extra={f"extra.{n}": (1,) for n in range(99)})
    edit_json(model / "config.json", lambda config: config["text_config"].update(hidden_act="tanh"))
    lines = run(model, "--ignore-unknown", "-o", "out").stderr.splitlines()
    warnings = [line for line in lines if line.startswith("clipgguf: warning: ")]
    assert len(warnings) == 13
    assert sum("hidden_act" in line for line in warnings[:2]) == 2
    assert warnings[-1] == "clipgguf: warning: and 89 more like these"
    assert len(convert(model, tmp_path / "x", options=Options(ignore_unknown=True)).warnings) == 101
