"""The command line as its user meets it: its two streams, its exit code and, where it matters, a real process."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import clipgguf
from clipgguf import Options, convert
from clipgguf.kernels import encoders
from tests.checkpoints import write_model
from tests.conftest import Run
from tests.gguf_reading import value
from tests.json_files import edit_json
from tests.processes import HANGS_AFTER, command, read_terminal, run_process, uncovered


def test_the_form_that_everyone_types(model: Path, tmp_path: Path, run_alone: Run) -> None:
    result = run_alone(model, "-o", "out/")
    assert (result.returncode, result.stdout) == (0, f"{Path('out', 'model-f16.gguf')}\n")
    assert (tmp_path / "work/out/model-f16.gguf").read_bytes() == convert(model, tmp_path).path.read_bytes()
    found, did = result.stderr.split(": ", 2)[1:]
    assert found == "CLIPModel in model.safetensors, tensors text_model.* and vision_model.*, F32"
    assert re.fullmatch(r"93 tensors, 433\.\d+ kB in, 221\.\d+ kB out, \d+\.\d s\n", did)


@pytest.mark.parametrize(
    ("arguments", "name", "same_as"),
    [
        (["convert", "MODEL", "-o", "out"], "model-f16.gguf", {}),
        (["-m", "MODEL", "--output-dir", "out", "--use-f32"], "model-f32.gguf", {"outtype": "f32"}),
        (["--model-dir", "MODEL", "-o", "out", "--text-only"], "text-model-f16.gguf", {"text_only": True}),
        (["MODEL", "--outtype", "q8_0", "--threads", "3", "-o", "out"], "model-q8_0.gguf", {"outtype": "q8_0"}),
        (
            ["--vision-only", "MODEL", "--outtype", "f32", "-o", "out"],
            "vision-model-f32.gguf",
            {"vision_only": True, "outtype": "f32"},
        ),
        (
            ["MODEL", "--image-mean", "0.5", "0.4", "0.3", "--image-std", "1", "2", "3", "-o", "out"],
            "model-f16.gguf",
            {"image_mean": (0.5, 0.4, 0.3), "image_std": (1.0, 2.0, 3.0)},
        ),
    ],
    ids=["full name", "the script's spellings", "text", "quantized", "vision", "statistics"],
)
def test_spellings(
    arguments: list[str], name: str, same_as: dict[str, object], model: Path, tmp_path: Path, run: Run
) -> None:
    result = run(*[model if argument == "MODEL" else argument for argument in arguments], "-q")
    assert (result.returncode, result.stdout, result.stderr) == (0, f"{Path('out', name)}\n", "")
    expected = convert(model, tmp_path / "expected", options=Options(**same_as))  # type: ignore[arg-type]
    assert (tmp_path / "work/out" / name).read_bytes() == expected.path.read_bytes()


def test_statistics_given_reach_the_file(model: Path, tmp_path: Path) -> None:
    path = convert(model, tmp_path, options=Options(image_mean=[0, 0.5, 1])).path
    assert value(path, "clip.vision.image_mean") == [0.0, 0.5, 1.0]
    assert value(path, "clip.vision.image_std")[0] == pytest.approx(0.26862954)


def test_statistics_that_are_none(model: Path, run: Run) -> None:
    result = run(model, "--image-std", "0.5", "nan", "0.5")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("clipgguf: error: image_std is (0.5, nan, 0.5), should be 3 positive numbers")


def test_output_may_be_the_file_itself(model: Path, tmp_path: Path, run: Run) -> None:
    result = run(model, "-o", "new/deep/mine.gguf", "-q")
    assert result.stdout == f"{Path('new', 'deep', 'mine.gguf')}\n"
    assert (tmp_path / "work/new/deep/mine.gguf").is_file()


def test_without_output_the_file_goes_beside_the_model(model: Path, run: Run) -> None:
    assert run(".", "-q", cwd=model).stdout == "model-f16.gguf\n"
    assert (model / "model-f16.gguf").is_file()


def test_the_name_in_the_file_is_the_directorys_however_it_is_spelled(model: Path, tmp_path: Path, run: Run) -> None:
    expected = convert(model, tmp_path / "expected").path.read_bytes()
    for spelling, cwd in ((f"{model}/", None), (".", model), ("../tiny-clip", model)):
        assert run(spelling, "-o", tmp_path / "x.gguf", **({"cwd": cwd} if cwd else {})).returncode == 0
        assert (tmp_path / "x.gguf").read_bytes() == expected


def test_directory_that_is_called_like_a_command(tmp_path: Path, run: Run) -> None:
    write_model(tmp_path / "work" / "convert")
    assert run("./convert", "-q").stdout == f"{Path('convert', 'model-f16.gguf')}\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--text-only", "--vision-only", "MODEL"], ["--text-only", "--vision-only"]),
        ([], ["Usage: clipgguf"]),
        (["-o", "out"], ["MODEL_DIR", "missing"]),
        (["MODEL", "-m", "MODEL"], ["MODEL_DIR", "twice"]),
        (["MODEL", "more"], ["more"]),
        (["MODEL", "--outtype", "f64"], ["f64", "f16"]),
        (["MODEL", "--image-mean", "1", "2"], ["--image-mean"]),
        (["MODEL", "--fast"], ["--fast"]),
        (["MODEL", "--threads", "0"], ["--threads"]),
    ],
)
def test_wrong_usage_exits_2(arguments: list[str], words: list[str], model: Path, run: Run) -> None:
    result = run(*[model if argument == "MODEL" else argument for argument in arguments])
    assert result.returncode == 2
    assert all(word in result.stderr + (result.stdout if not arguments else "") for word in words), result
    assert "Traceback" not in result.stderr
    assert not list(model.glob("*.gguf"))


def test_version(run_alone: Run) -> None:
    result = run_alone("--version")
    assert (result.returncode, result.stdout) == (0, f"clipgguf {clipgguf.__version__} ({encoders()})\n")
    assert encoders() in ("compiled", "numpy")


def test_help_lists_the_commands_and_says_what_happens_without_one(run: Run) -> None:
    result = run("--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert run("-h").stdout == result.stdout
    lines = result.stdout[result.stdout.index("\nCommands:") :].splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["convert", "inspect", "verify", "families", "upgrade", "batch"]
    assert all(len(line.split()) > 4 and len(line) < 80 for line in lines[2:])
    text = " ".join(result.stdout.split())
    assert (
        'Without a command, clipgguf converts: "clipgguf MODEL_DIR" is short for "clipgguf convert MODEL_DIR"' in text
    )
    assert run("upgrade", "-h").stdout.startswith("Usage: clipgguf upgrade")


def test_help_names_every_option(run: Run) -> None:
    result = run("convert", "-h")
    assert result.returncode == 0
    for option in (
        "MODEL_DIR", "-o", "--output", "--text-only", "--vision-only", "--outtype", "--image-mean", "--image-std",
        "--dry-run", "-q", "--json", "--help", "-h", "-m", "--model-dir", "--use-f32", "--output-dir", "--name",
    ):  # fmt: skip
        assert re.search(rf"(?<![\w-]){option}(?![\w-])", result.stdout), option


def test_f32_says_that_the_convolution_stays_f16(model: Path, run: Run) -> None:
    assert "v.patch_embd.weight stays f16" in run(model, "--use-f32", "-o", "out").stderr
    assert "stays f16" not in run(model, "--use-f32", "--text-only", "-o", "out").stderr
    assert "stays f16" not in run(model, "-o", "out").stderr


def test_quiet_still_warns(model: Path, run: Run) -> None:
    edit_json(model / "config.json", lambda c: c["text_config"].update(projection_dim=512))
    (model / "preprocessor_config.json").unlink()
    loud, quiet = run(model, "-o", "out").stderr, run(model, "-o", "out", "-q").stderr
    assert "note: no image processor's file" in loud
    assert quiet.splitlines() == [line for line in loud.splitlines() if "warning: " in line] != []


CONVERT_KEYS = [
    *("path", "tensors", "bytes_in", "bytes_out", "seconds", "warnings", "notes", "found", "outtype"),
    *("encoders", "bytes_read", "commit"),
]
PLAN_KEYS = ["name", "type", "shape", "bytes", "source", "source_type", "source_bytes"]


def test_json(model: Path, run: Run) -> None:
    (model / "preprocessor_config.json").unlink()
    planned = run(model, "-o", "out", "--dry-run", "--json", "--outtype", "auto")
    result = run(model, "-o", "out", "--json", "--outtype", "auto")
    assert (planned.returncode, planned.stderr, result.returncode, result.stderr) == (0, "", 0, "")
    plan, found = json.loads(planned.stdout), json.loads(result.stdout)
    assert list(found) == CONVERT_KEYS
    assert list(plan) == [*CONVERT_KEYS, "replaces", "problem", "plan"]
    assert found.pop("seconds") > 0
    assert {key: plan[key] for key in found} == found
    assert (plan["seconds"], plan["replaces"], plan["problem"]) == (None, None, None)
    assert (found["path"], found["outtype"]) == (str(Path("out", "model-f16.gguf")), "f16")
    assert [note.split(";")[0] for note in found["notes"]] == [
        "no image processor's file gives image_mean and image_std"
    ]
    inspected = json.loads(run("inspect", found["path"], "--json").stdout)
    assert {"general.architecture": {"type": "STRING", "value": "clip"}, **plan["plan"]["metadata"]} == inspected[
        "metadata"
    ]
    tensors = plan["plan"]["tensors"]
    assert all(list(tensor) == PLAN_KEYS for tensor in tensors)
    assert [tensor["name"] for tensor in tensors] == [tensor["name"] for tensor in inspected["tensors"]]
    assert sum(tensor["bytes"] for tensor in tensors) == found["bytes_out"]


@pytest.mark.parametrize(
    ("words", "number", "found"),
    [
        ("clipgguf ", 1, {"convert", "inspect", "verify", "families", "upgrade", "batch"}),
        ("clipgguf --outp", 1, {"--output", "--output-dir"}),
        ("clipgguf model --outtype q8", 3, {"q8_0"}),
        ("clipgguf verify --proj", 2, {"--projector-type"}),
        ("clipgguf mod", 1, set()),
    ],
)
def test_completion(words: str, number: int, found: set[str]) -> None:
    environment = {**uncovered(), "_CLIPGGUF_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(number)}
    result = run_process(env=environment, check=True)
    assert set(result.stdout.split()) == found


def test_dry_run_finds_what_is_wrong(model: Path, run: Run) -> None:
    (model / "model.safetensors").write_bytes(b"")
    assert run(model, "--dry-run").returncode == 1


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals are POSIX")
def test_progress_bar_on_a_terminal(model: Path, tmp_path: Path) -> None:
    import pty

    controller, terminal = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    words = command(model, "-o", tmp_path / "out")
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=terminal, env=environment)
    os.close(terminal)
    shown = read_terminal(controller)
    stdout, _ = process.communicate(timeout=HANGS_AFTER)
    assert stdout.decode() == f"{tmp_path / 'out' / 'model-f16.gguf'}\n"
    assert "221.9/221.9 kB" in shown


def test_the_public_names_are_all_there_before_they_are_imported() -> None:
    code = (
        "import clipgguf\n"
        "assert set(clipgguf.__all__) <= set(dir(clipgguf))\n"
        "assert 'clipgguf.errors' not in __import__('sys').modules\n"
        "import clipgguf.conversion, clipgguf.inspection\n"
        "assert all(getattr(clipgguf, name) is not None for name in clipgguf.__all__)\n"
        "assert callable(clipgguf.convert) and callable(clipgguf.inspect)\n"
        "assert not hasattr(clipgguf, 'nothing')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_families_are_listed(run: Run) -> None:
    result = run("families")
    assert (result.returncode, result.stderr) == (0, "")
    rows = {line.split("  ")[0] for line in result.stdout.splitlines()}
    found = json.loads(run("families", "--json").stdout)
    assert {family["title"] for family in found} == rows - {"family"}
    (gemma,) = (family for family in found if family["title"] == "Gemma 3")
    assert gemma == {
        "title": "Gemma 3",
        "met_by": ["gemma3"],
        "projector_types": ["gemma3"],
        "readers": ["llama.cpp"],
    }
