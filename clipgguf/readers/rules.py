"""The rules by which ``clipgguf.readers`` tells who can read a file, each a generator of reasons why not.

A function that takes a file is a rule itself; the others make one from what a reader asks for.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from gguf import GGMLQuantizationType, GGUFValueType

from clipgguf.checkpoint import SourceTensor
from clipgguf.contents import CLASS_EMBEDDING, FEATURE_LAYER, PROJECTOR_TYPE, Contents
from clipgguf.element_types import squeeze
from clipgguf.families.llava import LDP_GRID
from clipgguf.names import TEXT, VISION, Tower, expected_tensors


class Doubt(str):
    """A reason why it cannot be told from the file whether a reader computes what it means."""

    __slots__ = ()


Rule = Callable[[Contents], Iterable[str]]
# A metadata key, the type of its value, and whether it is an array.
Key = tuple[str, GGUFValueType, bool]

_BOOL, _STRING = GGUFValueType.BOOL, GGUFValueType.STRING
_UINT32, _INT32, _FLOAT32 = GGUFValueType.UINT32, GGUFValueType.INT32, GGUFValueType.FLOAT32
# The kernels that ggml's depthwise convolution takes; it aborts on f32.
DEPTHWISE_KERNELS = frozenset({GGMLQuantizationType.F16, GGMLQuantizationType.BF16})
# So many missing tensors are looked for: metadata can tell of a million more than are there.
MOST_MISSING = 1000


def has_keys(required: Sequence[Key], optional: Sequence[Key] = (), tower: Tower | None = None) -> Rule:
    """Metadata that must be there, or must have the right type if it is; for files of a tower, where one is given."""

    def rule(contents: Contents) -> Iterator[str]:
        if tower is not None and not _is_told(contents, tower):
            return
        if missing := [key for key, _, _ in required if key not in contents.items]:
            yield f"it lacks the metadata {', '.join(missing)}"
        for key, value_type, is_array in (*required, *optional):
            item = contents.items.get(key)
            if item is not None and (item.value_type, item.is_array) != (value_type, is_array):
                yield (
                    f"{key} is {_type_text(item.value_type, item.is_array)}, "
                    f"should be {_type_text(value_type, is_array)}"
                )

    return rule


def _type_text(value_type: GGUFValueType, is_array: bool) -> str:
    return f"an array of {value_type.name}" if is_array else value_type.name


def _is_told(contents: Contents, tower: Tower) -> bool:
    """Return whether the file says that it has a tower."""
    return bool(contents.value(f"clip.has_{'text' if tower == TEXT else 'vision'}_encoder", _BOOL))


def has_flag(key: str, wanted: bool) -> Rule:
    """A bool that must be as wanted."""

    def rule(contents: Contents) -> Iterator[str]:
        if contents.value(key, _BOOL) is (not wanted):
            yield f"{key} is {str(not wanted).lower()}, should be {str(wanted).lower()}"

    return rule


def has_tensor_count(known: Sequence[int]) -> Rule:
    """One of the numbers of tensors that a reader has sizes of buffers for."""

    def rule(contents: Contents) -> Iterator[str]:
        if (count := len(contents.tensors)) not in known:
            yield f"it has {count:,} tensors, the numbers that are known are {', '.join(map(str, known))}"

    return rule


def has_file_type(known: Sequence[int]) -> Rule:
    """One of the values of general.file_type that a reader has names for."""

    def rule(contents: Contents) -> Iterator[str]:
        told = contents.value("general.file_type", _UINT32)
        if told is not None and told not in known:
            yield f"general.file_type is {told}, the values that are known are {', '.join(map(str, known))}"

    return rule


def has_tokens(count: int) -> Rule:
    """As many tokens as a reader takes for granted, which wraps each text in the last two of them."""

    def rule(contents: Contents) -> Iterator[str]:
        tokens = contents.array("tokenizer.ggml.tokens", _STRING)
        if _is_told(contents, TEXT) and 0 < len(tokens) < count:
            yield f"its vocabulary has {len(tokens):,} tokens, the tokens {count - 2} and {count - 1} must be there"

    return rule


def has_types(
    allowed: frozenset[GGMLQuantizationType],
    *,
    kernels: frozenset[GGMLQuantizationType],
    prefixes: tuple[str, ...],
) -> Rule:
    """Element types of the matrices, of the patch convolution's kernel, and of all else, which must be f32.

    ``prefixes`` begin the names of the tensors that the reader looks up.
    """

    def rule(contents: Contents) -> Iterator[str]:
        by_axes: dict[int, list[SourceTensor]] = {}
        for tensor in contents.tensors.values():
            if tensor.name.startswith(prefixes):
                by_axes.setdefault(len(squeeze(tensor.shape)), []).append(tensor)
        yield from _wrong_types(by_axes.get(2, ()), allowed, "")
        yield from _wrong_types(by_axes.get(4, ()), kernels, " as a convolution's kernel")
        yield from _wrong_types(by_axes.get(3, ()), DEPTHWISE_KERNELS, " as a depthwise convolution's kernel")
        yield from _wrong_types(by_axes.get(1, ()), frozenset({GGMLQuantizationType.F32}), " but for matrices")

    return rule


def _wrong_types(
    tensors: Iterable[SourceTensor], allowed: frozenset[GGMLQuantizationType], where: str
) -> Iterator[str]:
    by_type: dict[str, list[str]] = {}
    for tensor in tensors:
        if GGMLQuantizationType[tensor.dtype] not in allowed:
            by_type.setdefault(tensor.dtype, []).append(tensor.name)
    for dtype, names in by_type.items():
        yield f"it does not take {dtype}{where}: {_listed(names)}"


def _listed(names: Sequence[str], at_least: str = "") -> str:
    """Return the first of some names, and how many more there are."""
    more = f" and {at_least}{len(names) - 1:,} more" if len(names) > 1 else ""
    return f"{names[0]!r}{more}"


def has_sizes(tower: Tower) -> Rule:
    """Sizes that contradict themselves: zero, heads that do not divide the width, more blocks than tensors."""
    part = "text" if tower == TEXT else "vision"
    keys = [f"clip.{part}.{key}" for key in ("embedding_length", "feed_forward_length", "attention.head_count")]
    if tower == VISION:
        keys += ["clip.vision.image_size", "clip.vision.patch_size"]

    def rule(contents: Contents) -> Iterator[str]:
        if not _is_told(contents, tower):
            return
        yield from (f"{key} is 0" for key in keys if contents.value(key, _UINT32) == 0)
        width, _, heads = (contents.value(key, _UINT32) for key in keys[:3])
        if width and heads and width % heads:
            yield f"{keys[0]} is {width:,}, no multiple of {keys[2]}, {heads:,}"
        if tower == VISION:
            for key in ("clip.vision.image_mean", "clip.vision.image_std"):
                if key in contents.items and len(values := contents.array(key, _FLOAT32)) < 3 and values:
                    yield f"{key} has {len(values)} values, should have 3"

    return rule


def has_tower(tower: Tower, *, with_final: bool, modern: bool = False) -> Rule:
    """The tensors of a tower, and their shapes; ``with_final``: also those after the blocks.

    ``modern``: a tower may be SigLIP's, and fc1 and fc2 may be called either way round. llama.cpp runs a tower that
    lacks biases or norms without them; the tower was another then, if it was one of CLIP.
    """

    def rule(contents: Contents) -> Iterator[str]:
        if not _is_told(contents, tower):
            return
        text = contents.text_config() if tower == TEXT else None
        vision = contents.vision_config(modern and contents.is_siglip) if tower == VISION else None
        config = text or vision
        if config is None:
            return
        count = config.num_hidden_layers
        if count > len(contents.tensors):
            yield f"its metadata tells of {count:,} blocks, it has {len(contents.tensors):,} tensors"
            return
        is_swapped = modern and _is_fc1_called_up(contents, config.hidden_size)
        final = () if with_final else (tower.projection, *(f"{tower.gguf_prefix}{gguf}" for _, gguf, _ in tower.final))
        missing, misfits = [], []
        for expected in expected_tensors(text, vision):
            name = expected.gguf_name
            if name in final:
                continue
            if is_swapped:
                name = _swapped(name)
            tensor = contents.tensors.get(name)
            if tensor is None:
                missing.append(name)
                if len(missing) > MOST_MISSING:
                    break
            elif not _fits(squeeze(tensor.shape), expected.shape):
                misfits.append(f"{name!r} has shape {_shape_text(tensor.shape)}, not {_shape_text(expected.shape)}")
        if missing:
            at_least = "at least " if len(missing) > MOST_MISSING else ""
            yield f"it lacks tensors of the tower {tower.gguf_prefix}*: {_listed(missing, at_least)}"
        if misfits:
            more = f" ({len(misfits) - 1:,} more do not fit)" if len(misfits) > 1 else ""
            yield f"its tensors do not fit its metadata: {misfits[0]}{more}"

    return rule


def _fits(shape: tuple[int, ...], expected: tuple[int | None, ...]) -> bool:
    wanted = [axis for axis in expected if axis != 1]
    return len(shape) == len(wanted) and all(want in (None, have) for have, want in zip(shape, wanted, strict=True))


def _shape_text(shape: tuple[int | None, ...]) -> str:
    return " x ".join("any" if axis is None else f"{axis:,}" for axis in shape) or "of no axes"


def _is_fc1_called_up(contents: Contents, width: int) -> bool:
    """Return whether fc1, whose rows are of the tower's width, is called ffn_up; CLIP's scripts call it ffn_down."""
    tensor = contents.tensors.get("v.blk.0.ffn_down.weight")
    return tensor is not None and tensor.shape[-1:] != (width,)


def _swapped(name: str) -> str:
    for one, other in ((".ffn_down.", ".ffn_up."), (".ffn_up.", ".ffn_down.")):
        if one in name:
            return name.replace(one, other)
    return name


def has_projection_dim(tower: Tower) -> Rule:
    """clip.cpp copies projection_dim values of each embedding, whatever its length is."""
    key = f"clip.{'text' if tower == TEXT else 'vision'}.projection_dim"

    def rule(contents: Contents) -> Iterator[str]:
        told, tensor = contents.value(key, _UINT32), contents.tensors.get(tower.projection)
        if told is not None and tensor is not None and tensor.shape[:1] != (told,):
            yield f"{key} is {told:,}, but {tower.projection!r} has shape {_shape_text(tensor.shape)}"

    return rule


def has_projector(*kinds: str) -> Rule:
    """A projector of a kind that the reader has a graph for, and that fits the tower."""

    def rule(contents: Contents) -> Iterator[str]:
        if not contents.projector_names:
            yield "it has no projector (no tensor is called mm.*), so it is no mmproj"
            return
        kind = contents.projector_kind
        if kind is None or kind.name not in kinds:
            what = f"is of kind {kind.name}" if kind else "is of no known kind"
            yield f"its projector {what}; only {', '.join(kinds)} would be run"
            return
        vision = contents.vision_config(contents.is_siglip)
        if vision is None:
            return
        # The features of several layers lie side by side.
        width = vision.hidden_size * max(1, len(contents.feature_layers))
        tails = {gguf: tail for tail, gguf, _ in kind.rules}
        tensors = {tails[name]: contents.tensors[name] for name in contents.projector_names}
        for tail, wanted in kind.misfits({tail: tensor.shape for tail, tensor in tensors.items()}, width):
            shape = _shape_text(tensors[tail].shape)
            yield f"its projector does not fit: {tensors[tail].name!r} has shape {shape}, not {wanted}"
        grid = vision.image_size // vision.patch_size
        if kind.projector_type != "mlp" and grid != LDP_GRID:
            yield f"{kind.name} is run on {LDP_GRID} x {LDP_GRID} patches only, this tower has {grid} x {grid}"

    return rule


def has_projector_type(contents: Contents) -> Iterator[str]:
    """Without the key llama.cpp refuses a file: https://github.com/ggml-org/llama.cpp/issues/17138."""
    told, kind = contents.projector_types, contents.projector_kind
    if not told:
        yield f"{PROJECTOR_TYPE} is missing{'; clipgguf upgrade adds it' if kind else ''}"
    for key, text in told.items():
        if kind is not None and kind.projector_type != text:
            yield f"{key} is {text!r}, but the tensors are those of {kind.projector_type!r}"


