"""What is measured, as a table: programs on a checkpoint, and the limits that clipgguf is held to.

A row's first program is clipgguf. It and those that it is compared with run in turn, each as often as the others. A new
row is a line or two of data here. In the words of a command these stand for what is not known before:

    {python}, {torch}       the interpreter that runs the benchmarks, and that with torch and transformers, --reference
    {checkpoint}, {shards}  the checkpoint's directory, and its files of weights, a word for each
    {out}, {written}        an empty directory for one file, and the file that the row's first program wrote
    {model}                 OWNER/NAME of the checkpoint, on the hub of a row that has a line
"""

from dataclasses import dataclass, replace

from benchmarks.checkpoints import Checkpoint, FarCheckpoint, ReadyFile
from tests.checkpoints import REAL, towers
from tests.family_models import INTERN_VIT_6B, QWEN2_5_VL_7B
from tests.line import Line

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Program:
    """What runs: a command, and what the table calls it.

    Programs that write a file of the same name from the same checkpoint must write the same bytes.
    """

    label: str
    command: tuple[str, ...]

    @property
    def copies(self) -> bool:
        """Whether it copies the first program's file, and so does no work of its own."""
        return "{written}" in self.command

    @property
    def needs_hub(self) -> bool:
        """Whether it needs the extra ``hub``."""
        return any(word in ("{model}", "hf://{model}") for word in self.command)


@dataclass(frozen=True, slots=True)
class Entry:
    """A program that takes part in a row, on the row's checkpoint if no other is given.

    ``at_most`` is the limit: clipgguf's median time divided by this program's. None: shown for comparison only.
    """

    program: Program
    at_most: float | None = None
    checkpoint: Checkpoint | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One row: ``program`` on ``checkpoint``, and what it is compared with.

    ``memory`` is the limit on its peak of resident memory in MiB; with ``per_gb`` each time is divided by the bytes of
    the program's own checkpoint. ``runs`` is how often each program runs, after one run that is not counted if
    ``warm_up``. ``pictures`` names the pictures that show the row: "memory" (over time), "time" (by size). With a
    ``line`` a hub on this machine serves the checkpoints behind it, over TLS if ``tls``.
    """

    name: str
    checkpoint: Checkpoint | None
    program: Program
    against: tuple[Entry, ...]
    memory: int | None = 64
    per_gb: bool = False
    runs: int = 5
    warm_up: bool = True
    pictures: tuple[str, ...] = ()
    line: Line | None = None
    tls: bool = False

    @property
    def entries(self) -> tuple[Entry, ...]:
        """All that take part, each with its checkpoint; the limit of the first is on its peak in bytes."""
        first = Entry(self.program, None if self.memory is None else self.memory * MIB, self.checkpoint)
        return (first, *(replace(entry, checkpoint=entry.checkpoint or self.checkpoint) for entry in self.against))

    def quick(self) -> "Row":
        """Return the row with small checkpoints and without limits, in which each program runs once."""
        small = None if self.checkpoint is None else self.checkpoint.quick()
        against = (Entry(e.program, None, e.checkpoint and e.checkpoint.quick()) for e in self.against)
        return replace(self, checkpoint=small, against=tuple(against), memory=None, runs=1, warm_up=False)


def clipgguf(outtype: str, checkpoint: str = "{checkpoint}") -> Program:
    """Return our conversion to an element type."""
    options = ("--outtype", outtype, "--quiet")
    return Program("clipgguf", ("{python}", "-m", "clipgguf", checkpoint, "-o", "{out}", *options))


def llama_cpp(outtype: str) -> Program:
    """Return llama.cpp's own conversion to an element type."""
    return Program("llama.cpp", ("{torch}", "-m", "tests.llama_cpp_converter", "{checkpoint}", "{out}", outtype))


def llama_quantize(model: Checkpoint, kind: str, at_most: float) -> Entry:
    """Return llama.cpp's quantization of a model's ready GGUF file; ``python -m tests.llama_quantize`` builds it."""
    program = Program("llama-quantize", ("llama-quantize", "{shards}", "{out}/llama-quantize.gguf", kind))
    return Entry(program, at_most, ReadyFile(model.name, model.model, model.dtype, model.small))


def shell(label: str, *steps: str) -> Program:
    """Return steps of the shell on $written, $out and the shards, "$@"."""
    script = "written=$1 out=$2; shift 2; " + " && ".join(steps)
    return Program(label, ("sh", "-c", script, "sh", "{written}", "{out}", "{shards}"))


# Reading the checkpoint and copying the finished file is the least that any converter must do. Our file is on disk when
# the program ends, cp's only after a sync. Where file systems share blocks (btrfs, XFS, APFS), cp may cost nothing.
CAT, CP = 'cat "$@" > /dev/null', 'cp "$written" "$out"'
SYNC = '{{ sync -d "$out"/* 2> /dev/null || sync; }}'
TORCH = Program("torch reference, f16", ("{torch}", "-m", "tests.torch_reference", "{checkpoint}", "{out}"))
VERSION = Program("clipgguf --version", ("{python}", "-m", "clipgguf", "--version"))
IMPORT_TYPER = Program("import typer", ("{python}", "-c", "import typer"))
F16, Q8_0, Q4_0 = map(clipgguf, ("f16", "q8_0", "q4_0"))


