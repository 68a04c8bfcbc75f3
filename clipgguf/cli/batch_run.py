"""A run of ``clipgguf batch``: tasks are done here or on a cluster, and their results recorded and shown."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from clipgguf.batches import Doing, Heard, Line, Outcome, Record, Results, Task
from clipgguf.children import Children
from clipgguf.cli.output import message, size
from clipgguf.workers import Workers


def done_here(jobs: int) -> Doing:
    """Return how tasks are done in processes of this machine, so many at a time, each heard by a thread."""

    @contextmanager
    def doing(tasks: Sequence[Task], heard: Heard) -> Iterator[Iterator[Outcome]]:
        with Workers(jobs, "batch") as workers, Children() as children:
            running = [workers.submit(task.outcome, children, heard) for task in tasks]
            yield (future.result() for future in as_completed(running))

    return doing


class BatchRun:
    """A run over lines of a list."""

    def __init__(self, results: Results, verify_words: Mapping[Line, Sequence[str]], quiet: bool) -> None:
        """Take where results go, and for lines that are verified when they are done what ``verify`` takes."""
        self.results, self.verify_words, self.quiet = results, verify_words, quiet
        # What became of each line, and which were done before.
        self.records: dict[Line, Record] = {}
        self.kept: set[Line] = set()
        self._lines_of: dict[Path, Line] = {}

    @property
    def failed(self) -> list[tuple[Line, Record]]:
        """The lines that failed, in their order."""
        failed = ((line, record) for line, record in self.records.items() if record.exit_code)
        return sorted(failed, key=lambda pair: pair[0].number)

    @property
    def summary(self) -> str:
        """How many there are of each kind."""
        failed = len(self.failed)
        kept = sum(not self.records[line].exit_code for line in self.kept)
        done = len(self.records) - failed - kept
        return f"{len(self.records):,} models: {done:,} done, {kept:,} done before, {failed:,} failed"

    def run(self, lines: Sequence[Line], done_by: Doing) -> None:
        """Convert the models of lines."""
        tasks = [Task(line, self.results.done(line), self.verify_words.get(line)) for line in lines]
        with done_by(tasks, self._say) as outcomes:
            for number, outcome in enumerate(outcomes, 1):
                line, record = outcome.line, outcome.record
                self.records[line] = record
                if outcome.is_new:
                    self.results.add(record)
                elif not record.exit_code:
                    self.kept.add(line)
                self._show(outcome, f"{number:,} of {len(lines):,}")
                if record.path is not None:
                    self._refuse_one_file_of_two(line, Path(record.path).absolute())

    def _refuse_one_file_of_two(self, line: Line, path: Path) -> None:
        """Have lines failed that have the same file: it is that of one of them."""
        other = self._lines_of.setdefault(path, line)
        for one, another in ((line, other), (other, line)) if other is not line else ():
            why = (
                f"line {another.number} has the same file, {path}; -o 'DIR/{{name}}-{{outtype}}.gguf' keeps them apart"
            )
            self.records[one] = replace(self.records[one], exit_code=1, errors=(why,), result=None, bytes=None)
            self.results.add(self.records[one])

    def _show(self, outcome: Outcome, count: str) -> None:
        record = outcome.record
        if record.exit_code:
            said = f"failed after {record.seconds:.1f} s"
        elif not outcome.is_new:
            said = f"was done before: {record.path}"
        else:
            what = "agrees with its checkpoint" if record.verified else size(record.bytes or 0)
            said = f"{what}, {record.seconds:.1f} s: {record.path}"
        self._say(outcome.line.number, f"{said} ({count})")

    def _say(self, number: int, text: str) -> None:
        if not self.quiet:
            message(f"line {number}: {text}")
