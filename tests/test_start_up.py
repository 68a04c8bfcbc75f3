"""What starting takes: which modules are imported, and which settings of its process the command line makes."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.processes import uncovered

COMMAND = "from clipgguf.__main__ import main\ntry: main()\nexcept SystemExit: pass\n"
MODULES = "import sys; print(*sys.modules)"
SETTINGS = "import gc, os; print(os.environ.get('OPENBLAS_NUM_THREADS'), gc.get_threshold()[0])"
NEVER = {"torch", "transformers", "distributed"}


def last_line(code: str, work: Path, arguments: Sequence[object], **environment: str) -> str:
    """Run code in a process of its own with arguments, and return its last line on standard output."""
    outside = {name: value for name, value in uncovered().items() if name != "OPENBLAS_NUM_THREADS"}
    words = [sys.executable, "-c", code, *map(str, arguments)]
    environment = {**outside, **environment}
    result = subprocess.run(words, capture_output=True, text=True, check=True, cwd=work, env=environment)
    return result.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    ("code", "arguments", "banned"),
    [
        ("import clipgguf.cli\n", (), {"numpy", "gguf", "yaml", "safetensors", "rich", "clipgguf.families"}),
        (COMMAND, ("--version",), {"numpy", "gguf", "yaml", "safetensors", "rich", "clipgguf.families"}),
        (COMMAND, ("--help",), {"numpy", "gguf", "yaml", "safetensors", "rich", "clipgguf.families"}),
        ("import clipgguf.conversion, clipgguf.writer\n", (), {"rich", "clipgguf.clip_file"}),
    ],
    ids=["import", "version", "help", "writer"],
)
def test_imports(code: str, arguments: Sequence[str], banned: set[str], tmp_path: Path) -> None:
    modules = set(last_line(code + MODULES, tmp_path, arguments).split())
    assert "clipgguf" in modules
    assert not modules & (banned | NEVER)


def test_a_conversion_imports_no_more_than_it_needs(model: Path, tmp_path: Path) -> None:
    modules = set(last_line(COMMAND + MODULES, tmp_path, (model, "-o", "x.gguf")).split())
    families = {name.removeprefix("clipgguf.families.") for name in modules if name.startswith("clipgguf.families.")}
    assert families == {"bases", "clip", "tower_tables"}
    others = {"rich", "clipgguf.checkpoint.torch_state", "clipgguf.checkpoint.gguf_reader", "clipgguf.clip_file"}
    assert not modules & (others | NEVER | {"clipgguf.verification", "clipgguf.sources.line"})


def test_a_batch_on_one_machine_knows_no_cluster(model: Path, tmp_path: Path) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text(f"{model.as_posix()} -o x.gguf\n")
    modules = set(last_line(COMMAND + MODULES, tmp_path, ("batch", listed)).split())
    assert "clipgguf.cli.batch_run" in modules
    assert not modules & (NEVER | {"clipgguf.cluster", "numpy"})


@pytest.mark.parametrize(
    ("code", "environment", "found"),
    [
        # They are the process's, and a library has no say in them.
        ("import clipgguf.cli, clipgguf.__main__\n", {}, "None 700"),
        ("import sys, clipgguf; clipgguf.convert(*sys.argv[1:])\n", {}, "None 700"),
        (COMMAND, {}, "1 10000"),
        (COMMAND, {"OPENBLAS_NUM_THREADS": "2"}, "2 10000"),
    ],
    ids=["import", "library", "command", "command of who wants it otherwise"],
)
def test_settings_of_the_process(
    code: str, environment: Mapping[str, str], found: str, model: Path, tmp_path: Path
) -> None:
    arguments = (model, "-o", "x.gguf") if code == COMMAND else (model, "x.gguf")
    assert (
        last_line("import gc; gc.set_threshold(700)\n" + code + SETTINGS, tmp_path, arguments, **environment) == found
    )
