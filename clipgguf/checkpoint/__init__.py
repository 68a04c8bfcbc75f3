"""Read checkpoints: which tensors there are, and where their bytes lie."""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from clipgguf.checkpoint.safetensors import read_safetensors_header
from clipgguf.checkpoint.tensors import MappedRange, SourceFile, SourceTensor
from clipgguf.errors import CheckpointError
from clipgguf.json_file import read_json_object

__all__ = ["Checkpoint", "MappedRange", "SourceFile", "SourceTensor"]

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The tensors of a model directory by name, whatever files they are spread over."""

    directory: Path
    tensors: dict[str, SourceTensor]

    @classmethod
    def open(cls, directory: Path) -> "Checkpoint":
        """Read the headers of a directory's safetensors file, or of the shards that its index names.

        Raises CheckpointError when there is none, or when a file is missing or damaged; ConfigError when the
        index is no JSON.
        """
        index = directory / INDEX_FILE
        single = directory / SINGLE_FILE
        if index.exists():
            return cls(directory, _read_shards(index))
        if single.exists():
            return cls(directory, {tensor.name: tensor for tensor in read_safetensors_header(single)})
        raise CheckpointError(f"{directory}: has neither {SINGLE_FILE} nor {INDEX_FILE}")


def _read_shards(index: Path) -> dict[str, SourceTensor]:
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: weight_map is missing, empty or no object (tensor name to file name)")
    problems = [
        f"{index}: puts tensor {name!r} into {file!r}, which is no file name inside the directory"
        for name, file in weight_map.items()
        if not _stays_inside(file)
    ]
    CheckpointError.raise_all(problems)
    shards: dict[str, dict[str, SourceTensor]] = {}
    for file in dict.fromkeys(weight_map.values()):
        try:
            shards[file] = {tensor.name: tensor for tensor in read_safetensors_header(index.parent / file)}
        except CheckpointError as e:
            problems.extend(e.problems)
    CheckpointError.raise_all(problems)
    problems.extend(
        f"{index.parent / file}: lacks tensor {name!r}, which {index.name} puts there"
        for name, file in weight_map.items()
        if name not in shards[file]
    )
    CheckpointError.raise_all(problems)
    return {name: shards[file][name] for name, file in weight_map.items()}


def _stays_inside(file: object) -> bool:
    """Return whether a file name of an index, by either system's rules, cannot lead out of the directory."""
    # Symbolic links are followed all the same: a Hugging Face cache consists of them.
    if not isinstance(file, str) or not file or "\0" in file:
        return False
    return not any(path.anchor or ".." in path.parts for path in (PurePosixPath(file), PureWindowsPath(file)))
