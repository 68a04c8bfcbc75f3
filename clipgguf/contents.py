"""What a GGUF file of CLIP holds, told from its metadata and from the names and shapes of its tensors."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gguf import GGUFValueType

from clipgguf.checkpoint import SourceTensor
from clipgguf.checkpoint.gguf_file import GGUFFile, MetadataItem
from clipgguf.config import SiglipVisionConfig, TextConfig, VisionConfig
from clipgguf.element_types import PROJECTOR_PREFIX
from clipgguf.families.projectors import KINDS, Kind
from clipgguf.families.towers import KNOWN_TOWERS
from clipgguf.names import TEXT, VISION, Tower

CLASS_EMBEDDING = "v.class_embd"
FEATURE_LAYER = "clip.vision.feature_layer"

# The fields of a tower's configuration whose values the metadata has, by the key after "clip.text." or "clip.vision.".
_SIZES = {
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "block_count": "num_hidden_layers",
    "attention.head_count": "num_attention_heads",
}
_TEXT_SIZES = {**_SIZES, "context_length": "max_position_embeddings"}
_VISION_SIZES = {**_SIZES, "image_size": "image_size", "patch_size": "patch_size"}


@dataclass(frozen=True, slots=True)
class Contents:
    """A GGUF file's metadata by key and its tensors by name, and what follows from them."""

    file: GGUFFile
    items: Mapping[str, MetadataItem]
    tensors: Mapping[str, SourceTensor]

    @classmethod
    def of(cls, file: GGUFFile) -> "Contents":
        """Look at a file."""
        return cls(file, {item.key: item for item in file.metadata}, {tensor.name: tensor for tensor in file.tensors})

    def value(self, key: str, value_type: GGUFValueType) -> Any:
        """Return the single value of a metadata key, or None where it is missing or of another type."""
        item = self.items.get(key)
        return item.value if item is not None and item.value_type == value_type and not item.is_array else None

    def array(self, key: str, value_type: GGUFValueType) -> tuple[Any, ...]:
        """Return the values of a metadata key, none where it is missing or no array of that type."""
        item = self.items.get(key)
        return tuple(item.value) if item is not None and item.value_type == value_type and item.is_array else ()

    def has(self, tower: Tower) -> bool:
        """Return whether tensors of a tower are there."""
        return any(name.startswith(tower.gguf_prefix) for name in self.tensors)

    def blocks_stored(self, tower: Tower) -> int:
        """Return of how many of a tower's blocks there are tensors."""
        prefix = f"{tower.gguf_prefix}blk."
        return len({name.split(".")[2] for name in self.tensors if name.startswith(prefix)})

    def blocks_told(self, tower: Tower) -> int | None:
        """Return how many blocks the metadata says that a tower has, or None where it does not."""
        count: int | None = self.value(f"clip.{_key_part(tower)}.block_count", GGUFValueType.UINT32)
        return count

    @property
    def projector_names(self) -> frozenset[str]:
        """The names of the projector's tensors."""
        return frozenset(name for name in self.tensors if name.startswith(PROJECTOR_PREFIX))

    @property
    def projector_kind(self) -> Kind | None:
        """Which projector the tensors are; None without one, or when it is none that readers know."""
        return next((kind for kind in KINDS if kind.gguf_names == self.projector_names), None)

    @property
    def is_siglip(self) -> bool:
        """Whether the vision tower is SigLIP's, which has no class token."""
        return CLASS_EMBEDDING not in self.tensors

    @property
    def feature_layers(self) -> tuple[int, ...]:
        """The layers whose features the projector takes, where the file says it; readers ignore negative ones."""
        return tuple(sorted({layer for layer in self.array(FEATURE_LAYER, GGUFValueType.INT32) if layer >= 0}))

    @property
    def blocks_wanted(self) -> int | None:
        """How many of the vision tower's blocks are meant to run; None where the metadata does not say how many it has.

        All of them run in CLIP. For a projector they are those before the features that it takes.
        """
        count = self.blocks_told(VISION)
        if count is None or not self.projector_names:
            return count
        if self.feature_layers:
            return self.feature_layers[-1]
        # The scripts leave out the last block, so that all that are stored should run. A file that has every block of
        # its tower was made for readers that leave out the last one themselves.
        width = self.value("clip.vision.embedding_length", GGUFValueType.UINT32)
        is_whole = any((c.hidden_size, c.num_hidden_layers) == (width, count) for c in KNOWN_TOWERS.values())
        return count - 1 if is_whole else count

    def text_config(self) -> TextConfig | None:
        """Return the text tower's sizes; None where the metadata lacks one, or has one that is none."""
        sizes = self._sizes("text", _TEXT_SIZES)
        # The vocabulary may be shorter than the embedding that was made for it.
        embedding = self.tensors.get("t.token_embd.weight")
        rows = embedding.shape[0] if embedding is not None and len(embedding.shape) == 2 else 0
        return None if sizes is None else TextConfig(**sizes, vocab_size=rows)

    def vision_config(self, is_siglip: bool) -> VisionConfig | None:
        """Return the vision tower's sizes; None where the metadata lacks one, or has one that is none."""
        sizes = self._sizes("vision", _VISION_SIZES)
        if sizes is None:
            return None
        return SiglipVisionConfig(**sizes) if is_siglip else VisionConfig(**sizes)

    def _sizes(self, tower: str, keys: Mapping[str, str]) -> dict[str, Any] | None:
        sizes = {field: self.value(f"clip.{tower}.{key}", GGUFValueType.UINT32) for key, field in keys.items()}
        return sizes if all(sizes.values()) else None


def _key_part(tower: Tower) -> str:
    return "text" if tower == TEXT else "vision"