def cat_cp(at_most: float | None = None) -> tuple[Entry, ...]:
    """Return cat and cp, and the same with a sync, which is shown for comparison only."""
    return Entry(shell("cat + cp", CAT, CP), at_most), Entry(shell("cat + cp + sync", CAT, CP, SYNC))


# A hub's file by itself: one answer, whose bytes are thrown away. And what is done without ranges: the whole checkpoint
# is loaded, and takes its own size on the disk besides the file that is made of it.
READ = """import os, sys, urllib.request
with urllib.request.urlopen(os.environ["PLAIN_WEB"] + sys.argv[1]) as answer, open(sys.argv[2], "w"):
    while answer.read(1 << 18): pass"""
LINE_ALONE = Program("the line alone", ("{python}", "-c", READ, "/{model}/model.safetensors", "{out}/nothing"))
DOWNLOAD = '"$1" -m huggingface_hub.cli.hf download "$2" --local-dir "$3/model"'
CONVERT = '"$1" -m clipgguf "$3/model" -o "$3/downloaded.gguf" --outtype f16 --quiet && rm -r "$3/model"'
FIRST_LOADED = ("sh", "-c", f"{DOWNLOAD} && {CONVERT}", "sh", "{python}", "{model}", "{out}")
FAR_F16 = clipgguf("f16", "hf://{model}")
LINE = Line(latency=0.05, bandwidth=100e6)

SIZES = ("vit-b-32", "vit-l-14-336", "vit-h-14", "vit-bigg-14")
VIT_B, VIT_L, VIT_H, BIGG = (Checkpoint(name, REAL[name]) for name in SIZES)
VIT_L_BF16, BIGG_F16 = replace(VIT_L, dtype="BF16"), replace(BIGG, dtype="F16")
# No CLIP model has so many tensors, but clipgguf does not know that. Both are 0.38 GB.
MANY_SMALL = Checkpoint("many-small-tensors", towers(112, 312, 313), small=towers(8, 3, 3))
FEW_LARGE = Checkpoint("few-large-tensors", towers(1984, 1, 1))
FAR_VIT_L = FarCheckpoint("vit-l-14-336", REAL["vit-l-14-336"])
QWEN, INTERN = Checkpoint("Qwen2.5-VL-7B", QWEN2_5_VL_7B, "BF16"), Checkpoint("InternVL2.5-78B", INTERN_VIT_6B, "BF16")

ROWS = (
    Row("start-up", None, VERSION, (Entry(IMPORT_TYPER, 1.5),), memory=None, runs=20),
    Row("ViT-B/32 f32 to f16", VIT_B, F16, (Entry(TORCH), *cat_cp()), pictures=("time",)),
    Row("ViT-L/14-336 f32 to f16", VIT_L, F16, (Entry(TORCH, 0.20), *cat_cp(1.25)), pictures=("memory", "time")),
    Row("ViT-L/14-336 bf16 to f16", VIT_L_BF16, F16, cat_cp(1.25)),
    Row("ViT-L/14-336 f32 to q8_0", VIT_L, Q8_0, (Entry(TORCH, 0.12), llama_quantize(VIT_L, "Q8_0", 0.5))),
    Row("ViT-L/14-336 f32 to q4_0", VIT_L, Q4_0, (Entry(TORCH, 0.12), llama_quantize(VIT_L, "Q4_0", 0.9))),
    Row("ViT-H/14 f32 to f16", VIT_H, F16, (Entry(TORCH), *cat_cp()), runs=3, pictures=("time",)),
    Row("ViT-bigG/14 f16 to f16", BIGG_F16, F16, (Entry(shell("cp", CP), 1.10), Entry(shell("cp + sync", CP, SYNC)))),
    Row("ViT-bigG/14 f32 to f16", BIGG, F16, (Entry(TORCH, 0.35), *cat_cp()), runs=3, pictures=("time",)),
    Row("ViT-bigG/14, time per GB", BIGG, F16, (Entry(F16, 1.3, VIT_L),), per_gb=True, runs=3),
    Row("10,000 small tensors", MANY_SMALL, F16, (Entry(F16, 2.0, FEW_LARGE),)),
    *(
        Row(f"{model.name} to {to}", model, clipgguf(to), (Entry(llama_cpp(to), 0.2), *cp), runs=runs)
        for model, runs in ((QWEN, 5), (INTERN, 2))
        for to, cp in (
            ("bf16", (Entry(shell("cp + sync", CP, SYNC), 1.25),)),
            ("f16", ()),
            ("q8_0", (llama_quantize(model, "Q8_0", 0.5),)),
        )
    ),
    # 1.11: at least 0.9 of the line's rate.
    Row(
        "ViT-L/14-336 over 100 MB/s and 50 ms",
        FAR_VIT_L,
        FAR_F16,
        (Entry(LINE_ALONE, 1.11), Entry(Program("hf download, then clipgguf", FIRST_LOADED))),
        memory=80,
        runs=3,
        warm_up=False,
        line=LINE,
    ),
    Row(
        "ViT-L/14-336 over 100 MB/s and 50 ms, TLS",
        FAR_VIT_L,
        FAR_F16,
        (),
        memory=80,
        runs=3,
        warm_up=False,
        line=LINE,
        tls=True,
    ),
)
