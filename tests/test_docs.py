"""README and docs hold: their commands run and print what they show, and what the program has is explained in them."""

import json
import re
import shlex
import shutil
import sys
from collections.abc import Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import clipgguf
from clipgguf import convert
from clipgguf.cli import app
from tests.checkpoints import TINY, write_model
from tests.clip_checkpoints import write_clip, write_pipeline
from tests.conftest import Run
from tests.family_fixtures import fixtures
from tests.gguf_bytes import rewritten
from tests.llava_checkpoints import Llava, write_hf, write_original, write_projector
from tests.make_commands import COMMANDS, reference, row
from tests.marks import slow_but_for

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [README, *DOCS, ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", ROOT / "CHANGELOG.md"]
GEMMA = ROOT / "clipgguf" / "families" / "gemma3.py"
# The names under which the pages' examples have families that are made from fixtures.
FAMILIES = {"gemma3": "gemma-3-4b-it", "qwen2_5_vl": "Qwen2.5-VL-7B-Instruct"}


def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page: Path, language: str) -> list[str]:
    """Return the contents of a page's code blocks in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text(page), re.MULTILINE | re.DOTALL)


def test_the_reference_is_what_the_help_says() -> None:
    assert text(COMMANDS) == reference(), "python -m tests.make_commands writes it anew"


def test_every_option_of_python_is_one_of_the_command_line() -> None:
    public: Any = clipgguf
    options = {f"--{field.name.replace('_', '-')}" for field in fields(public.Options)}
    named = set(re.findall(r"--[a-z][a-z0-9-]+", text(COMMANDS)))
    assert options - named == set()


def test_every_family_stands_in_the_readme() -> None:
    assert row() in text(README), "python -m tests.make_commands writes it anew"


# ---- the keys of --json ----------------------------------------------------------------------------------------------


def keys(value: Any) -> Iterator[str]:
    """Yield the keys of all objects in a JSON value."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield name
            # Here the keys are the file's metadata, and verdicts.
            is_a_list = name in ("metadata", "verdicts") and isinstance(inner, dict)
            yield from keys(list(inner.values()) if is_a_list else inner)
    for inner in value if isinstance(value, list) else ():
        yield from keys(inner)


def test_every_key_of_json_is_explained(tmp_path: Path, run: Run) -> None:
    clip = write_model(tmp_path / "clip")
    llava = write_hf(tmp_path / "llava", Llava())
    files = [convert(model, tmp_path / f"{n}.gguf").path for n, model in enumerate((clip, llava))]
    sections = re.split(r"^## clipgguf ", text(ROOT / "docs" / "json.md"), flags=re.MULTILINE)
    explained = {section.split()[0]: section for section in sections[1:]}
    commands: dict[str, list[tuple[object, ...]]] = {
        "convert": [(clip, "-o", tmp_path, "--json"), (clip, "--dry-run", "--json")],
        "inspect": [(file, "--json") for file in files],
        # Different metadata, so that there are objects that tell of it.
        "verify": [(files[0], clip, "--json", "--image-mean", 0.5, 0.5, 0.5)],
    }
    assert list(explained) == list(commands)
    explained["convert"] += explained["inspect"]  # Metadata are the same in both.
    for name, runs in commands.items():
        words = () if name == "convert" else (name,)
        found = {key for arguments in runs for key in keys(json.loads(run(*words, *arguments).stdout))}
        assert len(found) >= 9
        assert {key for key in found if f"`{key}`" not in explained[name]} == set(), name