def runs_in_llama_cpp(contents: Contents) -> Iterator[str]:
    """Without feature_layer all blocks but the last are run: https://github.com/ggml-org/llama.cpp/issues/25817."""
    count, wanted, layers = contents.blocks_told(VISION), contents.blocks_wanted, contents.feature_layers
    if count is None or not contents.projector_names:
        return
    if wanted is None:
        yield Doubt(
            f"without {FEATURE_LAYER} it runs {count - 1:,} of the {count:,} blocks, and the file does not tell "
            "whether the last is meant to run; clipgguf upgrade --feature-layer adds it"
        )
    elif layers and wanted > count:
        yield f"{FEATURE_LAYER} is {wanted:,}, with {count:,} blocks stored"
    elif not layers and wanted != count - 1:
        yield f"without {FEATURE_LAYER} it runs {count - 1:,} of the {wanted:,} blocks; clipgguf upgrade adds it"


def runs_in_powerinfer(most: int) -> Rule:
    """PowerInfer runs all blocks but the last of those that are stored, at most ``most``, whatever feature_layer says.

    So a file for it has just one more than are meant to run.
    """

    def rule(contents: Contents) -> Iterator[str]:
        count, wanted = contents.blocks_told(VISION), contents.blocks_wanted
        if count is None or not contents.projector_names:
            return
        if wanted is None:
            yield Doubt(
                f"it runs {count - 1:,} of the {count:,} blocks, and the file does not tell whether the last is meant "
                f"to run, as {FEATURE_LAYER} would"
            )
            return
        if len(contents.feature_layers) > 1:
            yield f"it takes the features of one layer, {FEATURE_LAYER} has {len(contents.feature_layers):,}"
        if wanted != count - 1:
            depth, advice = contents.tower_depth, ""
            if depth is not None and wanted >= depth:
                advice = ", all that the tower has"
            elif wanted < most:
                condition = ", if the tower has more" if depth is None and wanted == count else ""
                advice = f"; --keep-last-layer stores {wanted + 1:,}{condition}"
            yield f"it always runs all blocks but the last, {count - 1:,} here, and {wanted:,} are meant to run{advice}"

    return rule


