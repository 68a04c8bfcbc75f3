"""``clipgguf batch``: a list of conversions, and a table of those that failed."""

import re
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clipgguf.cli.convert import convert_command
from clipgguf.cli.output import message, usage_text
from clipgguf.cli.tables import FOLD, RIGHT, show, table
from clipgguf.errors import ClipGGUFError, UsageError
from clipgguf.options import Options

if TYPE_CHECKING:
    from clipgguf.batches import Doing, Line

# What all wrong usage is for the library under typer, which has no public name for it.
_WrongUsage: Any = typer.BadParameter.__base__
MOST_JOBS = 64


def batch_command(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="LIST", help="A text file: each line has a model and its options, as on the command line."
        ),
    ],
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs", "-j", min=1, max=MOST_JOBS, metavar="N", help="How many to convert at a time. [default: 1]"
        ),
    ] = None,
    dask: Annotated[
        str | None,
        typer.Option(
            "--dask", metavar="ADDRESS", help="Convert on the Dask cluster whose scheduler is at tcp://HOST:PORT."
        ),
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option("--shard", metavar="I/N", help="Convert part I of N equal parts of the list alone."),
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option(
            "--results",
            metavar="FILE.jsonl",
            help="Where a line of JSON goes for each model, and what is done is looked up. [default: LIST.jsonl]",
        ),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare what is done with its checkpoint, instead of passing over it.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, notes or summary.")] = False,
) -> None:
    """Convert a list of models, each in a process of its own.

    What the results say is done is not done again, as long as its file is there and the Hugging Face hub still has the
    same commit of it. Exits 1 when a model failed; a table on standard output says which, and why.
    """
    import shlex

    from clipgguf.batches import Results, read_list
    from clipgguf.cli.batch_run import BatchRun

    if dask is not None and jobs is not None:
        raise UsageError(
            "exclude each other: the cluster has as many at a time as its workers have threads", "jobs", "dask"
        )
    done_by = _doing(dask, jobs or 1, quiet)
    lines = read_list(file)
    verify_words = _verify_words(file, lines)
    lines = lines if shard is None else _shard(lines, shard)
    batch = BatchRun(Results(results or file.with_name(f"{file.name}.jsonl")), verify_words if verify else {}, quiet)
    batch.run(lines, done_by)
    if not quiet:
        message(batch.summary)
    if failed := batch.failed:
        rows = ((line.number, shlex.join(line.shown), "; ".join(record.errors)) for line, record in failed)
        show(table({"line": RIGHT, "model": FOLD, "why": FOLD}, rows))
        raise typer.Exit(1)


def _doing(dask: str | None, jobs: int, quiet: bool) -> "Doing":
    from clipgguf.cli.batch_run import done_here
    from clipgguf.sources.given import has_package

    if dask is None:
        return done_here(jobs)
    if not has_package("distributed"):
        raise ClipGGUFError(f"{dask}: is a Dask cluster; `pip install 'clipgguf[dask]'` lets clipgguf convert there")
    from clipgguf.cluster import done_on

    return done_on(dask, (lambda text: None) if quiet else message)


def _shard(lines: Sequence["Line"], shard: str) -> "list[Line]":
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", shard)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise UsageError(f"is {shard!r}, should be I/N with I from 1 to N, as 2/5", "shard")
    return list(lines[int(match[1]) - 1 :: int(match[2])])


def _verify_words(file: Path, lines: Sequence["Line"]) -> "dict[Line, list[str]]":
    """Return for each line what ``verify`` takes after the file; ClipGGUFError with all that is wrong usage."""
    typed = typer.Typer(add_completion=False)
    typed.command(context_settings={"help_option_names": []})(convert_command)
    command, words, problems = typer.main.get_command(typed), {}, []
    for line in lines:
        try:
            given = command.make_context("convert", list(line.arguments)).params
            Options(**{option.name: given[option.name] for option in fields(Options) if given[option.name] is not None})
        except _WrongUsage as e:
            problems.append(f"{file}: line {line.number}: {e.format_message()}")
        except UsageError as e:
            problems.append(f"{file}: line {line.number}: {usage_text(e)}")
        else:
            if given["dry_run"]:
                problems.append(f"{file}: line {line.number}: --dry-run makes no file")
            words[line] = _options_of(given)
    ClipGGUFError.raise_all(problems)
    return words


def _options_of(given: dict[str, Any]) -> list[str]:
    """Return a conversion's options, as far as a comparison has them, and then its model."""
    words = []
    for option in fields(Options):
        value = given[option.name]
        if not option.metadata["told"] and value not in (None, False):
            words += [f"--{option.name.replace('_', '-')}"]
            words += [] if value is True else map(str, value) if isinstance(value, tuple) else [str(value)]
    if given["threads"] is not None:
        words += ["--threads", str(given["threads"])]
    return [*words, "--", str(given["model_dir"] or given["model_dir_option"])]
