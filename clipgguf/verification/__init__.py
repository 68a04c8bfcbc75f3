"""Verify a GGUF file: that it is what a conversion of a checkpoint gives, in every value of every tensor."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from gguf import GGMLQuantizationType

from clipgguf.clip_file import ClipFile
from clipgguf.mending import mended
from clipgguf.options import DEFAULTS, Options, PathLike
from clipgguf.planning import Plan
from clipgguf.sources.given import shown_place
from clipgguf.verification.expected import expected_plan
from clipgguf.verification.metadata import MetadataDifference, compare_metadata
from clipgguf.verification.tensors import Pair, compare_tensors
from clipgguf.verification.values import COMPARABLE, Comparison
from clipgguf.workers import thread_count
from clipgguf.writer import Progress

# Every verdict, the worst first.
Finding = Literal["missing", "unexpected", "wrong shape", "unknown type", "differs", "rounded", "exact"]
FINDINGS: tuple[Finding, ...] = get_args(Finding)


@dataclass(frozen=True, slots=True)
class TensorCheck:
    """What became of one tensor; what does not apply is None.

    ``verdict`` is "exact" (the file has the source's values), "rounded" (it has what rounding them to its type gives),
    "differs", "missing" or "unexpected" in the file, "wrong shape", or "unknown type" (to which clipgguf cannot round).
    ``ggml_type`` and ``shape`` (row-major) are the file's, ``source``, ``source_dtype`` and ``expected_shape`` the
    checkpoint's. ``comparison`` has the counts and errors where values were compared.
    """

    name: str
    verdict: Finding
    ggml_type: str | None = None
    shape: tuple[int, ...] | None = None
    source: str | None = None
    source_dtype: str | None = None
    expected_shape: tuple[int, ...] | None = None
    comparison: Comparison | None = None

    @property
    def is_good(self) -> bool:
        """Whether the file has of this tensor what it should have."""
        return self.verdict in ("exact", "rounded")

    @property
    def badness(self) -> tuple[int, float, float]:
        """What to sort by, the best first: the verdict, the worst error by what the type allows, and by itself."""
        # Every large tensor has an error of nearly all that its type allows; then the error itself tells more.
        compared = self.comparison or Comparison()
        return -FINDINGS.index(self.verdict), round(compared.worst_of_allowed, 2), compared.worst_error

    @property
    def units(self) -> str:
        """What ``comparison`` counts, by the type that the file has: "values" or "blocks"."""
        return "values" if self.ggml_type in ("F32", "F16", "BF16") else "blocks"

    @property
    def differing(self) -> str:
        """How many values or blocks differ, as text; empty where nothing was compared."""
        if self.comparison is None:
            return ""
        count = self.comparison.differing
        return f"{count:,} {self.units if count != 1 else self.units.removesuffix('s')}"

    @property
    def first_difference(self) -> tuple[int, ...] | None:
        """Where the first value, or block, that differs is (begins): an index for each axis."""
        if self.comparison is None or self.comparison.first is None:
            return None
        return tuple(map(int, np.unravel_index(self.comparison.first, self.shape or ())))

    @property
    def problem(self) -> str:
        """The fault in words."""
        others = {
            "missing": f"is missing, the checkpoint has it as {self.source!r}",
            "unexpected": "is unexpected, a conversion of the checkpoint gives none of that name",
            "wrong shape": f"has shape {self.shape}, should have {self.expected_shape}",
            "unknown type": f"is of type {self.ggml_type}, whose values cannot be verified",
        }
        if self.verdict in others:
            return f"tensor {self.name!r} {others[self.verdict]}"
        assert self.comparison is not None and self.first_difference is not None
        return (
            f"tensor {self.name!r} differs from {self.source!r} in {self.differing}, first at "
            f"[{', '.join(map(str, self.first_difference))}]; the worst error is {self.comparison.worst_error:.3g}, "
            f"{self.comparison.worst_of_allowed:.3g} times what {self.ggml_type} allows"
        )


@dataclass(frozen=True, slots=True)
class Verification:
    """How a GGUF file agrees with a checkpoint.

    ``found`` says what the checkpoint was taken for, ``outtype`` which conversion the file is compared with.
    ``tensors`` are in the order in which a conversion writes them, followed by those that are unexpected. ``warnings``
    are those of the conversion, ``notes`` lines about what is unusual, and no fault.
    """

    path: Path
    model_dir: Path | str
    found: str
    outtype: str
    tensors: tuple[TensorCheck, ...]
    metadata: tuple[MetadataDifference, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def agrees(self) -> bool:
        """Whether the file is what a conversion of the checkpoint gives."""
        return not self.metadata and all(tensor.is_good for tensor in self.tensors)

    @property
    def problems(self) -> tuple[str, ...]:
        """All that is wrong, a line each: tensors first, the worst of them first."""
        bad = sorted((t for t in self.tensors if not t.is_good), key=lambda t: t.badness, reverse=True)
        return (*(tensor.problem for tensor in bad), *(difference.problem for difference in self.metadata))


def verify(
    file: PathLike,
    model_dir: PathLike,
    options: Options = DEFAULTS,
    *,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Compare a GGUF file with what a conversion of a checkpoint would write: tensors, values and metadata.

    Towers, element types, and which of LLaVA's layers are stored and used are the file's; the other options are those
    of ``convert``, and must be given as they were then. ``threads`` is how many compare, 64 at most. ``progress`` is
    called with the bytes of the checkpoint compared so far, and with all. Memory does not grow with the model.

    Differences are no errors: see ``agrees`` and ``problems`` of what is returned. Raises CheckpointError or
    ConfigError when the file is no GGUF file of a known family, or the directory nothing that can be converted to one
    of its kind; UsageError (a ValueError) for options that do not apply.
    """
    path = Path(file)
    stored = ClipFile.read(path)
    plan = expected_plan(stored, model_dir, options)
    differences, notes = compare_metadata(stored, plan)
    tensors = _check_tensors(stored, plan, threads, progress)
    infinite = [
        f"{tensor.name}: {tensor.comparison.infinite:,} values are finite in the checkpoint and too large for "
        f"{tensor.ggml_type}, in the file they are not finite"
        for tensor in tensors
        if tensor.is_good and tensor.comparison and tensor.comparison.infinite
    ]
    return Verification(
        path=path,
        model_dir=shown_place(model_dir),
        found=plan.found,
        outtype=plan.outtype,
        tensors=tensors,
        metadata=differences,
        warnings=(*plan.warnings, *infinite),
        notes=(*plan.notes, *notes, *(f"clipgguf upgrade mends it: {line}" for line in mended(stored).lines)),
    )


def _check_tensors(
    file: ClipFile, plan: Plan, threads: int | None, progress: Progress | None
) -> tuple[TensorCheck, ...]:
    checks: dict[str, TensorCheck] = {}
    pairs: list[Pair] = []
    for planned in plan.tensors:
        name, source = planned.name, planned.source
        check = TensorCheck(
            name, "missing", source=source.name, source_dtype=source.dtype, expected_shape=planned.shape
        )
        if (stored := file.tensors.get(name)) is not None:
            verdict: Finding = "exact"
            if stored.shape != planned.shape:
                verdict = "wrong shape"
            elif GGMLQuantizationType[stored.dtype] not in COMPARABLE:
                verdict = "unknown type"
            else:
                pairs.append(Pair(planned, stored))
            check = replace(check, verdict=verdict, ggml_type=stored.dtype, shape=stored.shape)
        checks[name] = check
    for name, comparison in compare_tensors(pairs, file.file.source, thread_count(threads), progress).items():
        checks[name] = replace(checks[name], verdict=comparison.verdict, comparison=comparison)
    for name, stored in file.tensors.items():
        if name not in checks:
            checks[name] = TensorCheck(name, "unexpected", stored.dtype, stored.shape)
    return tuple(checks.values())
