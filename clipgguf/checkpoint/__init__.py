"""Read checkpoints: which tensors there are, and where their bytes lie."""

from dataclasses import dataclass

from clipgguf.checkpoint.not_weights import instead_of_weights
from clipgguf.checkpoint.shards import Wanted, read_file, read_shards
from clipgguf.errors import CheckpointError
from clipgguf.sources import File, Folder
from clipgguf.tensor import View

__all__ = ["Checkpoint", "Wanted"]

# Where a directory's weights are, the first that exists: an index of shards, or a single file.
CONTAINERS = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
    "consolidated.safetensors.index.json",
    "consolidated.safetensors",
)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The tensors of a folder (or of a file) by name, whatever files they are spread over.

    A prefix that modules around the model put in front of all names ("module.") is not a part of them.
    """

    folder: Folder
    container: File  # An index of shards, or the one file with all tensors.
    tensors: dict[str, View]

    @property
    def is_safetensors(self) -> bool:
        """Whether the weights are in safetensors files and not in torch's."""
        return ".safetensors" in self.container.name

    @classmethod
    def find(cls, directory: Folder, variant: str | None = None) -> File:
        """Return the index or single file of a directory's weights; opens nothing.

        ``variant`` is what transformers and diffusers put into the names: "fp16" for model.fp16.safetensors.
        Raises CheckpointError when there is none.
        """
        names = CONTAINERS if variant is None else [n for c in CONTAINERS for n in _variant_names(c, variant)]
        for name in names:
            if name in directory:
                return directory.file(name)
        missing = f"has no weights, should have one of {', '.join(names)}"
        if plain := next((name for name in CONTAINERS if name in directory), None):
            raise CheckpointError(f"{directory}: {missing}; without --variant {plain} is taken")
        raise CheckpointError(f"{directory}: {instead_of_weights(directory, missing)}")

    @classmethod
    def others(cls, container: File) -> list[str]:
        """Return the names of the other containers that stand beside one, whose weights are not read."""
        return [name for name in CONTAINERS if name != container.name and name in container.folder]

    @classmethod
    def open(cls, directory: Folder, wanted: Wanted = lambda name: True, variant: str | None = None) -> "Checkpoint":
        """Read the headers of a directory's weights, as ``open_file`` does; CheckpointError when there are none."""
        return cls.open_file(cls.find(directory, variant), wanted)

    @classmethod
    def open_file(cls, path: File, wanted: Wanted = lambda name: True) -> "Checkpoint":
        """Read the header of a single file of weights, or those of the shards that an index names.

        Only the tensors whose names are ``wanted`` are returned, and a shard without any is not even opened.
        Raises CheckpointError when a file is missing or damaged, ConfigError when the index is no JSON.
        """
        tensors = read_shards(path, wanted) if path.name.endswith(".json") else read_file(path, wanted)
        return cls(path.folder, path, tensors)


def _variant_names(name: str, variant: str) -> list[str]:
    """Return where a variant may stand in a container's name; programs differ on that of an index."""
    stem, _, rest = name.partition(".")
    ours = f"{stem}.{variant}.{rest}"
    return [f"{name.removesuffix('json')}{variant}.json", ours] if name.endswith(".index.json") else [ours]