# ---- commands --------------------------------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with everything that the examples name, small, as the working directory."""
    llava = Llava()
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    for name in ("clip-vit-base-patch32", "clip-vit-large-patch14", "clip-vit-large-patch14-336"):
        write_clip(tmp_path / name, llava.clip)
    base = tmp_path / "clip-vit-base-patch32"
    shutil.copyfile(base / "model.safetensors", base / "model.fp16.safetensors")
    write_pipeline(tmp_path / "stable-diffusion-v1-5", TINY)
    write_projector(tmp_path / "llava.projector", llava)
    write_hf(tmp_path / "llava-1.5-7b-hf", llava)
    write_original(tmp_path / "llava-v1.5-7b", llava)
    # LLaVA 1.6 has its tower inside, of a size that is known by its name; here it is told by a file.
    write_original(tmp_path / "llava-v1.6-mistral-7b", llava, tower="folder")
    for family in fixtures():
        family.write(tmp_path / FAMILIES.get(family.name, family.name))
    (lists,) = (block for block in blocks(ROOT / "docs" / "batch.md", "text") if "# models.txt" in block)
    (tmp_path / "models.txt").write_text(lists, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    # What the examples of other pages have written.
    for line in (
        "clip-vit-large-patch14",
        "clip-vit-large-patch14 --outtype q8_0",
        "llava-v1.5-7b --vision-tower clip-vit-large-patch14-336",
    ):
        run_line([*line.split(), "-o", "out/"])
    mmproj = tmp_path / "out" / "mmproj-model-f16.gguf"
    rewritten(mmproj, tmp_path / "mmproj-old.gguf", without=("clip.projector_type",))
    return tmp_path


def run_line(arguments: Iterable[str]) -> str:
    """Run ``clipgguf`` in this process; return both streams as they come."""
    result = CliRunner().invoke(app, list(arguments), prog_name="clipgguf")
    assert result.exception is None, f"{arguments}: {result.output}{result.exception}"
    return result.output


def commands(page: Path) -> Iterator[list[str]]:
    """Yield the arguments of every ``clipgguf`` in a page's blocks of commands."""
    for line in "".join(blocks(page, "sh")).splitlines():
        if match := re.fullmatch(r"(?:\w+=\$\()?clipgguf (.*?)\)?", line):
            yield shlex.split(match[1], comments=True)


@pytest.mark.parametrize(
    "page", slow_but_for([page for page in PAGES if list(commands(page))], README), ids=lambda page: page.name
)
def test_commands_run(page: Path, place: Path) -> None:
    for arguments in commands(page):
        run_line(arguments)


@pytest.mark.skipif(sys.platform == "win32", reason="the paths that are shown have slashes")
def test_commands_print_what_is_shown(place: Path) -> None:
    shown = [block for page in PAGES for block in blocks(page, "console")]
    assert len(shown) == 2
    for block in shown:
        command, _, expected = block.partition("\n")
        found = run_line(shlex.split(command.removeprefix("$ clipgguf ")))
        assert [re.sub(r"\d+\.\d s$", "_ s", t, flags=re.MULTILINE) for t in (found, expected)]


def test_python_runs(place: Path) -> None:
    found = [block for page in [README, *DOCS] for block in blocks(page, "python")]
    assert len(found) == 1
    for block in found:
        exec(compile(block, "README.md", "exec"), {})


def test_the_block_that_ci_runs() -> None:
    match = re.search(r"^<!-- ci -->\n```sh\n(.*?)^```$", text(README), re.MULTILINE | re.DOTALL)
    assert match is not None
    first, second = match[1].splitlines()
    set_up = "python3 -m venv .venv && .venv/bin/pip install -q -e '.[test,client]' && "
    assert first.startswith(set_up)
    assert second == f"{set_up}.venv/bin/python -m pytest"


# ---- pages and links -------------------------------------------------------------------------------------------------


def test_the_readme_is_short_and_names_every_page() -> None:
    assert 90 <= len(text(README).splitlines()) <= 120
    for page in [*DOCS, *PAGES]:
        assert page in (README, ROOT / "CHANGELOG.md") or f"]({page.relative_to(ROOT).as_posix()})" in text(README)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", text(page)):
        assert (page.parent / target).exists(), target


def test_the_rooms_are_there() -> None:
    rows = re.findall(r"^\| (`.*?) \|", text(ROOT / "CONTRIBUTING.md"), re.MULTILINE)
    rooms = re.findall(r"`(.+?)`", " ".join(row for row in rows))
    assert len(rooms) > 15
    assert [room for room in rooms if not (ROOT / "clipgguf" / room).exists()] == []


def test_the_example_of_a_family_is_the_family() -> None:
    (example,) = (block for block in blocks(ROOT / "CONTRIBUTING.md", "python") if "FAMILY = " in block)
    lines = {line.split("  #")[0].strip() for line in text(GEMMA).splitlines()}
    assert [line for line in example.splitlines() if line.split("  #")[0].strip() not in {*lines, "..."}] == []
