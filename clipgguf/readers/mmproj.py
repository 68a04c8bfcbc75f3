"""What readers demand of mmproj files: a projector and a tower that fit, and the blocks that were meant to run."""

from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase

from clipgguf.clip_file import CLASS_EMBEDDING, ClipFile
from clipgguf.families.llava import LDP_GRID, llava_family
from clipgguf.families.llava_projectors import KINDS
from clipgguf.family import PROJECTOR_KEYS, Family
from clipgguf.keys import KEYS
from clipgguf.mending import mended
from clipgguf.readers.demands import Doubt, held_to
from clipgguf.shape import squeeze

FEATURE_LAYER, PROJECTOR_TYPE = KEYS["vision.feature_layer"].key, KEYS["projector"].key
# The metadata for which llama.cpp takes values of its own where a file lacks them, in the families that are named or
# in all (``load_hparams`` in tools/mtmd/clip.cpp).
_TAKEN: Mapping[str, tuple[str, ...]] = {
    "minicpmv_version": (),
    "vision.merge": (
        *("glm5_next", "hunyuan_vl", "ling3_vl", "mimo_v2", "minimax_m3", "muse_glimmer", "qwen3_omni_moe", "qwen3_vl"),
        "youtu_vl",
    ),
    "vision.min_tiles": (),
    "vision.max_tiles": (),
    "vision.preproc_image": (),
    # It goes by the tensors.
    "vision.is_deepstack": (),
    "vision.scale": ("minicpmv4_6", "step3p7"),
    "vision.whole_blocks": ("minicpmv4_6",),
    "vision.min_pixels": ("hunyuan_vl", "kimi_k25"),
    "vision.max_pixels": ("hunyuan_vl", "kimi_k25"),
    "vision.window_pattern": ("exaone4_5",),
    "vision.window": ("exaone4_5",),
    "gelu": ("hunyuan_vl", "minimax_m3"),
    "audio.gen_variant": (),
    "audio.gen_kv_heads": ("qwen3_tts",),
}
# What it does not look for.
_IGNORED = frozenset({"has_text", "has_minicpmv", "rope_base"})
# Tensors of several axes that it adds to others, joins with them, squares, or slides along time, and aborts on in any
# type but F32. Of the table of positions some families look rows up instead.
_ADDED = (
    *("v.position_embd.weight", "a.position_embd.weight", "v.sam.pos_embd.weight", "v.proj_blk.*.img_pos"),
    *("resampler.query", "v.class_embd", "a.blk.*.pos_bias_[uv]", "a.proj_query", "a.mel_filters"),
    *("a.rvq.codebook.weight", "a.blk.*.conv_dw.weight"),
)
_BY_ROWS = frozenset(
    {"clip", "deepseek_ocr", "gemma4", "gemma4_unified", "hunyuan_vl", "llava", "minicpmv", "minicpmv4_6"}
)
# Of convolutions other than those of patches, what a family's graph takes: by a pattern of the name.
_CONVOLUTIONS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "gemma3n": {
        "*dw_*.conv.weight": ("F16",),
        "*.down_conv.weight": ("F16",),
        "*.conv.weight": ("F16", "F32"),
        "*.proj.weight": ("F16", "F32"),
        "*.conv_*.weight": ("F16", "F32"),
    },
    "granite_speech": {"*.conv_dw.weight": ("F32",)},
    "lfm2_audio": {"*.conv_dw.weight": ("F32",), "a.conv1d.[2356].weight": ("F16", "F32")},
    "nemotron_nano_v2_vl": {"*.conv_dw.weight": ("F32",), "a.conv1d.[25].weight": ("F16", "F32")},
}
NO_PROJECTOR = "it has no projector (no tensor is called mm.*), so it is no mmproj"


def other_family(file: ClipFile) -> str | None:
    """Return the family of an mmproj that is none of LLaVA's; None for LLaVA's, and for files of CLIP."""
    if file.architecture not in (None, "clip") or file.module in ("clip", "llava"):
        return None
    return file.family.title if file.family else "a family that is not known here"