def has_room(most: int) -> Rule:
    """As many blocks as a reader's graph has room for; on more it aborts."""

    def rule(contents: Contents) -> Iterator[str]:
        count = contents.blocks_told(VISION)
        if contents.projector_names and count is not None and count > most:
            yield f"its graph has no room for {count:,} blocks, at most {most} may be stored"

    return rule


def has_scratch(mebibytes: Mapping[int, int]) -> Rule:
    """A vision tower that runs in the memory that a reader has for so many tensors; beyond it, it dies.

    What one image takes was measured: some 33 values of the width and 3 of the feed-forward for every position, and all
    heads' attention, in float32.
    """

    def rule(contents: Contents) -> Iterator[str]:
        vision, has = contents.vision_config(is_siglip=False), mebibytes.get(len(contents.tensors))
        if has is None or vision is None or not _is_told(contents, VISION):
            return
        values = 33 * vision.hidden_size + 3 * vision.intermediate_size
        needed = 4 * vision.positions * (values + vision.positions * vision.num_attention_heads)
        if needed > has * 2**20:
            yield (
                f"an image of image_size {vision.image_size:,} takes about {needed / 2**20:,.0f} MiB, it has {has} MiB "
                f"for files of {len(contents.tensors):,} tensors"
            )

    return rule


