"""The command line as its user meets it: a real process, its two streams and its exit code."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from gguf import GGUFReader

import clipgguf
from clipgguf import Options, convert
from clipgguf.destination import outlook
from tests.checkpoints import REAL, TINY, edit_json, write_model, write_sparse_safetensors
from tests.conftest import Run
from tests.processes import HANGS_AFTER, uncovered


def test_the_form_that_everyone_types(model: Path, tmp_path: Path, run: Run) -> None:
    result = run(model, "-o", "out/")
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
    fields = GGUFReader(path).fields
    assert fields["clip.vision.image_mean"].contents() == [0.0, 0.5, 1.0]
    assert fields["clip.vision.image_std"].contents()[0] == pytest.approx(0.26862954)


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


def test_version(run: Run) -> None:
    result = run("--version")
    assert (result.returncode, result.stdout) == (0, f"clipgguf {clipgguf.__version__}\n")


def test_help_lists_the_commands_and_says_what_happens_without_one(run: Run) -> None:
    result = run("--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert run("-h").stdout == result.stdout
    lines = result.stdout[result.stdout.index("\nCommands:") :].splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["convert", "inspect", "verify", "upgrade"]
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


def test_dry_run_shows_the_plan_and_writes_nothing(model: Path, tmp_path: Path, run: Run) -> None:
    result = run(model, "--dry-run", "-o", tmp_path / "out")
    assert (result.returncode, result.stderr) == (0, "")
    assert not (tmp_path / "out").exists()
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["clip.text.projection_dim", "24"] in lines
    assert ["tokenizer.ggml.tokens", "99", "values"] in lines
    row = "v.blk.2.ffn_up.weight vision_model.encoder.layers.2.mlp.fc2.weight 48 x 96 F32 F16 18,432 9,216"
    assert row.split() in lines
    assert lines[-3] == ["93", "tensors,", "433,344", "bytes", "in,", "221,856", "bytes", "out"]
    written = [t.name for t in GGUFReader(convert(model, tmp_path).path).tensors]
    assert [line[0] for line in lines if line and line[0] in written] == written


def test_dry_run_says_where_the_file_would_go_and_what_it_would_replace(model: Path, tmp_path: Path, run: Run) -> None:
    work = tmp_path / "work"
    new = run(model, "--dry-run", "-o", "new/deep/{name}-{outtype}.gguf")
    path = Path("new", "deep", "tiny-clip-f16.gguf")
    assert new.stdout.splitlines()[-1] == f"{path}: would be written, in a new directory new"
    (work / "old").mkdir()
    assert run(model, "--dry-run", "-o", "old").stdout.splitlines()[-1] == (
        f"{Path('old', 'model-f16.gguf')}: would be written"
    )
    (work / "old/model-f16.gguf").write_bytes(b"older")
    old = run(model, "--dry-run", "-o", "old")
    assert old.stdout.endswith("model-f16.gguf: would be written, and replace a file of 5 bytes\n")
    assert (old.returncode, (work / "old/model-f16.gguf").read_bytes()) == (0, b"older")
    assert [path.name for path in work.iterdir()] == ["old"]


def test_dry_run_says_why_the_file_could_not_be_written(model: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "file").write_bytes(b"")
    places = {tmp_path / "file" / "x.gguf": f"{tmp_path / 'file'} is no directory"}
    if hasattr(os, "geteuid") and os.geteuid() != 0:
        (tmp_path / "locked").mkdir(mode=0o555)
        places[tmp_path / "locked" / "x.gguf"] = f"{tmp_path / 'locked'} may not be written to"
    for path, reason in places.items():
        result = run(model, "--dry-run", "-o", path)
        assert (result.returncode, result.stderr) == (1, f"clipgguf: error: {path}: cannot be written: {reason}\n")
        assert result.stdout.splitlines()[-1] == f"{path}: could not be written"
        as_json = run(model, "--dry-run", "-o", path, "--json")
        assert (as_json.returncode, json.loads(as_json.stdout)["problem"]) == (1, result.stderr[17:-1])


def test_permission_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # Root may write everywhere.
    found = outlook(tmp_path / "new" / "x.gguf", 1)
    assert found.problem == f"{tmp_path / 'new' / 'x.gguf'}: cannot be written: {tmp_path} may not be written to"


def test_room_on_the_disk_is_looked_at(tmp_path: Path) -> None:
    nbytes = shutil.disk_usage(tmp_path).total + 1
    assert "bytes free" not in str(outlook(tmp_path / "a/b/x.gguf", 1).problem)
    found = outlook(tmp_path / "a/b/x.gguf", nbytes)
    assert re.search(rf"x\.gguf: needs {nbytes:,} bytes, its disk has [\d,]+ free", str(found.problem))
    assert found.makes == tmp_path / "a"
    assert not (tmp_path / "a").exists()


CONVERT_KEYS = ["path", "tensors", "bytes_in", "bytes_out", "seconds", "warnings", "notes", "found", "outtype"]
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
        ("clipgguf ", 1, {"convert", "inspect", "verify", "upgrade"}),
        ("clipgguf --outp", 1, {"--output", "--output-dir"}),
        ("clipgguf model --outtype q8", 3, {"q8_0"}),
        ("clipgguf verify --proj", 2, {"--projector-type"}),
        ("clipgguf mod", 1, set()),
    ],
)
def test_completion(words: str, number: int, found: set[str]) -> None:
    environment = {**uncovered(), "_CLIPGGUF_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(number)}
    command = [sys.executable, "-m", "clipgguf"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert set(result.stdout.split()) == found


def test_dry_run_finds_what_is_wrong(model: Path, run: Run) -> None:
    (model / "model.safetensors").write_bytes(b"")
    assert run(model, "--dry-run").returncode == 1


@pytest.mark.parametrize(
    ("code", "banned"),
    [
        ("import clipgguf.cli", {"torch", "transformers", "numpy", "gguf", "rich"}),
        ("import sys; sys.argv = ['clipgguf', '--version']\nfrom clipgguf.cli import main\n"
         "try: main()\nexcept SystemExit: pass", {"torch", "transformers", "numpy", "gguf"}),
        ("import sys; sys.argv = ['clipgguf', '--help']\nfrom clipgguf.cli import main\n"
         "try: main()\nexcept SystemExit: pass", {"torch", "transformers", "numpy", "gguf"}),
        ("import clipgguf.conversion, clipgguf.writer", {"torch", "transformers"}),
    ],
    ids=["import", "version", "help", "writer"],
)  # fmt: skip
def test_imports(code: str, banned: set[str]) -> None:
    code += "\nimport sys; print('modules', *{name.split('.')[0] for name in sys.modules})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = set(result.stdout.splitlines()[-1].split())
    assert "modules" in modules
    assert not modules & banned


def sparse_model(directory: Path) -> Path:
    """A model of 600 MB that takes no disk and no time to make: its weights are one hole."""
    write_model(directory, TINY)
    clip = REAL["vit-b-32"]
    edit_json(directory / "config.json", lambda c: c.update(clip.config_json()))
    write_sparse_safetensors(directory / "model.safetensors", clip.shapes())
    return directory


@pytest.mark.skipif(
    sys.platform == "win32", reason="Windows has no SIGTERM to send, and its Ctrl-C reaches the tests too"
)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["INT", "TERM"])
def test_interruption_leaves_the_old_file_and_nothing_else(number: int, code: int, tmp_path: Path) -> None:
    model = sparse_model(tmp_path / "m")
    out = tmp_path / "out"
    out.mkdir()
    (out / "model-f16.gguf").write_bytes(b"an older file")
    errors = tmp_path / "stderr"
    with errors.open("wb") as stderr:
        process = subprocess.Popen([sys.executable, "-m", "clipgguf", str(model), "-o", str(out)], stderr=stderr)
    deadline = time.monotonic() + HANGS_AFTER
    while not any(path.stat().st_size > 1 << 20 for path in out.glob(".*")):
        assert process.poll() is None, "ended before it could be interrupted"
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(number)
    assert process.wait(timeout=HANGS_AFTER) == code
    assert "Traceback" not in errors.read_text()
    assert [path.name for path in out.iterdir()] == ["model-f16.gguf"]
    assert (out / "model-f16.gguf").read_bytes() == b"an older file"


@pytest.mark.skipif(
    sys.platform == "win32", reason="Windows has no SIGTERM to send, and its Ctrl-C reaches the tests too"
)
@pytest.mark.parametrize("gap", [0, 0.002, 0.005, 0.01, 0.03])
def test_ctrl_c_again_does_not_interrupt_the_tidying_up(gap: float, tmp_path: Path) -> None:
    model = sparse_model(tmp_path / "m")
    out = tmp_path / "new" / "out"
    command = [sys.executable, "-m", "clipgguf", str(model), "-o", str(out)]
    process = subprocess.Popen(command, env=uncovered(), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not any(path.stat().st_size > 1 << 20 for path in out.glob(".*")):
        assert process.poll() is None, "ended before it could be interrupted"
        assert time.monotonic() < deadline
        time.sleep(0.001)
    for _ in range(4):
        process.send_signal(signal.SIGINT)
        time.sleep(gap)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "")
    assert not (tmp_path / "new").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals are POSIX")
def test_progress_bar_on_a_terminal(model: Path, tmp_path: Path) -> None:
    import pty

    controller, terminal = pty.openpty()
    command = [sys.executable, "-m", "clipgguf", str(model), "-o", str(tmp_path / "out")]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=terminal, env=environment)
    os.close(terminal)
    shown = b""
    with contextlib.suppress(OSError):  # What a terminal raises on Linux when nobody holds its other end any more.
        while data := os.read(controller, 65_536):
            shown += data
    os.close(controller)
    stdout, _ = process.communicate(timeout=HANGS_AFTER)
    assert stdout.decode() == f"{tmp_path / 'out' / 'model-f16.gguf'}\n"
    assert "221.9/221.9 kB" in shown.decode()


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