def has_projector_type(file: ClipFile) -> Iterator[str]:
    """Without the key llama.cpp refuses a file: https://github.com/ggml-org/llama.cpp/issues/17138."""
    told, kind = file.projector_types, file.kind
    if not told:
        yield f"{PROJECTOR_TYPE} is missing{'; clipgguf upgrade adds it' if kind else ''}"
    elif PROJECTOR_TYPE not in told:
        parts = zip(("vision", "audio", "gen_audio"), PROJECTOR_KEYS, strict=True)
        needed = (KEYS[name].key for part, name in parts if file.tells(part))
        yield from (f"it lacks the metadata {key}" for key in needed if key not in told)
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
        yield from held_to(file, llava_family(file.kind or KINDS[0], is_siglip=False), ("vision",))


def holds_its_table(file: ClipFile) -> Iterator[str]:
    """What the tables of the file's own family have: values that are always written, tensors, and their shapes."""
    family = file.family
    told = [part for part in (family.parts if family else ()) if file.tells(part)]
    if file.module == "clip" or not (file.projector_names or told):
        yield NO_PROJECTOR
    elif family is None:
        yield f"its projector is of no known kind; only {', '.join(kind.name for kind in KINDS)} would be run"
    elif told:
        yield from _has_its_keys(file, family)
        yield from held_to(file, family, told)


def _has_its_keys(file: ClipFile, family: Family) -> Iterator[str]:
    """The metadata of the tables, for all of which but LLaVA's llama.cpp looks in its own way."""
    values = () if file.is_llava else family.values
    keys = {value.name: KEYS[value.name].key for value in values if value.name in KEYS and value.unless is None}
    missing = [name for name, key in keys.items() if key.startswith("clip.") and key not in file.items]
    own = {name for name, modules in _TAKEN.items() if not modules or file.module in modules}
    if needed := [keys[name] for name in missing if name not in own | _IGNORED]:
        yield f"it lacks the metadata {', '.join(needed)}"
    taken = [keys[name] for name in missing if name in own]
    if taken:
        yield Doubt(f"it lacks the metadata {', '.join(taken)}, for which it takes values of its own")


def has_one_width(file: ClipFile) -> Iterator[str]:
    """Of a file for images and sound both give as many values for a token, or llama.cpp refuses it.

    What some blocks give besides stands beside the image's own values (``clip_n_mmproj_embd`` in tools/mtmd/clip.cpp).
    """
    image, sound = file.value("vision.projection"), file.value("audio.projection")
    if file.tells("vision") and file.tells("audio") and image and sound:
        besides = {name.split(".")[2] for name in file.tensors if name.startswith("v.deepstack.")}
        if (wide := image * (1 + len(besides))) != sound:
            yield (
                f"images give {wide:,} values for a token and sounds {sound:,}, where it takes a file for one of them "
                "only; --vision-only and --audio-only write them"
            )


def has_no_known_fault(file: ClipFile) -> Iterator[str]:
    """What llama.cpp's own converter has wrong in files of some families, that can be made right."""
    for line in mended(file).lines:
        yield f"clipgguf upgrade mends it: {line}"


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


def has_types_of_its_graph(file: ClipFile) -> Iterator[str]:
    """Element types of what a graph adds, joins, squares or convolves; of matrices and patches ``has_types`` tells."""
    kernels = _CONVOLUTIONS.get(file.module or "", {})
    for tensor in file.tensors.values() if file.family is not None else ():
        if len(squeeze(tensor.shape)) < 2:
            continue
        taken = next((types for pattern, types in kernels.items() if fnmatchcase(tensor.name, pattern)), ())
        if any(fnmatchcase(tensor.name, pattern) for pattern in _ADDED):
            is_looked_up = tensor.name == _ADDED[0] and file.module in _BY_ROWS
            taken = () if is_looked_up else ("F32",)
        if taken and tensor.dtype not in taken:
            yield f"it takes {' or '.join(taken)} for {tensor.name!r}, not {tensor.dtype}"


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