def has_no_final_norm(contents: Contents) -> Iterator[str]:
    """llama.cpp applies a norm that is there before the projector, which was trained without."""
    if contents.projector_names and CLASS_EMBEDDING in contents.tensors and "v.post_ln.weight" in contents.tensors:
        yield "'v.post_ln.weight' is there and would be applied, which CLIP's towers in LLaVA do without"


def has_pinpoints(contents: Contents) -> Iterator[str]:
    """llama.cpp slices images into pieces of the tower's size, and aborts on what is no multiple of it."""
    key, size = "clip.vision.image_grid_pinpoints", contents.value("clip.vision.image_size", _UINT32)
    values = contents.array(key, _INT32)
    if len(values) % 2:
        yield f"{key} has {len(values)} values, should be pairs"
    if size and any(value % size or value <= 0 for value in values):
        yield f"{key} has sizes that are no multiples of image_size, {size:,}"


def has_one_activation(contents: Contents) -> Iterator[str]:
    """llama.cpp refuses a file that tells of two activations."""
    if contents.value("clip.use_gelu", _BOOL) and contents.value("clip.use_silu", _BOOL):
        yield "clip.use_gelu and clip.use_silu are both true"


def is_contiguous(contents: Contents) -> Iterator[str]:
    """Today's ggml wants every tensor where the one before ends, aligned (``ggml/src/gguf.cpp``)."""
    file = contents.file
    position = file.data_start
    for tensor in file.tensors:
        if tensor.offset != position:
            yield f"tensor {tensor.name!r} begins at byte {tensor.offset:,}, the one before ends at {position:,}"
            return
        position += -(-tensor.nbytes // file.alignment) * file.alignment
