"""Who can read a CLIP GGUF file: what clip.cpp, PowerInfer and llama.cpp ask of one, as tables.

A rule (``clipgguf.readers.rules``) yields a reason for every way in which a reader fails on a file, or computes
something else than what the file means, and a doubt for what the file does not tell. What is wrong in a reader and no
file can mend, as llama.cpp's place for the class token (https://github.com/ggml-org/llama.cpp/issues/25814), is no
reason.

Sources: monatis/clip.cpp, ``clip.cpp`` (f4ee24b); SJTU-IPADS/PowerInfer, ``examples/llava/clip.cpp`` (d3ebd7c);
ggml-org/llama.cpp, ``tools/mtmd/clip.cpp`` and ``tools/mtmd/models/llava.cpp``. ``tests/test_readers.py`` compares the
last with what llama.cpp does.
"""

from dataclasses import dataclass

from gguf import GGMLQuantizationType, GGUFValueType

from clipgguf.contents import FEATURE_LAYER, PROJECTOR_TYPE, VISION_PROJECTOR_TYPE, Contents
from clipgguf.element_types import CLIP_CPP_TYPES, PROJECTOR_PREFIX
from clipgguf.families.projectors import KINDS
from clipgguf.names import TEXT, VISION
from clipgguf.readers.rules import (
    Doubt,
    Key,
    Rule,
    has_file_type,
    has_flag,
    has_keys,
    has_no_final_norm,
    has_one_activation,
    has_pinpoints,
    has_projection_dim,
    has_projector,
    has_projector_type,
    has_room,
    has_scratch,
    has_sizes,
    has_tensor_count,
    has_tokens,
    has_tower,
    has_types,
    is_contiguous,
    runs_in_llama_cpp,
    runs_in_powerinfer,
)

_BOOL, _STRING = GGUFValueType.BOOL, GGUFValueType.STRING
_UINT32, _INT32, _FLOAT32 = GGUFValueType.UINT32, GGUFValueType.INT32, GGUFValueType.FLOAT32
_T = GGMLQuantizationType

_TOWER_KEYS = (
    ("embedding_length", _UINT32),
    ("feed_forward_length", _UINT32),
    ("projection_dim", _UINT32),
    ("attention.head_count", _UINT32),
    ("attention.layer_norm_epsilon", _FLOAT32),
    ("block_count", _UINT32),
)
# Each reader asks for all of these, also for those that it does not use.
VISION_KEYS: tuple[Key, ...] = (
    ("clip.vision.image_size", _UINT32, False),
    ("clip.vision.patch_size", _UINT32, False),
    *((f"clip.vision.{key}", value_type, False) for key, value_type in _TOWER_KEYS),
    ("clip.vision.image_mean", _FLOAT32, True),
    ("clip.vision.image_std", _FLOAT32, True),
)
TEXT_KEYS: tuple[Key, ...] = (
    ("clip.text.context_length", _UINT32, False),
    *((f"clip.text.{key}", value_type, False) for key, value_type in _TOWER_KEYS),
    ("tokenizer.ggml.tokens", _STRING, True),
)
# The older two print file_type and description while they load.
OLD_KEYS: tuple[Key, ...] = (
    ("general.file_type", _UINT32, False),
    ("general.description", _STRING, False),
    ("clip.has_text_encoder", _BOOL, False),
    ("clip.has_vision_encoder", _BOOL, False),
    ("clip.use_gelu", _BOOL, False),
)
POWERINFER_KEYS: tuple[Key, ...] = (*OLD_KEYS, ("clip.has_llava_projector", _BOOL, False))
LLAMA_CPP_KEYS: tuple[Key, ...] = (("clip.has_vision_encoder", _BOOL, False),)
# What llama.cpp takes without: a wrong type aborts it all the same.
LLAMA_CPP_OPTIONAL: tuple[Key, ...] = (
    ("general.name", _STRING, False),
    ("general.description", _STRING, False),
    ("clip.has_audio_encoder", _BOOL, False),
    (PROJECTOR_TYPE, _STRING, False),
    (VISION_PROJECTOR_TYPE, _STRING, False),
    ("clip.use_gelu", _BOOL, False),
    ("clip.use_silu", _BOOL, False),
    (FEATURE_LAYER, _INT32, True),
    ("clip.vision.image_grid_pinpoints", _INT32, True),
    ("clip.vision.mm_patch_merge_type", _STRING, False),
)

