"""What a benchmark found: as JSON with stable keys, and as a table in Markdown."""

import importlib.metadata
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from benchmarks.contenders import OURS
from benchmarks.measure import Result, digests

# Grows when a key of the JSON changes its meaning or goes.
SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Work:
    """What was converted: sizes in bytes, of the shards and of the output."""

    model: str
    dtype: str
    outtype: str
    shards: int
    bytes_in: int
    bytes_out: int


@dataclass(frozen=True, slots=True)
class Report:
    """One benchmark. ``resting_rss`` is the least peak memory that can be measured, in bytes."""

    work: Work
    results: Mapping[str, Result]
    resting_rss: int | None
    reference: Mapping[str, str] | None
    """Versions of what the reference runs on; None when it was skipped."""
    reference_skipped: str | None
    """Why it was skipped."""

    @property
    def ratios(self) -> dict[str, float]:
        """The median wall time of our conversion to that of each other contender: {"clipgguf/floor": 1.2, ...}."""
        ours = self.results[OURS].median
        return {f"{OURS}/{key}": ours / result.median for key, result in self.results.items() if key != OURS}

    @property
    def identical(self) -> bool:
        """Whether the outputs of all runs, the floor's copies included, are the same bytes where they should be.

        Quantized outputs are ours and the floor's; the reference writes f16 beside them.
        """
        return all(len(found) == 1 for found in digests(self.results).values())

    def as_json(self) -> dict[str, Any]:
        """Return the report as JSON's types: times in seconds, sizes in bytes."""
        work = self.work
        return {
            "schema": SCHEMA,
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "machine": machine(),
            "versions": {**versions(), "reference": None if self.reference is None else dict(self.reference)},
            "work": {
                "model": work.model,
                "dtype": work.dtype,
                "outtype": work.outtype,
                "shards": work.shards,
                "bytes_in": work.bytes_in,
                "bytes_out": work.bytes_out,
            },
            "results": {key: result_as_json(result) for key, result in self.results.items()},
            "reference_skipped": self.reference_skipped,
            "ratios": self.ratios,
            "identical": self.identical,
            "resting_rss_bytes": self.resting_rss,
        }

    def as_text(self) -> str:
        """Return the report for people: the table, and what must be known to read it."""
        work = self.work
        runs = len(self.results[OURS].runs)
        lines = [
            f"{work.model}, {work.dtype} to {work.outtype}: {_megabytes(work.bytes_in)} in "
            f"({count(work.shards, 'shard')}), {_megabytes(work.bytes_out)} out; {count(runs, 'alternating run')}",
            "",
            *self._table(),
            "",
        ]
        if self.reference_skipped is not None:
            lines.append(f"The torch reference was skipped: {self.reference_skipped}")
        if self.identical:
            found = digests(self.results)
            for content, values in found.items():
                which = "outputs" if len(found) == 1 else f"outputs of {content}"
                lines.append(f"All {which} are identical: SHA-256 {values[0]}")
        else:
            lines.append("OUTPUTS DIFFER:")
            lines += [f"  {r.contender.label}: {', '.join(sorted(r.sha256))}" for r in self.results.values()]
        if self.resting_rss is not None:
            lines.append(f"The least peak RSS that can be measured is {mebibytes(self.resting_rss)}.")
        lines.append(", ".join(f"{key} {value}" for key, value in machine().items()))
        return "\n".join(lines)

    def _table(self) -> list[str]:
        others = [key for key in self.results if key != OURS]
        heading = [
            "",
            "median",
            "min - max",
            "peak RSS",
            *(f"to {self.results[key].contender.label}" for key in others),
        ]
        rows = [
            [
                result.contender.label,
                f"{result.median:.2f} s",
                f"{min(result.seconds):.2f} - {max(result.seconds):.2f} s",
                "not known" if result.peak_rss is None else mebibytes(result.peak_rss),
                *(f"{result.median / self.results[key].median:.2f}" for key in others),
            ]
            for result in self.results.values()
        ]
        return markdown_table(heading, rows)


def markdown_table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(heading, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        first, *others = zip(cells, widths, strict=True)
        return "| " + " | ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]) + " |"

    rule = "|" + "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])]) + "|"
    return [line(heading), rule, *map(line, rows)]


def machine() -> dict[str, str | int]:
    """Return what the figures depend on: processor, cores, Python, numpy, system."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {
        "cpu": _cpu(),
        "cores": cores,
        "python": platform.python_version(),
        "numpy": importlib.metadata.version("numpy"),
        "platform": platform.platform(),
    }


def _cpu() -> str:
    cpuinfo = Path("/proc/cpuinfo")  # Linux only, where platform.processor() is mostly empty.
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Return the releases of what converts."""
    return {name: importlib.metadata.version(name) for name in ("clipgguf", "gguf", "safetensors")}


def result_as_json(result: Result) -> dict[str, Any]:
    """Return a contender's figures as JSON's types: times in seconds, sizes in bytes."""
    return {
        "label": result.contender.label,
        "wall_seconds": {
            "median": result.median,
            "min": min(result.seconds),
            "max": max(result.seconds),
            "all": list(result.seconds),
        },
        "peak_rss_bytes": result.peak_rss,
        "peak_rss_bytes_all": [run.peak_rss for run in result.runs],
        "sha256": sorted(result.sha256),
    }


def count(number: int, noun: str) -> str:
    """Return a number of things for people."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _megabytes(nbytes: int) -> str:
    return f"{nbytes / 1e6:,.0f} MB"


def mebibytes(nbytes: int) -> str:
    """Return a size in memory for people: powers of two."""
    return f"{nbytes / 2**20:,.1f} MiB"
