"""What readers demand of mmproj files: a projector and a tower that fit, and the blocks that were meant to run."""

from collections.abc import Iterator, Sequence

from clipgguf.clip_file import CLASS_EMBEDDING, ClipFile
from clipgguf.families.llava import LDP_GRID, llava_family
from clipgguf.families.llava_projectors import KINDS
from clipgguf.keys import KEYS
from clipgguf.readers.demands import Doubt, held_to

FEATURE_LAYER, PROJECTOR_TYPE = KEYS["vision.feature_layer"].key, KEYS["projector"].key
NO_PROJECTOR = "it has no projector (no tensor is called mm.*), so it is no mmproj"


def has_projector_type(file: ClipFile) -> Iterator[str]:
    """Without the key llama.cpp refuses a file: https://github.com/ggml-org/llama.cpp/issues/17138."""
    told, kind = file.projector_types, file.kind
    if not told:
        yield f"{PROJECTOR_TYPE} is missing{'; clipgguf upgrade adds it' if kind else ''}"
    for key, text in told.items():
        if kind is not None and kind.projector_type != text:
            yield f"{key} is {text!r}, but the tensors are those of {kind.projector_type!r}"


def holds_llava(file: ClipFile, kinds: Sequence[str]) -> Iterator[str]:
    """A vision tower of CLIP's, and a projector of a kind that the reader has a graph for, and that fits the tower."""
    if not file.projector_names:
        yield NO_PROJECTOR
        return
    if file.kind is None or file.kind.name not in kinds:
        what = f"is of kind {file.kind.name}" if file.kind else "is of no known kind"
        yield f"its projector {what}; only {', '.join(kinds)} would be run"
    if file.tells("vision"):
        yield from held_to(file, llava_family(file.kind or KINDS[0], is_siglip=False), "vision")


def holds_its_table(file: ClipFile) -> Iterator[str]:
    """What the tables of the file's own family have: values that are always written, tensors, and their shapes."""
    family, is_told = file.family, file.tells("vision")
    if file.module == "clip" or not (file.projector_names or (family and is_told)):
        yield NO_PROJECTOR
    elif family is None:
        yield f"its projector is of no known kind; only {', '.join(kind.name for kind in KINDS)} would be run"
    elif is_told:
        if not file.is_llava:
            needed = [KEYS[value.name].key for value in family.values if value.name in KEYS and value.unless is None]
            if missing := [key for key in needed if key.startswith("clip.") and key not in file.items]:
                yield f"it lacks the metadata {', '.join(missing)}"
        yield from held_to(file, family, "vision")


def has_grid(file: ClipFile) -> Iterator[str]:
    """MobileVLM's projectors are run on one number of patches only."""
    image, patch = file.value("vision.image"), file.value("vision.patch")
    if file.kind is not None and file.kind.projector_type != "mlp" and image and patch:
        grid = image // patch
        if grid != LDP_GRID:
            yield f"{file.kind.name} is run on {LDP_GRID} x {LDP_GRID} patches only, this tower has {grid} x {grid}"


def runs_in_llama_cpp(file: ClipFile) -> Iterator[str]:
    """Without feature_layer all blocks but the last are run: https://github.com/ggml-org/llama.cpp/issues/25817."""
    count, wanted, layers = file.value("vision.blocks"), file.blocks_wanted, file.feature_layers
    if count is None or not file.is_llava:
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


def runs_in_powerinfer(file: ClipFile, most: int) -> Iterator[str]:
    """Just one block more than is meant to run: PowerInfer leaves out the last, whatever feature_layer says."""
    count, wanted = file.value("vision.blocks"), file.blocks_wanted
    if count is None or not file.is_llava:
        return
    if wanted is None:
        yield Doubt(
            f"it runs {count - 1:,} of the {count:,} blocks, and the file does not tell whether the last is meant "
            f"to run, as {FEATURE_LAYER} would"
        )
        return
    if len(file.feature_layers) > 1:
        yield f"it takes the features of one layer, {FEATURE_LAYER} has {len(file.feature_layers):,}"
    if wanted != count - 1:
        depth, advice = file.tower_depth, ""
        if depth is not None and wanted >= depth:
            advice = ", all that the tower has"
        elif wanted < most:
            condition = ", if the tower has more" if depth is None and wanted == count else ""
            advice = f"; --keep-last-layer stores {wanted + 1:,}{condition}"
        yield f"it always runs all blocks but the last, {count - 1:,} here, and {wanted:,} are meant to run{advice}"


def has_room(file: ClipFile, most: int) -> Iterator[str]:
    """As many blocks as a reader's graph has room for; on more it aborts."""
    count = file.value("vision.blocks")
    if file.projector_names and count is not None and count > most:
        yield f"its graph has no room for {count:,} blocks, at most {most} may be stored"


def has_no_final_norm(file: ClipFile) -> Iterator[str]:
    """llama.cpp applies a norm that is there before the projector, which was trained without."""
    if file.is_llava and CLASS_EMBEDDING in file.tensors and "v.post_ln.weight" in file.tensors:
        yield "'v.post_ln.weight' is there and would be applied, which CLIP's towers in LLaVA do without"


def has_pinpoints(file: ClipFile) -> Iterator[str]:
    """llama.cpp slices images into pieces of the tower's size, and aborts on what is no multiple of it."""
    key, size = KEYS["vision.pinpoints"].key, file.value("vision.image")
    values = file.value("vision.pinpoints") or ()
    if len(values) % 2:
        yield f"{key} has {len(values)} values, should be pairs"
    if size and any(value % size or value <= 0 for value in values):
        yield f"{key} has sizes that are no multiples of image_size, {size:,}"
