"""Read checkpoints: which tensors there are, and where their bytes lie."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from clipgguf.checkpoint.safetensors import read_safetensors_header
from clipgguf.checkpoint.sources import Sources
from clipgguf.checkpoint.tensors import SourceBytes, SourceFile, SourceTensor
from clipgguf.errors import CheckpointError, collect, shown
from clipgguf.json_file import is_present, read_json_object

__all__ = [
    "Checkpoint",
    "SourceBytes",
    "SourceFile",
    "SourceTensor",
    "Sources",
]

# Where a directory's weights are, the first that exists: an index of shards, or a single file.
CONTAINERS = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
)
# A record takes about 500 bytes.
MOST_TENSORS = 200_000

Wanted = Callable[[str], bool]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The tensors of a model directory (or of a file) by name, whatever files they are spread over.

    ``container`` is the file by which they were found: an index of shards, or the one file with all of them.
    """

    directory: Path
    container: Path
    tensors: dict[str, SourceTensor]

    @property
    def is_safetensors(self) -> bool:
        """Whether the weights are in safetensors files and not in torch's."""
        return ".safetensors" in self.container.suffixes

    @classmethod
    def find(cls, directory: Path, variant: str | None = None) -> Path:
        """Return the index or single file of a directory's weights; opens nothing.

        ``variant`` is what transformers and diffusers put into the names: "fp16" for model.fp16.safetensors.
        Raises CheckpointError when there is none.
        """
        names = CONTAINERS if variant is None else [n for c in CONTAINERS for n in _variant_names(c, variant)]
        path = next((directory / name for name in names if is_present(directory / name)), None)
        if path is None:
            raise CheckpointError(f"{directory}: has no weights, should have one of {', '.join(names)}")
        return path

    @classmethod
    def others(cls, container: Path) -> list[str]:
        """Return the names of the other containers that stand beside one, whose weights are not read."""
        return [name for name in CONTAINERS if name != container.name and is_present(container.parent / name)]

    @classmethod
    def open(cls, directory: Path, wanted: Wanted = lambda name: True, variant: str | None = None) -> "Checkpoint":
        """Read the headers of a directory's weights: one file, or the shards that an index names.

        Only the tensors whose names are ``wanted`` are returned, and a shard without any is not even opened.
        Raises CheckpointError when there are no weights, or when a file is missing or damaged; ConfigError when the
        index is no JSON.
        """
        return cls.open_file(cls.find(directory, variant), wanted)

    @classmethod
    def open_file(cls, path: Path, wanted: Wanted = lambda name: True) -> "Checkpoint":
        """Read the header of a single file of weights, or those of the shards that an index names.

        Raises CheckpointError when one is missing or damaged, ConfigError when the index is no JSON.
        """
        tensors = _read_shards(path, wanted) if path.suffix == ".json" else _by_name(path, wanted)
        return cls(path.parent, path, tensors)


def _variant_names(name: str, variant: str) -> list[str]:
    """Return where a variant may stand in a container's name; programs differ on that of an index."""
    stem, _, rest = name.partition(".")
    names = [f"{stem}.{variant}.{rest}"]
    if name.endswith(".index.json"):
        names.insert(0, name.removesuffix("json") + f"{variant}.json")
    return names


def _by_name(path: Path, wanted: Wanted) -> dict[str, SourceTensor]:
    if path.suffix == ".safetensors":
        found = read_safetensors_header(path)
    else:
        # Only now: the reader of torch's formats takes as long to import as everything else in here.
        from clipgguf.checkpoint.torch_zip import read_torch_file

        found = read_torch_file(path)
    return {tensor.name: tensor for tensor in found if wanted(tensor.name)}


def _read_shards(index: Path, wanted: Wanted) -> dict[str, SourceTensor]:
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: weight_map is missing, empty or no object (tensor name to file name)")
    problems = [
        f"{index}: puts tensor {name!r} into {shown(file)}, which is no file name inside the directory"
        for name, file in weight_map.items()
        if not _stays_inside(file)
    ]
    CheckpointError.raise_all(problems)
    # As paths, among which "x" and "./x" are one.
    weight_map = {name: index.parent / file for name, file in weight_map.items() if wanted(name)}
    shards: dict[Path, dict[str, SourceTensor]] = {}
    for file in dict.fromkeys(weight_map.values()):
        with collect(problems):
            shards[file] = _by_name(file, wanted)
        if sum(map(len, shards.values())) > MOST_TENSORS:
            raise CheckpointError(f"{index}: its shards have more than {MOST_TENSORS:,} tensors, no model has as many")
    CheckpointError.raise_all(problems)
    problems.extend(
        f"{file}: lacks tensor {name!r}, which {index.name} puts there"
        for name, file in weight_map.items()
        if name not in shards[file]
    )
    CheckpointError.raise_all(problems)
    # transformers takes what a shard has, whether or not the index names it.
    unnamed = {name: tensor for shard in shards.values() for name, tensor in shard.items()}
    return {**unnamed, **{name: shards[file][name] for name, file in weight_map.items()}}


def _stays_inside(file: object) -> bool:
    """Return whether a file name of an index, by either system's rules, cannot lead out of the directory."""
    # Symbolic links are followed all the same: a Hugging Face cache consists of them.
    if not isinstance(file, str) or not file or "\0" in file:
        return False
    return not any(path.anchor or ".." in path.parts for path in (PurePosixPath(file), PureWindowsPath(file)))
