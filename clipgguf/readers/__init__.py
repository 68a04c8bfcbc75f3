"""Who can read a CLIP GGUF file: what clip.cpp, PowerInfer and llama.cpp ask of one.

A demand (``clipgguf.readers.demands``) yields a reason for every way in which a reader fails on a file, or computes
something else than what the file means, and a doubt for what the file does not tell. A bug of a reader that no file can
avoid, such as llama.cpp's place for the class token (https://github.com/ggml-org/llama.cpp/issues/25814), is no reason.

llama.cpp may run a file that this says no to where a tensor is missing that its graph does not use, or not for every
picture: DeepSeek-OCR-2's queries for tiles, Gemma 3n's table of hard tokens. Without them it is no whole file.

Sources: monatis/clip.cpp, ``clip.cpp`` (f4ee24b); SJTU-IPADS/PowerInfer, ``examples/llava/clip.cpp`` (d3ebd7c);
ggml-org/llama.cpp, ``tools/mtmd/clip.cpp`` and ``tools/mtmd/models/llava.cpp``. ``tests/test_readers.py`` and
``test_readers_families.py`` compare the last with what llama.cpp does.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from gguf import GGMLQuantizationType

from clipgguf.clip_file import ClipFile
from clipgguf.element_types import CLIP_CPP_TYPES
from clipgguf.families.llava_projectors import PROJECTOR_PREFIX
from clipgguf.readers import demands, mmproj
from clipgguf.readers.demands import Doubt

_T = GGMLQuantizationType

_TOWER = ("width", "ffn", "projection", "heads", "epsilon", "blocks")
# Each reader asks for all of these, also for those that it does not use.
VISION = tuple(f"vision.{name}" for name in ("image", "patch", *_TOWER, "mean", "std"))
AUDIO = tuple(f"audio.{name}" for name in (*_TOWER, "mel_bins"))
TEXT = tuple(f"text.{name}" for name in ("positions", *_TOWER, "tokens"))
# The older two print file_type and description while they load.
OLD = ("file_type", "description", "has_text", "has_vision", "gelu")
# What llama.cpp takes without: a wrong type aborts it all the same.
OPTIONAL = (
    *("name", "description", "has_vision", "has_audio", "has_gen_audio", "gelu", "silu", "projector"),
    "audio.projector",
    *(f"vision.{name}" for name in ("projector", "feature_layer", "pinpoints", "merge_type")),
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
    """Whether a reader loads a file and computes what it means (None: not known here), and the reasons why not."""

    reader: str
    reads: bool | None
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Reader:
    """A program that loads CLIP GGUF files, and what yields all that keeps it from one."""

    name: str
    demands: Callable[[ClipFile], Iterator[str]]

    def verdict(self, file: ClipFile) -> Verdict:
        """Hear all demands: whatever speaks against a file decides, doubts only where nothing does."""
        found = list(self.demands(file))
        if against := tuple(reason for reason in found if not isinstance(reason, Doubt)):
            return Verdict(self.name, False, against)
        return Verdict(self.name, None if found else True, tuple(map(str, found)))


def clip_cpp(file: ClipFile) -> Iterator[str]:
    """What keeps clip.cpp from a file."""
    if other := mmproj.other_family(file):
        yield f"it is an mmproj of {other}; clip.cpp reads CLIP's own files only"
        return
    yield from demands.has_keys(file, OLD)
    yield from demands.has_keys(file, TEXT, "text")
    yield from demands.has_keys(file, VISION, "vision")
    yield from demands.has_file_type(file, OLD_FILE_TYPES)
    yield from demands.has_tensor_count(file, CLIP_CPP_SCRATCH)
    yield from demands.has_tokens(file, CLIP_CPP_TOKENS)
    for demand in (demands.has_sizes, demands.holds_clip, demands.has_projection_dim):
        yield from demand(file, "text")
        yield from demand(file, "vision")
    yield from demands.has_scratch(file, CLIP_CPP_SCRATCH)
    prefixes = ("t.", "v.", "text_projection.weight", "visual_projection.weight")
    yield from demands.has_types(file, CLIP_CPP_TYPES, OLD_KERNELS, prefixes)


def powerinfer(file: ClipFile) -> Iterator[str]:
    """What keeps PowerInfer from a file."""
    if other := mmproj.other_family(file):
        yield f"it is an mmproj of {other}; PowerInfer reads LLaVA's only"
        return
    yield from demands.has_keys(file, (*OLD, "has_llava"))
    yield from demands.has_keys(file, VISION, "vision")
    yield from demands.has_flag(file, "has_text", False)
    yield from demands.has_flag(file, "has_vision", True)
    yield from demands.has_flag(file, "has_llava", True)
    yield from demands.has_file_type(file, OLD_FILE_TYPES)
    yield from demands.has_sizes(file, "vision")
    yield from mmproj.holds_llava(file, ("mlp",))
    yield from mmproj.runs_in_powerinfer(file, POWERINFER_MOST_BLOCKS)
    yield from mmproj.has_room(file, POWERINFER_MOST_BLOCKS)
    yield from demands.has_types(file, POWERINFER_TYPES, OLD_KERNELS, ("v.", PROJECTOR_PREFIX))


def llama_cpp(file: ClipFile) -> Iterator[str]:
    """What keeps llama.cpp from a file; it reads other families' files, too, by rules that are not here."""
    if file.why_not_known is not None:
        yield Doubt(file.why_not_known)
        return
    whole = file
    for part in file.family.unread if file.family is not None else ():
        file = file.without(part)
    parts = [part for part in (file.family.parts if file.family else ()) if part != "text"] or ["vision"]
    yield from demands.has_keys(file, [f"has_{part}" for part in parts])
    yield from demands.has_key_types(whole, OPTIONAL, known=(*VISION, *AUDIO))
    for part, keys in (("vision", VISION), ("audio", AUDIO)):
        yield from demands.has_keys(file, keys, part)
    speaks = file.family is not None and any(value.name == "has_gen_audio" for value in file.family.values)
    for flag in (*(f"has_{part}" for part in parts), *(("has_gen_audio",) if speaks else ())):
        yield from demands.has_flag(file, flag, True)
    yield from mmproj.has_projector_type(file)
    yield from mmproj.has_one_width(file)
    for part in parts:
        yield from demands.has_sizes(file, part)
    yield from mmproj.has_no_known_fault(file)
    yield from mmproj.holds_its_table(file)
    yield from mmproj.has_grid(file)
    yield from mmproj.runs_in_llama_cpp(file)
    yield from mmproj.has_no_final_norm(file)
    yield from demands.has_one_activation(file)
    yield from mmproj.has_pinpoints(file)
    yield from demands.has_types(file, LLAMA_CPP_TYPES, KERNELS, ("v.", "a.", PROJECTOR_PREFIX, "resampler."))
    yield from mmproj.has_types_of_its_graph(file)
    yield from demands.is_contiguous(file)


READERS = (Reader("clip.cpp", clip_cpp), Reader("PowerInfer", powerinfer), Reader("llama.cpp", llama_cpp))


def verdicts(file: ClipFile) -> tuple[Verdict, ...]:
    """Return what each reader makes of a file."""
    return tuple(reader.verdict(file) for reader in READERS)
