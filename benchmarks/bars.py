"""The bars: what each kind of work may cost at most, as a table, and whether a measurement meets it."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from benchmarks.contenders import REFERENCE, say_run
from benchmarks.measure import BenchmarkError, Result, alternate, digests, resting_memory
from benchmarks.model_dirs import make_all, say
from benchmarks.report import machine, markdown_table, mebibytes, result_as_json, versions
from benchmarks.sessions import IMPORT, LARGER, MANY, ONE, SESSIONS, SMALLER, VERSION, Setting
from benchmarks.tensor_count import SMALL

# Grows when a key of the JSON changes its meaning or goes.
SCHEMA = 1
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Bar:
    """The median wall time of one contender to that of another in the same session, ``at_most`` so much.

    ``work`` is what --only chooses it by; ``title`` may name {base}, {large} and {tensors}. With ``per_byte`` both
    times are divided by the bytes that the contender reads. Without ``at_most`` the ratio is shown, and is no bar.
    """

    work: str
    title: str
    session: str
    subject: str
    against: str
    at_most: float | None
    per_byte: bool = False


@dataclass(frozen=True, slots=True)
class MemoryBar:
    """The greatest peak of resident memory, in bytes, of some contenders, as (session, key)."""

    title: str
    subjects: tuple[tuple[str, str], ...]
    at_most: int | None


BARS = (
    Bar("f32-f16", "{base}, f32 to f16", "base-f32", "clipgguf-f16", REFERENCE, 0.20),
    Bar("f32-f16", "{base}, f32 to f16", "base-f32", "clipgguf-f16", "floor", 1.25),
    Bar("f32-f16", "{base}, f32 to f16", "base-f32", "clipgguf-f16", "floor-flushed", None),
    Bar("bf16-f16", "{base}, bf16 to f16", "base-bf16", "clipgguf-f16", "floor", 1.25),
    Bar("bf16-f16", "{base}, bf16 to f16", "base-bf16", "clipgguf-f16", "floor-flushed", None),
    Bar("q8_0", "{base}, f32 to q8_0", "base-f32", "clipgguf-q8_0", REFERENCE, 1.0),
    Bar("q4_0", "{base}, f32 to q4_0", "base-f32", "clipgguf-q4_0", REFERENCE, 1.0),
    Bar("large-f16-f16", "{large}, f16 to f16", "large-f16", "clipgguf-f16", "copy", 1.10),
    Bar("large-f16-f16", "{large}, f16 to f16", "large-f16", "clipgguf-f16", "copy-flushed", None),
    Bar("large-f32-f16", "{large}, f32 to f16", "large-f32", "clipgguf-f16", REFERENCE, 0.35),
    Bar("large-f32-f16", "{large}, f32 to f16", "large-f32", "clipgguf-f16", "floor", None),
    Bar("large-f32-f16", "{large}, f32 to f16", "large-f32", "clipgguf-f16", "floor-flushed", None),
    Bar("start-up", "start-up, --version", "start-up", VERSION, IMPORT, 1.5),
    Bar("sizes", "{large}, f32 to f16, seconds per GB", "sizes", LARGER, SMALLER, 1.3, per_byte=True),
    Bar("tensors", "{tensors} tensors of 40 kB, f32 to f16", "tensors", MANY, ONE, 2.0),
)
MEMORY_BARS = (
    MemoryBar("peak memory, {large}, f32 to f16", (("large-f32", "clipgguf-f16"),), 64 * MIB),
    MemoryBar(
        "peak memory, any to f16",
        tuple((name, "clipgguf-f16") for name in ("base-f32", "base-bf16", "large-f16", "large-f32")),
        64 * MIB,
    ),
    MemoryBar("peak memory, quantized", (("base-f32", "clipgguf-q8_0"), ("base-f32", "clipgguf-q4_0")), 96 * MIB),
    MemoryBar("peak memory, {tensors} tensors", (("tensors", MANY),), None),
)
WORKS = tuple(dict.fromkeys(bar.work for bar in BARS))

Results = Mapping[str, Mapping[str, Result]]


@dataclass(frozen=True, slots=True)
class Verdict:
    """A bar and what was measured: ``value`` in ``unit``; None where it was not measured, and then ``why`` not."""

    title: str
    ours: str
    other: str
    value: float | None
    at_most: float | None
    unit: str
    why: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the bar is met; None where there is no bar or no measurement."""
        return None if self.value is None or self.at_most is None else self.value <= self.at_most

    @property
    def cells(self) -> list[str]:
        """The row of the table."""
        if self.value is None:
            said = f"not measured: {self.why}"
        else:
            said = {True: "met", False: "**missed**", None: ""}[self.met]
        return [self.title, self.ours, self.other, self._text(self.value), self._text(self.at_most), said]

    def _text(self, value: float | None) -> str:
        if value is None:
            return ""
        return f"{value:.1f} {self.unit}" if self.unit else f"{value:.3f}"


