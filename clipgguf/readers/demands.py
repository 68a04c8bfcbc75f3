"""The demands by which ``clipgguf.readers`` tells who can read a file: each yields the reasons why not."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from gguf import GGMLQuantizationType

from clipgguf.clip_file import ClipFile
from clipgguf.families.clip import clip_family
from clipgguf.family import Family
from clipgguf.holding import hold, values_of
from clipgguf.keys import KEYS, Key
from clipgguf.shape import shape_text, squeeze


class Doubt(str):
    """A reason why it cannot be told from the file whether a reader computes what it means."""


_Types = frozenset[GGMLQuantizationType]

# Matrices that have one row only.
_OF_ONE_ROW = frozenset({"a.gen.out_eos.weight"})
# The kernels that ggml's depthwise convolution takes; it aborts on f32.
DEPTHWISE_KERNELS = frozenset({GGMLQuantizationType.F16, GGMLQuantizationType.BF16})


def has_keys(file: ClipFile, names: Sequence[str], part: str | None = None) -> Iterator[str]:
    """Metadata that must be there and have the right type, by short name; for files of a tower, where one is given."""
    if part is not None and not file.tells(part):
        return
    keys = [KEYS[name] for name in names]
    if missing := [key.key for key in keys if key.key not in file.items]:
        yield f"it lacks the metadata {', '.join(missing)}"
    yield from _wrong_key_types(file, keys)


def has_key_types(file: ClipFile, names: Sequence[str], *, known: Sequence[str]) -> Iterator[str]:
    """Metadata that must have the right type where it is there; so must the towers' keys that only its family has."""
    values = () if file.family is None or file.is_llava else file.family.values
    own = [v.name for v in values if v.name in KEYS and v.part in ("vision", "audio") and v.name not in known]
    return _wrong_key_types(file, [KEYS[name] for name in dict.fromkeys((*names, *own))])


def _wrong_key_types(file: ClipFile, keys: Iterable[Key]) -> Iterator[str]:
    for key in keys:
        item = file.items.get(key.key)
        if item is not None and item.type_name != key.type_name:
            yield f"{key.key} is {item.type_name}, should be {key.type_name}"


def has_flag(file: ClipFile, name: str, wanted: bool) -> Iterator[str]:
    """A bool that must be as wanted."""
    if file.value(name) is (not wanted):
        yield f"{KEYS[name].key} is {str(not wanted).lower()}, should be {str(wanted).lower()}"


def has_tensor_count(file: ClipFile, known: Collection[int]) -> Iterator[str]:
    """One of the numbers of tensors that a reader has sizes of buffers for."""
    if (count := len(file.tensors)) not in known:
        yield f"it has {count:,} tensors, the numbers that are known are {', '.join(map(str, known))}"


def has_file_type(file: ClipFile, known: Sequence[int]) -> Iterator[str]:
    """One of the values of general.file_type that a reader has names for."""
    told = file.value("file_type")
    if told is not None and told not in known:
        yield f"general.file_type is {told}, the values that are known are {', '.join(map(str, known))}"


def has_tokens(file: ClipFile, count: int) -> Iterator[str]:
    """As many tokens as a reader takes for granted, which wraps each text in the last two of them."""
    tokens = file.value("text.tokens") or ()
    if file.tells("text") and 0 < len(tokens) < count:
        yield f"its vocabulary has {len(tokens):,} tokens, the tokens {count - 2} and {count - 1} must be there"


def has_types(file: ClipFile, matrices: _Types, kernels: _Types, prefixes: tuple[str, ...]) -> Iterator[str]:
    """Element types of matrices and convolutions' kernels, with f32 for the rest, where the reader looks up a name."""
    taken = {
        2: (matrices, ""),
        4: (kernels, " as a convolution's kernel"),
        3: (DEPTHWISE_KERNELS, " as a depthwise convolution's kernel"),
        1: (frozenset({GGMLQuantizationType.F32}), " but for matrices"),
    }
    taken[0] = taken[1]
    if file.family is not None and not file.family.base.squeezes:
        del taken[3]  # In files of other families, three axes may be those of anything.
    refused: dict[int, dict[str, list[str]]] = {axes: {} for axes in taken}
    for tensor in file.tensors.values():
        axes = 2 if tensor.name in _OF_ONE_ROW else len(squeeze(tensor.shape))
        if (
            tensor.name.startswith(prefixes)
            and axes in taken
            and GGMLQuantizationType[tensor.dtype] not in taken[axes][0]
        ):
            refused[axes].setdefault(tensor.dtype, []).append(tensor.name)
    for axes, (_, where) in taken.items():
        for dtype, names in refused[axes].items():
            yield f"it does not take {dtype}{where}: {_first_and_more(names)}"


def _first_and_more(names: Sequence[str], at_least: str = "") -> str:
    """Return the first of some names, and how many more there are."""
    more = f" and {at_least}{len(names) - 1:,} more" if len(names) > 1 else ""
    return f"{names[0]!r}{more}"


