"""What was measured, whether the limits are met, and the table in Markdown. As a dict, it is the JSON of --json."""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from benchmarks.rows import MIB, Row

COLUMNS = ("row", "program", "median", "fastest to slowest", "peak memory", "ratio", "limit", "")


@dataclass(slots=True)
class ProgramFigures:
    """One program of a row: times in seconds, sizes in bytes.

    ``peak_bytes`` is the greatest of all runs, None where the system does not tell. ``ratio`` is the time of the row's
    first program divided by this one's. ``at_most`` is the limit, of the first program on its peak, of the others on
    the ratio; ``met`` is None without a limit or a measurement, and ``not_run`` says why there is none. ``memory`` has
    pairs of seconds and resident bytes, where it was watched.
    """

    program: str
    model: str
    at_most: float | None
    input_bytes: int = 0
    output_bytes: int = 0
    sha256: str = ""
    seconds: list[float] = field(default_factory=list)
    peak_bytes: int | None = None
    ratio: float | None = None
    met: bool | None = None
    not_run: str | None = None
    memory: list[tuple[float, int]] = field(default_factory=list)

    @property
    def median(self) -> float:
        """The median of its times."""
        return statistics.median(self.seconds)


@dataclass(slots=True)
class RowFigures:
    """A row's programs, the first of them ours, and the pictures that show it; ``error`` says what failed."""

    row: str
    pictures: tuple[str, ...]
    programs: list[ProgramFigures]
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Figures:
    """All that one run of the benchmarks measured, and what it depends on; ``torch`` is "" without the reference."""

    date: str
    quick: bool
    machine: dict[str, str]
    torch: str
    rows: list[RowFigures]


def unmeasured(row: Row) -> RowFigures:
    """Return a row's figures before anything was measured."""
    named = ((entry, entry.checkpoint.name if entry.checkpoint else "") for entry in row.entries)
    programs = [ProgramFigures(entry.program.label, name, entry.at_most) for entry, name in named]
    return RowFigures(row.name, row.pictures, programs)


def judge(programs: Sequence[ProgramFigures], *, per_gb: bool) -> None:
    """Fill in the ratios of a row's programs, and whether they meet their limits."""
    first, *others = programs
    for other in others:
        if other.seconds:
            other.ratio = first.median / other.median
            if per_gb:
                other.ratio *= other.input_bytes / first.input_bytes
    for program in programs:
        value = first.peak_bytes if program is first else program.ratio
        if value is not None and program.at_most is not None:
            program.met = value <= program.at_most


def as_text(figures: Figures) -> str:
    """Return the table, and what must be known to read it."""
    lines = [
        *table(figures.rows),
        "",
        "All programs of a row run in turn, on random weights. The ratio is clipgguf's median time divided by this "
        "program's. The limit is on the ratio, or on clipgguf's own peak memory. Peaks under 9 MiB cannot be measured.",
    ]
    if figures.quick:
        lines.append("These are tiny models that run once: the figures say nothing, and there are no limits.")
    reasons = dict.fromkeys(program.not_run for row in figures.rows for program in row.programs if program.not_run)
    lines += [f"Not run: {reason}" for reason in reasons]
    about = [*(f"{name} {value}" for name, value in figures.machine.items()), figures.torch or "no torch"]
    lines.append(", ".join(about))
    return "\n".join([*lines, *(f"FAILED: {row.row}: {row.error}" for row in figures.rows if row.error)])


def table(rows: Sequence[RowFigures], columns: Sequence[str] = COLUMNS) -> list[str]:
    """Return the lines of a Markdown table of rows: two columns of text to the left, figures to the right."""
    found = [COLUMNS, *(cells for row in rows for cells in _cells(row))]
    chosen = [[cells[COLUMNS.index(column)] for column in columns] for cells in found]
    widths = [max(map(len, column)) for column in zip(*chosen, strict=True)]
    formats = [f" {{:{'<' if n < 2 else '>'}{width}}} " for n, width in enumerate(widths)]
    lines = ["|".join(["", *formats, ""]).format(*cells) for cells in chosen]
    rule = ["-" * (width + 2) if n < 2 else "-" * (width + 1) + ":" for n, width in enumerate(widths)]
    return [lines[0], "|".join(["", *rule, ""]), *lines[1:]]


def _cells(row: RowFigures) -> Iterator[tuple[str, ...]]:
    first = row.programs[0]
    for program in row.programs:
        limit = _mebibytes(program.at_most)
        if program is not first:
            limit = "" if program.at_most is None else f"{program.at_most:.2f}"
        yield (
            row.row if program is first else "",
            program.program if program.model == first.model else f"{program.program}, {program.model}",
            *_times(program),
            _mebibytes(program.peak_bytes),
            "" if program.ratio is None else f"{program.ratio:.3f}",
            limit,
            {True: "met", False: "**missed**", None: "not run" if program.not_run else ""}[program.met],
        )


def _times(program: ProgramFigures) -> tuple[str, str]:
    if not program.seconds:
        return "", ""
    times = (program.median, min(program.seconds), max(program.seconds))
    median, least, most = (f"{seconds:.{2 if seconds >= 1 else 3}f}" for seconds in times)
    return f"{median} s", f"{least} to {most} s"


def _mebibytes(nbytes: float | None) -> str:
    return "" if nbytes is None else f"{nbytes / MIB:,.1f} MiB"
