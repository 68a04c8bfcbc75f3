"""Which conversion a GGUF file should have come from: the plan, with the options that the file itself tells."""

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from gguf import GGMLQuantizationType, GGUFValueType

from clipgguf.contents import FEATURE_LAYER, Contents
from clipgguf.conversion import plan_conversion
from clipgguf.element_types import OUTTYPES, file_type
from clipgguf.errors import CheckpointError, ConfigError
from clipgguf.families import Request
from clipgguf.names import TEXT, VISION
from clipgguf.plan import Plan

FILE_TYPE = "general.file_type"


@dataclass(frozen=True, slots=True)
class Expected:
    """What a conversion of the checkpoint would write now; ``notes`` say where that is unusual."""

    plan: Plan
    outtype: str
    notes: tuple[str, ...]


def expected_file(contents: Contents, request: Request) -> Expected:
    """Plan the conversion that a file should have come from.

    Of the request, towers, outtype and layers are replaced by the file's. Raises CheckpointError or ConfigError when
    the file has nothing of CLIP, or the checkpoint cannot be converted to a file of its kind.
    """
    request = _with_towers(contents, request)
    outtype = _outtype(contents, is_mmproj=bool(contents.projector_names))
    plan, notes = _plan(contents, replace(request, outtype=outtype))
    plan = _with_file_type(plan, contents, outtype)
    return Expected(plan, outtype, (*notes, *_type_notes(contents, plan, outtype)))


def _with_towers(contents: Contents, request: Request) -> Request:
    """Return the request with the towers that the file has, or says that it has."""

    def said(part: str) -> bool:
        return contents.value(f"clip.has_{part}", GGUFValueType.BOOL) is True

    # Where the metadata and the tensors contradict each other, what either has is expected, and missed in the other.
    has_text = said("text_encoder") or contents.has(TEXT)
    has_vision = said("vision_encoder") or contents.has(VISION)
    has_projector = said("llava_projector") or bool(contents.projector_names)
    if not (has_text or has_vision or has_projector):
        raise CheckpointError(f"{contents.file.path}: is no GGUF file of CLIP, it has neither towers nor a projector")
    is_mmproj = has_projector or request.llava_projector is not None
    return replace(
        request,
        text_only=has_text and not has_vision and not is_mmproj,
        vision_only=has_vision and not has_text and not is_mmproj,
    )


def _outtype(contents: Contents, *, is_mmproj: bool) -> str:
    """Return the outtype that general.file_type tells, else that of which the file has most in its matrices.

    Where the number means one outtype to llama.cpp and another to clip.cpp (7 and 8), the matrices decide, and without
    any of either the kind of the file.
    """
    told = _told_file_type(contents)
    # The first wins where there is nothing of any.
    either = sorted(OUTTYPES, key=lambda outtype: told != file_type(outtype, is_mmproj=is_mmproj))
    candidates = [outtype for outtype in either if told in _file_types(outtype)] or ["f16", *OUTTYPES]
    nbytes = dict.fromkeys(candidates, 0)
    names = {OUTTYPES[outtype][0].name: outtype for outtype in candidates}
    for tensor in contents.file.tensors:
        if len(tensor.shape) == 2 and tensor.dtype in names:
            nbytes[names[tensor.dtype]] += tensor.nbytes
    return max(nbytes, key=lambda outtype: nbytes[outtype])


def _told_file_type(contents: Contents) -> Any:
    return contents.value(FILE_TYPE, GGUFValueType.UINT32)


def _file_types(outtype: str) -> tuple[int, int]:
    """Return both numbers that a file of an outtype may have, whatever kind it is."""
    return file_type(outtype, is_mmproj=False), file_type(outtype, is_mmproj=True)


def _with_file_type(plan: Plan, contents: Contents, outtype: str) -> Plan:
    """Return a plan that has the file's general.file_type, where it is one of the two that mean the outtype."""
    told = _told_file_type(contents)
    if told not in _file_types(outtype):
        return plan
    return replace(plan, metadata=tuple(replace(i, value=told) if i.key == FILE_TYPE else i for i in plan.metadata))


def _plan(contents: Contents, request: Request) -> tuple[Plan, list[str]]:
    """Plan with the layers that the file has; return notes about them, too."""
    told = contents.array(FEATURE_LAYER, GGUFValueType.INT32)
    layer = told[0] if len(told) == 1 and told[0] > 0 else None
    notes: list[str] = []
    try:
        plan = plan_conversion(request)
    except ConfigError:
        # The configuration may ask for layers that no reader can use, in whose place another was chosen.
        if layer is None:
            raise
        request = replace(request, feature_layer=layer)
        plan = plan_conversion(request)
    run = _layers_run(plan)
    if run is None:
        if contents.projector_names:
            raise CheckpointError(
                f"{contents.file.path}: has a LLaVA projector, {request.model_dir} has none; --llava-projector takes it"
            )
        return plan, notes
    if layer is not None and layer != run:
        # A layer that the tower does not have was no option of the conversion: it is a difference in the metadata.
        with suppress(ConfigError):
            chosen = replace(request, feature_layer=layer)
            plan, request = plan_conversion(chosen), chosen
            notes.append(
                f"the projector takes the features of layer {layer}, as with --feature-layer {layer}; the checkpoint's "
                f"own configuration says {run}"
            )
            run = layer
    stored = contents.blocks_told(VISION) or contents.blocks_stored(VISION)
    if stored > run:
        plan = plan_conversion(replace(request, layers_stored=stored))
    return plan, notes


def _layers_run(plan: Plan) -> int | None:
    """Return after how many blocks a plan's projector takes the features; None without a projector."""
    return next((int(item.value[0]) for item in plan.metadata if item.key == FEATURE_LAYER), None)


def _type_notes(contents: Contents, plan: Plan, outtype: str) -> Iterator[str]:
    """Yield notes about tensors that have another type than the conversion gives, as llama.cpp's quantize makes it."""
    others: Counter[tuple[str, str]] = Counter()
    for planned in plan.tensors:
        stored = contents.tensors.get(planned.name)
        if stored is not None and GGMLQuantizationType[stored.dtype] != planned.ggml_type:
            others[stored.dtype, planned.ggml_type.name] += 1
    for (found, usual), count in others.items():
        yield (
            f"{count:,} {'tensor is' if count == 1 else 'tensors are'} of type {found}, where a conversion to "
            f"{outtype} gives {usual}; compared by the type that the file has"
        )