def has_sizes(file: ClipFile, part: str) -> Iterator[str]:
    """Sizes that contradict themselves: zero, heads that do not divide the width, too few values for the channels."""
    if not file.tells(part):
        return
    always = _zeros(file.family)
    # What gives sound stands beside what hears.
    for starts in (f"{part}.", f"{part}.gen_"):
        names = [f"{starts}{name}" for name in ("width", "ffn", "heads", "image", "patch") if f"{starts}{name}" in KEYS]
        yield from (f"{KEYS[name].key} is 0" for name in names if file.value(name) == 0 and name not in always)
        width, heads = (file.value(name) if name in KEYS else None for name in (f"{starts}width", f"{starts}heads"))
        if width and heads and width % heads:
            keys = KEYS[f"{starts}width"].key, KEYS[f"{starts}heads"].key
            yield f"{keys[0]} is {width:,}, no multiple of {keys[1]}, {heads:,}"
    for name in (f"{part}.mean", f"{part}.std"):
        values = file.value(name) if name in KEYS else None
        if values and len(values) < 3:
            yield f"{KEYS[name].key} has {len(values)} values, should have 3"


def _zeros(family: Family | None) -> set[str]:
    """Return the sizes that are 0 in all files of a family: of images of any size, of a tower without blocks."""
    return {value.name for value in family.values if value.default == 0} if family else set()


def has_projection_dim(file: ClipFile, part: str) -> Iterator[str]:
    """clip.cpp copies projection_dim values of each embedding, whatever its length is."""
    name = {"text": "text_projection.weight", "vision": "visual_projection.weight"}[part]
    told, tensor = file.value(f"{part}.projection"), file.tensors.get(name)
    if told is not None and tensor is not None and tensor.shape[:1] != (told,):
        key = KEYS[f"{part}.projection"].key
        yield f"{key} is {told:,}, but {name!r} has shape {shape_text(tensor.shape)}"


def has_scratch(file: ClipFile, mebibytes: Mapping[int, int]) -> Iterator[str]:
    """A vision tower that runs in the memory that a reader has for so many tensors; beyond it, it dies.

    What one image takes was measured: some 33 values of the width and 3 of the feed-forward for every position, and all
    heads' attention, in float32.
    """
    has = mebibytes.get(len(file.tensors))
    sizes = [file.value(f"vision.{name}") for name in ("width", "ffn", "heads", "image", "patch")]
    if has is None or not file.tells("vision") or not all(sizes):
        return
    width, ffn, heads, image, patch = sizes
    positions = (image // patch) ** 2 + 1
    needed = 4 * positions * (33 * width + 3 * ffn + positions * heads)
    if needed > has * 2**20:
        yield (
            f"an image of image_size {image:,} takes about {needed / 2**20:,.0f} MiB, it has {has} MiB "
            f"for files of {len(file.tensors):,} tensors"
        )


def has_one_activation(file: ClipFile) -> Iterator[str]:
    """llama.cpp refuses a file that tells of two activations, and computes quick GELU for one that tells of none."""
    gelu, silu = file.value("gelu"), file.value("silu")
    if gelu and silu:
        yield "clip.use_gelu and clip.use_silu are both true"
    elif not (gelu or silu) and file.family is not None and any(v.name == "activation" for v in file.family.values):
        yield Doubt("neither clip.use_gelu nor clip.use_silu is there, so that it computes quick GELU")


def is_contiguous(file: ClipFile) -> Iterator[str]:
    """Today's ggml wants every tensor where the one before ends, aligned (``ggml/src/gguf.cpp``)."""
    gguf = file.file
    position = gguf.data_start
    for tensor in gguf.tensors:
        if tensor.offset != position:
            yield f"tensor {tensor.name!r} begins at byte {tensor.offset:,}, the one before ends at {position:,}"
            return
        position += -(-tensor.nbytes // gguf.alignment) * gguf.alignment


def holds_clip(file: ClipFile, part: str) -> Iterable[str]:
    """The tensors of one of CLIP's towers, with all that comes after its blocks."""
    return held_to(file, clip_family("CLIP", (part,)), (part,)) if file.tells(part) else ()


def held_to(file: ClipFile, family: Family, parts: Iterable[str]) -> Iterator[str]:
    """Yield what a file lacks of a family's tensors, and what does not fit; ``parts`` are those that it tells of."""
    values = values_of(family, file.items)
    for part in parts:
        count = values.get(f"{part}.blocks")
        sizes = {f"{part}.{name}" for name in ("width", "ffn", "heads")} - _zeros(family)
        if count is None or not all(map(values.get, sizes)):
            return  # The keys or sizes are the fault, which others tell.
        if count > len(file.tensors) and any("blocks" in (s.times, s.stored) for s in family.sections):
            yield f"its metadata tells of {count:,} blocks, it has {len(file.tensors):,} tensors"
            return
    held = hold(family, {name: tensor.shape for name, tensor in file.tensors.items()}, values)
    if held.missing:
        yield f"it lacks tensors: {_first_and_more(held.missing, 'at least ' if held.is_cut else '')}"
    if held.misfits:
        name, shape, right = held.misfits[0]
        more = f" ({len(held.misfits) - 1:,} more do not fit)" if len(held.misfits) > 1 else ""
        yield (
            f"its tensors do not fit its metadata or each other: {name!r} has shape {shape_text(shape)}, "
            f"not {shape_text(right)}{more}"
        )
