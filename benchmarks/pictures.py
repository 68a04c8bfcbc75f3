"""The pictures of the README, drawn with matplotlib: memory over time, and time against the checkpoint's size."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from benchmarks.memory_trace import Trace
from benchmarks.report import count
from benchmarks.survey import Growth, Survey

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Style:
    """How a program is drawn, the same in both pictures."""

    color: str
    marker: str
    line: str


# Okabe and Ito's colours, which can be told apart by everybody; the markers and lines can, too, without colour.
STYLES = {
    "clipgguf": Style("#0072B2", "o", "-"),
    "reference": Style("#D55E00", "s", "-"),
    "floor": Style("#777777", "^", ":"),
    "floor-flushed": Style("#333333", "v", "--"),
}
# Any, because the stubs of matplotlib's releases differ on the keys.
SETTINGS: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 10,
    "svg.fonttype": "none",  # Text stays text: a fifth of the size, and it can be searched.
    "svg.hashsalt": "clipgguf",  # The same figures give the same file.
    "axes.spines.top": False,
    "axes.spines.right": False,
}
CAPTION_WIDTH = 130


def draw(survey: Survey, directory: Path, file_format: str = "svg") -> list[Path]:
    """Draw what a survey has figures for, as memory.FORMAT and time.FORMAT; return the paths.

    The background is white and opaque, so that the pictures can be read on a dark page too.
    """
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    with mpl.rc_context(SETTINGS):
        if survey.traces:
            figure = _memory(survey.traces, survey.traced)
            paths.append(_save(figure, survey, directory / f"memory.{file_format}"))
        if survey.growth:
            figure = _time(survey.growth)
            paths.append(_save(figure, survey, directory / f"time.{file_format}"))
    return paths


def _figure(title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8, 4.6), facecolor="white")
    axes = figure.add_axes((0.095, 0.225, 0.885, 0.685))
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.grid(which="major", color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    return figure, axes


def _memory(traces: Sequence[Trace], model: str) -> Figure:
    figure, axes = _figure(f"Resident memory while {model} is converted, f32 to f16")
    longest = max(trace.seconds[-1] for trace in traces)
    for trace in traces:
        style = STYLES[trace.key]
        memory = [resident / MIB for resident in trace.resident]
        axes.plot(trace.seconds, memory, color=style.color, linewidth=1.6)
        axes.plot(trace.seconds[-1], memory[-1], color=style.color, marker=style.marker)
        text = f"{trace.label}: {trace.seconds[-1]:.1f} s, at most {max(memory):,.0f} MiB"
        peak = trace.seconds[memory.index(max(memory))]
        # A name stands above its curve's peak, and ends inside the picture.
        x, side = (longest, "right") if peak > longest / 2 else (peak, "left")
        axes.annotate(text, (x, max(memory)), (0, 7), textcoords="offset points", color=style.color, ha=side)
    top = max(max(trace.resident) for trace in traces) / MIB
    axes.set_yscale("log")
    axes.set_ylim(5, top * 2.5)
    axes.set_xlim(0, longest * 1.03)
    axes.set_xlabel("time since the program's start, in seconds")
    axes.set_ylabel("resident memory in MiB (logarithmic)")
    axes.yaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 3.0)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    return figure


def _time(growth: Sequence[Growth]) -> Figure:
    figure, axes = _figure("Time by the checkpoint's size, f32 to f16")
    # The legend names them as they stand above each other.
    for curve in sorted(growth, key=lambda curve: -curve.median[-1]):
        style = STYLES[curve.key]
        sizes = [nbytes / 1e9 for nbytes in curve.nbytes]
        below = [median - least for median, least in zip(curve.median, curve.least, strict=True)]
        above = [greatest - median for median, greatest in zip(curve.median, curve.greatest, strict=True)]
        axes.errorbar(
            sizes,
            curve.median,
            yerr=(below, above),
            color=style.color,
            marker=style.marker,
            linestyle=style.line,
            linewidth=1.6,
            elinewidth=0.8,
            capsize=2,
            label=curve.label,
        )
    every = growth[0]
    top = max(max(curve.greatest) for curve in growth)
    for model, nbytes in zip(every.models, every.nbytes, strict=True):
        axes.annotate(
            f"{model}\n{nbytes / 1e9:.1f} GB",
            (nbytes / 1e9, top * 1.25),
            ha="center",
            va="bottom",
            fontsize=8.5,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(min(every.nbytes) / 1e9 / 1.35, max(every.nbytes) / 1e9 * 1.35)
    axes.set_ylim(min(min(curve.least) for curve in growth) / 1.5, top * 2.4)
    axes.set_xlabel("checkpoint in GB (logarithmic)")
    axes.set_ylabel("time in seconds (logarithmic)")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.legend(loc="lower right", frameon=False)
    return figure


def _save(figure: Figure, survey: Survey, path: Path) -> Path:
    figure.text(0.012, 0.02, _caption(survey, path.stem), fontsize=7.5, color="#555555", va="bottom")
    metadata = {"Date": None} if path.suffix == ".svg" else None
    figure.savefig(path, dpi=150, metadata=metadata)
    return path


def _caption(survey: Survey, picture: str) -> str:
    machine = survey.machine
    reference = survey.reference or {}
    parts = [
        f"{machine['cpu']}, {machine['cores']} cores",
        f"{machine['platform']}",
        f"Python {machine['python']}",
        f"numpy {machine['numpy']}",
        *(f"{name} {reference[name]}" for name in ("torch", "transformers") if name in reference),
    ]
    how = {
        "memory": f"the run of median length of {count(survey.runs, 'alternating run')}",
        "time": f"medians of {count(survey.runs, 'alternating run')}, bars from the quickest to the slowest",
    }
    return textwrap.fill(f"{', '.join(parts)}; {how[picture]}; random weights.", CAPTION_WIDTH)