@dataclass(frozen=True, slots=True)
class BarsReport:
    """All that was measured for the bars of some works."""

    setting: Setting
    results: Results
    verdicts: tuple[Verdict, ...]
    failures: tuple[str, ...]
    resting_rss: int | None
    reference: Mapping[str, str] | None
    reference_skipped: str | None

    @property
    def all_met(self) -> bool:
        """Whether every bar was measured and is met."""
        return all(verdict.met for verdict in self.verdicts if verdict.at_most is not None)

    def as_text(self) -> str:
        """Return the table in Markdown, and what must be known to read it."""
        setting = self.setting
        lines = [
            *markdown_table(
                ["work", "clipgguf", "against", "ratio or peak", "at most", ""], [v.cells for v in self.verdicts]
            ),
            "",
            f"Medians of alternating runs, random weights: {setting.base} and {setting.large}; "
            f"{setting.tensors:,} tensors of {SMALL} in f32 against one of the same bytes. "
            "Rows without a bar are there to compare. Seconds per GB include the start-up.",
        ]
        if self.reference_skipped is not None:
            lines.append(f"The torch reference was skipped: {self.reference_skipped}")
        if self.resting_rss is not None:
            lines.append(f"The least peak that can be measured is {mebibytes(self.resting_rss)}.")
        lines.append(", ".join(f"{key} {value}" for key, value in machine().items()))
        return "\n".join([*lines, *(f"FAILED: {failure}" for failure in self.failures)])

    def as_json(self) -> dict[str, Any]:
        """Return the report as JSON's types: times in seconds, sizes in bytes."""
        return {
            "schema": SCHEMA,
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "machine": machine(),
            "versions": {**versions(), "reference": None if self.reference is None else dict(self.reference)},
            "base": self.setting.base,
            "large": self.setting.large,
            "tensors": self.setting.tensors,
            "bars": [
                {
                    "work": v.title,
                    "against": v.other,
                    "value": v.value,
                    "at_most": v.at_most,
                    "unit": v.unit or "ratio",
                    "met": v.met,
                    "not_measured": v.why or None,
                }
                for v in self.verdicts
            ],
            "sessions": {
                name: {key: result_as_json(result) for key, result in results.items()}
                for name, results in self.results.items()
            },
            "reference_skipped": self.reference_skipped,
            "failures": list(self.failures),
            "resting_rss_bytes": self.resting_rss,
        }


