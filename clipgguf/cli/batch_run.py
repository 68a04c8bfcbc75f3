"""A run of ``clipgguf batch``: threads start processes and hear them, the caller's takes results and shows them."""

import shlex
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import as_completed
from dataclasses import replace
from pathlib import Path

from clipgguf.batches import Children, Ended, Line, Record, Results
from clipgguf.cli.output import message, size
from clipgguf.workers import Workers


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

    def run(self, lines: Sequence[Line], jobs: int) -> None:
        """Convert the models of lines, so many at a time."""
        with Workers(jobs, "batch") as workers, Children() as children:
            running = {workers.submit(self._outcome, line, children): line for line in lines}
            for number, future in enumerate(as_completed(running), 1):
                line = running[future]
                record, is_new = future.result()
                self.records[line] = record
                if is_new:
                    self.results.add(record)
                elif not record.exit_code:
                    self.kept.add(line)
                self._show(line, record, f"{number:,} of {len(lines):,}", is_new=is_new)
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

    def _show(self, line: Line, record: Record, count: str, *, is_new: bool) -> None:
        if record.exit_code:
            said = f"failed after {record.seconds:.1f} s"
        elif not is_new:
            said = f"was done before: {record.path}"
        else:
            what = "agrees with its checkpoint" if record.verified else size(record.bytes or 0)
            said = f"{what}, {record.seconds:.1f} s: {record.path}"
        self._say(line, f"{said} ({count})")

    def _outcome(self, line: Line, children: Children) -> tuple[Record, bool]:
        """Return what becomes of a line, and whether that is to be recorded; runs in any thread."""
        started = time.monotonic()

        def failed(ended: Ended) -> Record:
            errors = ended.errors or ("gave no result",)
            return Record(line.shown, ended.exit_code or 1, time.monotonic() - started, errors)

        if (done := self.results.done(line)) is not None:
            ended = self._asked_again(line, done, children)
            if ended is not None and ended.exit_code:
                return failed(ended), False
            if ended is None or (ended.result or {}).get("commit") == done.commit:
                if line not in self.verify_words:
                    return done, False
                ended = self._run(line, children, "verify", "--json", str(done.path), *self.verify_words[line])
                if ended.exit_code:  # Without a result it could not be compared, and may be right.
                    return failed(ended), ended.result is not None
                return replace(done, seconds=time.monotonic() - started, verified=True), True
        ended = self._run(line, children, "convert", "--json", *line.arguments)
        if ended.exit_code or (result := ended.result) is None:
            return failed(ended), True
        nbytes = Path(result["path"]).stat().st_size
        return Record(line.shown, 0, time.monotonic() - started, (), result, nbytes), True

    def _asked_again(self, line: Line, done: Record, children: Children) -> Ended | None:
        """Return what a conversion would make now of what is done; None where that cannot be another commit."""
        if done.commit is None or any(done.commit in argument for argument in line.arguments):
            return None
        return children.run(["convert", "--dry-run", "--json", *line.arguments], lambda text: None)

    def _run(self, line: Line, children: Children, *arguments: str) -> Ended:
        self._say(line, shlex.join(Line(line.number, arguments).shown))
        return children.run(arguments, lambda text: self._say(line, text))

    def _say(self, line: Line, text: str) -> None:
        if not self.quiet:
            message(f"line {line.number}: {text}")
