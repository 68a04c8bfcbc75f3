"""Write docs/commands.md, what ``--help`` says of each command, and the README's row of the families.

python -m tests.make_commands
"""

from pathlib import Path

import typer
from typer.testing import CliRunner

from clipgguf import supported_families
from clipgguf.cli import app

ROOT = Path(__file__).parents[1]
COMMANDS, README = ROOT / "docs" / "commands.md", ROOT / "README.md"
ROW = "| the image and audio encoders of "
INTRODUCTION = """\
# Commands and options

This is what `--help` says; `python -m tests.make_commands` writes it.

Exit codes: 0 when it is done; 1 when it cannot be done, with a line for each fault on standard error and the disk as it
was; 2 for wrong usage. Standard output has the result (the file's path, tables, or JSON) and nothing else.
"""


def reference() -> str:
    """Return the reference as Markdown: a section for each command."""
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    sections = [_section("clipgguf")]
    sections += [_section(f"clipgguf {name}", name) for name in group.commands]
    return "\n".join([INTRODUCTION, *sections])


def _section(title: str, *words: str) -> str:
    result = CliRunner().invoke(app, [*words, "--help"], prog_name="clipgguf", terminal_width=80, color=False)
    assert result.exit_code == 0, result.output
    return f"## {title}\n\n```text\n{result.output.rstrip()}\n```\n"


def row() -> str:
    """Return the row of the README's table that has all families but CLIP's and LLaVA's."""
    titles = [family.title for family in supported_families() if "clip.cpp" not in family.readers]
    others = ", ".join(dict.fromkeys(title for title in titles if title != "LLaVA"))
    return f"{ROW}{others} | `clipgguf DIR` | `mmproj-model-f16.gguf` | llama.cpp |"


if __name__ == "__main__":
    COMMANDS.write_text(reference(), encoding="utf-8", newline="\n")
    lines = README.read_text(encoding="utf-8").splitlines()
    lines = [row() if line.startswith(ROW) else line for line in lines]
    README.write_text("\n".join([*lines, ""]), encoding="utf-8", newline="\n")