def measure_bars(
    setting: Setting, works: Sequence[str], reference: Mapping[str, str] | None, reference_skipped: str | None
) -> BarsReport:
    """Hold the sessions that some works need, and return what came of it.

    A session that fails costs its own rows only. Raises BenchmarkError when there is too little room on the disk.
    """
    bars = [bar for bar in BARS if bar.work in works]
    sessions = {name: session for name, session in SESSIONS.items() if any(bar.session == name for bar in bars)}
    small = 2 * setting.tensors * SMALL[0] * SMALL[1] * 4 if "tensors" in sessions else 0
    models = [setting.model(*model) for session in sessions.values() for model in session.models]
    make_all(setting.work_dir, models, extra=2 * small)
    results: dict[str, dict[str, Result]] = {}
    failures: list[str] = []
    for name, session in sessions.items():
        keys = {key for bar in bars if bar.session == name for key in (bar.subject, bar.against)}
        say(f"session {name}")
        try:
            contenders = [contender for contender in session.contenders(setting) if contender.key in keys]
            found = alternate(contenders, session.number_of_runs(setting), say_run)
            _check_outputs(found)
        except BenchmarkError as e:
            say(f"error: {e}")
            failures.append(f"{name}: {e}")
        else:
            results[name] = found
        finally:
            shutil.rmtree(setting.outputs, ignore_errors=True)
    return BarsReport(
        setting,
        results,
        judge(setting, works, results, reference_skipped),
        tuple(failures),
        resting_memory(),
        reference,
        reference_skipped,
    )


def _check_outputs(results: Mapping[str, Result]) -> None:
    for content, found in digests(results).items():
        if len(found) > 1:
            raise BenchmarkError(f"the outputs of {content} differ: {', '.join(found)}")


def judge(
    setting: Setting, works: Sequence[str], results: Results, reference_skipped: str | None = None
) -> tuple[Verdict, ...]:
    """Return a verdict on each bar of some works, in the order of the tables."""
    bars = [bar for bar in BARS if bar.work in works]
    verdicts = [_judge_time(bar, setting, results, reference_skipped) for bar in bars]
    subjects = {(bar.session, bar.subject) for bar in bars}
    for memory_bar in MEMORY_BARS:
        if subjects.intersection(memory_bar.subjects):
            verdicts.append(_judge_memory(memory_bar, setting, results))
    return tuple(verdicts)


def _judge_time(bar: Bar, setting: Setting, results: Results, reference_skipped: str | None) -> Verdict:
    title = _title(bar.title, setting)
    found = results.get(bar.session, {})
    subject, against = found.get(bar.subject), found.get(bar.against)
    if subject is None or against is None:
        skipped = bar.against == REFERENCE and reference_skipped is not None
        other = "torch reference" if bar.against == REFERENCE else bar.against
        why = "skipped" if skipped else "failed"
        return Verdict(title, "" if subject is None else _time(subject), other, None, bar.at_most, "", why)
    if not bar.per_byte:
        other = f"{against.contender.label} {_time(against)}"
        return Verdict(title, _time(subject), other, subject.median / against.median, bar.at_most, "")
    mine, theirs = _seconds_per_gb(subject), _seconds_per_gb(against)
    return Verdict(title, f"{mine:.2f} s/GB", f"{setting.base} {theirs:.2f} s/GB", mine / theirs, bar.at_most, "")


def _judge_memory(bar: MemoryBar, setting: Setting, results: Results) -> Verdict:
    found = [results[name][key].peak_rss for name, key in bar.subjects if key in results.get(name, {})]
    peak = max((peak for peak in found if peak is not None), default=None)
    at_most = None if bar.at_most is None else bar.at_most / MIB
    why = "the system does not tell" if found else "failed"
    if peak is None:
        return Verdict(_title(bar.title, setting), "", "", None, at_most, "MiB", why)
    return Verdict(_title(bar.title, setting), "", "", peak / MIB, at_most, "MiB")


def _title(title: str, setting: Setting) -> str:
    return title.format(base=setting.base, large=setting.large, tensors=f"{setting.tensors:,}")


def _time(result: Result) -> str:
    return f"{result.median:.{2 if result.median >= 1 else 3}f} s"


def _seconds_per_gb(result: Result) -> float:
    return result.median / (sum(path.stat().st_size for path in result.contender.inputs) / 1e9)
