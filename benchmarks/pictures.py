"""The pictures of the README, drawn with matplotlib: memory over time, and time by the checkpoint's size."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from benchmarks.figures import Figures, ProgramFigures, RowFigures
from benchmarks.rows import MIB

# Colour, marker and line of a program, the same in both pictures: Okabe and Ito's colours, which can be told apart by
# everybody; the markers and lines can, too, without colour.
STYLES = {
    "clipgguf": ("#0072B2", "o", "-"),
    "torch reference, f16": ("#D55E00", "s", "-"),
    "cat + cp": ("#777777", "^", ":"),
    "cat + cp + sync": ("#333333", "v", "--"),
}
# Any, because the stubs of matplotlib's releases differ on the keys.
SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",  # Text stays text: a fifth of the size, and it can be searched.
    "svg.hashsalt": "clipgguf",  # The same figures give the same file.
    "axes.grid": True,
    **{"axes.spines.top": False, "axes.spines.right": False, "grid.color": "#dddddd"},
    **{"axes.titlelocation": "left", "axes.titlesize": 11, "axes.titleweight": "bold"},
}


def draw(figures: Figures, directory: Path) -> list[Path]:
    """Draw memory.svg and time.svg, as far as rows that they show were measured; return the paths."""
    rows = [row for row in figures.rows if row.error is None]
    watched = [row for row in rows if row.programs[0].memory]
    sizes = [row for row in rows if "time" in row.pictures]
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    with mpl.rc_context(SETTINGS):
        if watched:
            paths.append(_save(_memory(watched[0]), figures, "one run of each", directory / "memory.svg"))
        if sizes:
            how = f"medians of {min(len(row.programs[0].seconds) for row in sizes)} or more runs, and their range"
            paths.append(_save(_time(sizes), figures, how, directory / "time.svg"))
    return paths


def _figure(title: str, x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8, 4.6))
    axes = figure.add_axes((0.095, 0.225, 0.885, 0.685))
    axes.set(title=title, xlabel=x, ylabel=y)
    return figure, axes


def _memory(row: RowFigures) -> Figure:
    title = f"Resident memory during a conversion: {row.row}"
    figure, axes = _figure(title, "time since the program's start, in seconds", "resident memory in MiB (logarithmic)")
    watched = [program for program in row.programs if program.memory]
    longest = max(program.memory[-1][0] for program in watched)
    highest = max(resident for program in watched for _, resident in program.memory) / MIB
    for program in watched:
        color, marker, _ = STYLES[program.program]
        seconds = [second for second, _ in program.memory]
        memory = [resident / MIB for _, resident in program.memory]
        axes.plot(seconds, memory, color=color)
        axes.plot(seconds[-1], memory[-1], color=color, marker=marker)
        text = f"{program.program}: {seconds[-1]:.1f} s, at most {max(memory):,.0f} MiB"
        peak = seconds[memory.index(max(memory))]
        # A name stands above its curve's peak, and ends inside the picture.
        x, side = (longest, "right") if peak > longest / 2 else (peak, "left")
        axes.annotate(text, (x, max(memory)), (0, 7), textcoords="offset points", color=color, ha=side)
    axes.set(yscale="log", ylim=(5, highest * 2.5), xlim=(0, longest * 1.03))
    _plain_numbers(axes.yaxis, (1.0, 3.0))
    return figure


def _time(rows: Sequence[RowFigures]) -> Figure:
    title = "Time by the checkpoint's size, f32 to f16"
    figure, axes = _figure(title, "checkpoint in GB (logarithmic)", "time in seconds (logarithmic)")
    rows = sorted(rows, key=lambda row: row.programs[0].input_bytes)
    curves: dict[str, list[ProgramFigures]] = {}
    for program in (program for row in rows for program in row.programs if program.seconds):
        curves.setdefault(program.program, []).append(program)
    # The legend names them as they stand above each other.
    for label, points in sorted(curves.items(), key=lambda curve: -curve[1][-1].median):
        color, marker, line = STYLES[label]
        sizes = [point.input_bytes / 1e9 for point in points]
        axes.plot(sizes, [p.median for p in points], color=color, marker=marker, linestyle=line, label=label)
        axes.vlines(
            sizes, [min(p.seconds) for p in points], [max(p.seconds) for p in points], color=color, linewidth=0.8
        )
    every = [second for points in curves.values() for point in points for second in point.seconds]
    for first in (row.programs[0] for row in rows):
        gigabytes = first.input_bytes / 1e9
        place = {"transform": axes.get_xaxis_transform(), "ha": "center", "va": "top"}
        axes.text(gigabytes, 0.99, f"{first.model}\n{gigabytes:.1f} GB", place, fontsize=8.5)
    smallest, largest = (row.programs[0].input_bytes / 1e9 for row in (rows[0], rows[-1]))
    axes.set(xscale="log", xlim=(smallest / 1.35, largest * 1.35))
    axes.set(yscale="log", ylim=(min(every) / 1.5, max(every) * 4))
    _plain_numbers(axes.xaxis, (1.0, 2.0, 5.0))
    _plain_numbers(axes.yaxis, (1.0, 2.0, 5.0))
    axes.legend(loc="lower right", frameon=False)
    return figure


def _plain_numbers(axis: Any, ticks: Sequence[float]) -> None:
    axis.set_major_locator(LogLocator(base=10, subs=ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))


def _save(figure: Figure, figures: Figures, how: str, path: Path) -> Path:
    machine = ", ".join(f"{name} {value}" for name, value in figures.machine.items())
    caption = textwrap.fill(f"{machine}, {figures.torch or 'no torch'}; {how}; random weights.", 130)
    figure.text(0.012, 0.02, caption, fontsize=7.5, color="#555555", va="bottom")
    figure.savefig(path, metadata={"Date": None})
    return path