# The numbers of tensors for which clip.cpp has sizes of buffers (get_mem_req_by_size), and the MiB that it then has to
# compute in; it exits on all others.
CLIP_CPP_SCRATCH = {197: 96, 200: 96, 389: 60, 392: 192, 397: 96, 520: 144, 589: 192, 909: 144}
# PowerInfer's graph has room for 2,048 tensors (GGML_DEFAULT_GRAPH_SIZE), and a block takes about 52.
POWERINFER_MOST_BLOCKS = 39
# clip.cpp wraps every text in the tokens 49406 and 49407, whatever the vocabulary.
CLIP_CPP_TOKENS = 49408
# The values of general.file_type that the older two have names for (get_ftype); they are ggml's numbers of tensor
# types, not those that llama.cpp counts files by, but any other ends the program.
OLD_FILE_TYPES = (0, 1, 2, 3, 6, 7, 8)
POWERINFER_TYPES = CLIP_CPP_TYPES | {_T.Q2_K, _T.Q3_K, _T.Q4_K, _T.Q5_K, _T.Q6_K}
# ggml of today multiplies matrices of every type but these.
LLAMA_CPP_TYPES = frozenset(_T) - {_T.F64, _T.I8, _T.I16, _T.I32, _T.I64, _T.Q8_1, _T.Q8_K}
# The kernels that ggml's convolution takes, then and now.
OLD_KERNELS = frozenset({_T.F16})
KERNELS = frozenset({_T.F16, _T.F32, _T.BF16})


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a reader loads a file and computes what it means, and the ``reasons`` why not.

    ``reads`` is None where that is not known here; the reasons then say why.
    """

    reader: str
    reads: bool | None
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Reader:
    """A program that loads CLIP GGUF files, and what it asks of them.

    ``reads_others`` are those that read other families' files, too, by rules that are not here.
    """

    name: str
    rules: tuple[Rule, ...]
    reads_others: bool = False

    def verdict(self, contents: Contents) -> Verdict:
        """Apply all rules: whatever speaks against a file decides, doubts only where nothing does."""
        if self.reads_others and (other := contents.other_family) is not None:
            return Verdict(self.name, None, (other,))
        found = [reason for rule in self.rules for reason in rule(contents)]
        if against := tuple(reason for reason in found if not isinstance(reason, Doubt)):
            return Verdict(self.name, False, against)
        return Verdict(self.name, None if found else True, tuple(map(str, found)))


READERS = (
    Reader(
        "clip.cpp",
        (
            has_keys(OLD_KEYS),
            has_keys(TEXT_KEYS, tower=TEXT),
            has_keys(VISION_KEYS, tower=VISION),
            has_file_type(OLD_FILE_TYPES),
            has_tensor_count(tuple(CLIP_CPP_SCRATCH)),
            has_tokens(CLIP_CPP_TOKENS),
            has_sizes(TEXT),
            has_sizes(VISION),
            has_tower(TEXT, with_final=True),
            has_tower(VISION, with_final=True),
            has_projection_dim(TEXT),
            has_projection_dim(VISION),
            has_scratch(CLIP_CPP_SCRATCH),
            has_types(CLIP_CPP_TYPES, kernels=OLD_KERNELS, prefixes=("t.", "v.", TEXT.projection, VISION.projection)),
        ),
    ),
    Reader(
        "PowerInfer",
        (
            has_keys(POWERINFER_KEYS),
            has_keys(VISION_KEYS, tower=VISION),
            has_flag("clip.has_text_encoder", False),
            has_flag("clip.has_vision_encoder", True),
            has_flag("clip.has_llava_projector", True),
            has_file_type(OLD_FILE_TYPES),
            has_sizes(VISION),
            has_tower(VISION, with_final=False),
            has_projector("mlp"),
            runs_in_powerinfer(POWERINFER_MOST_BLOCKS),
            has_room(POWERINFER_MOST_BLOCKS),
            has_types(POWERINFER_TYPES, kernels=OLD_KERNELS, prefixes=("v.", PROJECTOR_PREFIX)),
        ),
    ),
    Reader(
        "llama.cpp",
        (
            has_keys(LLAMA_CPP_KEYS, LLAMA_CPP_OPTIONAL),
            has_keys(VISION_KEYS, tower=VISION),
            has_flag("clip.has_vision_encoder", True),
            has_projector_type,
            has_projector(*(kind.name for kind in KINDS)),
            has_sizes(VISION),
            has_tower(VISION, with_final=False, modern=True),
            runs_in_llama_cpp,
            has_no_final_norm,
            has_one_activation,
            has_pinpoints,
            has_types(LLAMA_CPP_TYPES, kernels=KERNELS, prefixes=("v.", PROJECTOR_PREFIX)),
            is_contiguous,
        ),
        reads_others=True,
    ),
)


def verdicts(contents: Contents) -> tuple[Verdict, ...]:
    """Return what each reader makes of a file."""
    return tuple(reader.verdict(contents) for reader in READERS)
