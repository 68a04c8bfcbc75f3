"""Which conversion a GGUF file should have come from: the plan, with the options that the file itself tells."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from clipgguf.clip_file import ClipFile
from clipgguf.element_types import OUTTYPES, file_type
from clipgguf.errors import CheckpointError
from clipgguf.families import PROJECTORS, open_model
from clipgguf.inputs import Told
from clipgguf.keys import KEYS
from clipgguf.options import Options, Outtype, PathLike
from clipgguf.planning import Plan, make_plan
from clipgguf.sources.given import shown_place


def expected_plan(file: ClipFile, model_dir: PathLike, options: Options) -> Plan:
    """Plan the conversion that a file should have come from; its notes say what is unusual.

    What the file tells replaces options: towers, outtype, layers. Raises CheckpointError or ConfigError when the file
    has nothing of what is converted, or the checkpoint cannot be converted to a file of its kind.
    """
    layers: tuple[int, ...] = file.value("vision.feature_layer") or ()
    told = Told(
        feature_layer=layers[0] if len(layers) == 1 and layers[0] > 0 else None,
        stored_blocks=file.value("vision.blocks") or file.blocks_stored("vision"),
    )
    where = shown_place(model_dir)
    model = open_model(model_dir, _with_towers(file, options), told)
    other = PROJECTORS.get("+".join(model.family.projectors))
    if file.family is not None and file.module != other and {file.module, other} - {"clip", "llava", None}:
        raise CheckpointError(
            f"{file.file.source}: is a file of {file.family.title}, {where} is a checkpoint of {model.family.title}"
        )
    if file.projector_names and not model.family.projector:
        raise CheckpointError(
            f"{file.file.source}: has a LLaVA projector, {where} has none; --llava-projector takes it"
        )
    outtype = _outtype(file)
    plan = make_plan(model, outtype)
    number, metadata = file.value("file_type"), plan.metadata
    if number in _file_types(outtype):  # It is one of the two that mean the outtype.
        key = KEYS["file_type"].key
        metadata = tuple(replace(item, value=number) if item.key == key else item for item in metadata)
    return replace(plan, metadata=metadata, notes=(*model.told_notes, *_other_type_notes(file, plan)))


def _with_towers(file: ClipFile, options: Options) -> Options:
    """Return the options with the towers that the file has, or says that it has."""
    # Where the metadata and the tensors contradict each other, what either has is expected, and missed in the other.
    has_text, has_vision = (file.tells(part) or file.has(part) for part in ("text", "vision"))
    has_projector = file.value("has_llava") or file.is_mmproj
    if not (has_text or has_vision or has_projector):
        raise CheckpointError(f"{file.file.source}: is no GGUF file of CLIP, it has neither towers nor a projector")
    is_mmproj = has_projector or options.llava_projector is not None
    if is_mmproj and file.module not in ("clip", "llava", None):
        # Of a model that sees and hears, a file may be for one of these alone.
        parts = file.family.parts if file.family else ()
        vision_only, audio_only = parts == ("vision",), parts == ("audio",)
        return replace(options, text_only=False, vision_only=vision_only, audio_only=audio_only)
    return replace(
        options,
        text_only=has_text and not has_vision and not is_mmproj,
        vision_only=has_vision and not has_text and not is_mmproj,
    )


def _outtype(file: ClipFile) -> Outtype:
    """Return the outtype that general.file_type tells, else that of which the file has most in its matrices.

    Where the number means one outtype to llama.cpp and another to clip.cpp (7 and 8), the matrices decide, and without
    any of either the kind of the file.
    """
    told, is_mmproj = file.value("file_type"), file.is_mmproj
    # The first wins where there is nothing of any.
    either = sorted(OUTTYPES, key=lambda outtype: told != file_type(outtype, is_mmproj=is_mmproj))
    candidates = [outtype for outtype in either if told in _file_types(outtype)] or ["f16", *OUTTYPES]
    nbytes: Counter[str] = Counter()
    for tensor in file.file.tensors:
        if len(tensor.shape) == 2:
            nbytes[tensor.dtype] += tensor.nbytes
    return max(candidates, key=lambda outtype: nbytes[OUTTYPES[outtype][0].name])


def _file_types(outtype: Outtype) -> tuple[int, int]:
    """Return both numbers that a file of an outtype may have, whatever kind it is."""
    return file_type(outtype, is_mmproj=False), file_type(outtype, is_mmproj=True)


def _other_type_notes(file: ClipFile, plan: Plan) -> Iterator[str]:
    """Yield notes about tensors that have another type than the conversion gives, as llama.cpp's quantize makes it."""
    pairs = ((file.tensors.get(planned.name), planned.ggml_type.name) for planned in plan.tensors)
    others = Counter((stored.dtype, usual) for stored, usual in pairs if stored is not None and stored.dtype != usual)
    for (found, usual), count in others.items():
        yield (
            f"{count:,} {'tensor is' if count == 1 else 'tensors are'} of type {found}, where a conversion to "
            f"{plan.outtype} gives {usual}; compared by the type that the file has"
        )
