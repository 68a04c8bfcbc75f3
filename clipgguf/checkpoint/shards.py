"""The tensors of one file of weights, or of all shards that an index names, by the names that the model gave them."""

import contextlib
import re
from collections.abc import Callable, Collection, Mapping
from itertools import chain
from pathlib import PurePath, PurePosixPath, PureWindowsPath

from clipgguf.checkpoint.not_weights import other_folder
from clipgguf.checkpoint.safetensors import read_safetensors_header
from clipgguf.errors import CheckpointError, collect, first_few, shown
from clipgguf.json_file import read_json_object
from clipgguf.limits import MOST_ENTRIES
from clipgguf.sources import File, SourceIO
from clipgguf.tensor import View

Wanted = Callable[[str], bool]

# What modules around a model put in front of all names: DistributedDataParallel's and torch.compile's.
WRAPPING = ("module.", "_orig_mod.")
# A file name in which nothing has a meaning for a system.
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
# How much of two tensors is compared at a time.
COMPARED_NBYTES = 1 << 19


def read_file(path: File, wanted: Wanted, wrapping: str | None = None) -> dict[str, View]:
    """Return the tensors of a file that are wanted, by name without ``wrapping``, or without what wraps all of them."""
    with contextlib.closing(path.open()) as file:
        if path.name.endswith(".safetensors"):
            found = read_safetensors_header(file)
        else:
            # Only now: the reader of torch's formats takes as long to import as everything else in here.
            from clipgguf.checkpoint.torch_zip import read_torch_file

            found = read_torch_file(file)
    if wrapping is None:
        wrapping = _wrapping([tensor.name for tensor in found])
    return {name: tensor for tensor in found if wanted(name := tensor.name.removeprefix(wrapping))}


def read_shards(index: File, wanted: Wanted) -> dict[str, View]:
    """Return the wanted tensors of all shards that an index names; a shard without any is not even opened.

    Raises CheckpointError when a shard is missing or damaged, lacks a tensor that the index puts there, or has other
    values of one than another shard; ConfigError when the index is no JSON.
    """
    weight_map = _weight_map(index)
    wrapping = _wrapping(weight_map)
    files = {name: file for wrapped, file in weight_map.items() if wanted(name := wrapped.removeprefix(wrapping))}
    _check_presence(index, files)
    # As paths, among which "x" and "./x" are one.
    paths = {name: index.folder.file(PurePath(file).as_posix()) for name, file in files.items()}
    index.folder.expect(dict.fromkeys(path.name for path in paths.values()))
    problems: list[str] = []
    shards: dict[File, dict[str, View]] = {}
    for path in dict.fromkeys(paths.values()):
        with collect(problems):
            shards[path] = read_file(path, wanted, wrapping)
        if sum(map(len, shards.values())) > MOST_ENTRIES:
            raise CheckpointError(f"{index}: its shards have more than {MOST_ENTRIES:,} tensors, no model has as many")
    CheckpointError.raise_all(problems)
    lacking = [name for name, path in paths.items() if name not in shards[path]]
    CheckpointError.raise_all(
        first_few(lacking, lambda name: f"{paths[name]}: lacks tensor {name!r}, which {index.name} puts there")
    )
    # transformers takes what a shard has, whether or not the index names it.
    return {**_merged(shards.values()), **{name: shards[path][name] for name, path in paths.items()}}


def _wrapping(names: Collection[str]) -> str:
    """Return what modules around the model have put in front of all names."""
    prefix = ""
    while names and (more := next((w for w in WRAPPING if all(n.startswith(prefix + w) for n in names)), None)):
        prefix += more
    return prefix


def _weight_map(index: File) -> dict[str, str]:
    """Return the file of each tensor that an index names."""
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: weight_map is missing, empty or no object (tensor name to file name)")
    outside = [name for name, file in weight_map.items() if not _stays_inside(file)]
    what = "which is no file name inside the directory"
    CheckpointError.raise_all(
        first_few(outside, lambda name: f"{index}: puts tensor {name!r} into {shown(weight_map[name])}, {what}")
    )
    return weight_map


def _stays_inside(file: object) -> bool:
    """Return whether a file name of an index, by either system's rules, cannot lead out of the directory."""
    # Symbolic links are followed all the same: a Hugging Face cache consists of them.
    if not isinstance(file, str) or not file or "\0" in file:
        return False
    if _PLAIN_NAME.fullmatch(file):
        return True
    return not any(path.anchor or ".." in path.parts for path in (PurePosixPath(file), PureWindowsPath(file)))


def _check_presence(index: File, files: Mapping[str, str]) -> None:
    """Raise CheckpointError for shards that are not there, before any is opened."""
    missing = [file for file in dict.fromkeys(files.values()) if file not in index.folder]
    problems = [*first_few(missing, lambda file: f"{index.folder.name_of(file)}: is missing, {index.name} names it")]
    if missing and (what := other_folder(index.folder)):
        problems.insert(0, f"{index.folder}: {what}")
    CheckpointError.raise_all(problems)


def _merged(shards: Collection[Mapping[str, View]]) -> dict[str, View]:
    """Return the tensors of all shards; CheckpointError when two have one of a name and it is not the same."""
    tensors: dict[str, View] = {}
    problems: list[str] = []
    for name, tensor in chain.from_iterable(shard.items() for shard in shards):
        other = tensors.setdefault(name, tensor)
        # Which of them is meant, nothing says; with tied weights it does not matter.
        if other is not tensor and not _is_same(other, tensor):
            where = f"{other.file}: tensor {other.name!r} stands in {tensor.file}, too, with other values"
            problems.append(f"{where}; it should stand in one shard, or be the same in both")
    CheckpointError.raise_all(first_few(problems, str))
    return tensors


def _is_same(one: View, other: View) -> bool:
    """Return whether two tensors have the same dtype, shape and bytes, of which few are in memory at a time."""
    # With strides, what lies between the elements is compared, too.
    if (one.dtype, one.shape, one.strides) != (other.dtype, other.shape, other.strides):
        return False
    with contextlib.closing(one.file), contextlib.closing(other.file):
        for start in range(0, one.extent, COMPARED_NBYTES):
            size = min(COMPARED_NBYTES, one.extent - start)
            parts = [SourceIO(tensor.file, tensor.offset + start).read(size) for tensor in (one, other)]
            if parts[0] != parts[1]:
                return False
    return True
