"""What a GGUF file of CLIP holds, told from its metadata and from the names and shapes of its tensors."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gguf import GGUFValueType

from clipgguf.checkpoint import SourceTensor
from clipgguf.checkpoint.gguf_file import GGUFFile, MetadataItem
from clipgguf.config import SiglipVisionConfig, TextConfig, VisionConfig
from clipgguf.element_types import PROJECTOR_PREFIX
from clipgguf.errors import shown
from clipgguf.families.projectors import KINDS, NEWLINE_NAME, PROJECTOR_TYPES, Kind
from clipgguf.families.towers import KNOWN_TOWERS
from clipgguf.names import BLOCK, SIGLIP_VISION, TEXT, VISION, Tower

ARCHITECTURE = "general.architecture"
CLASS_EMBEDDING = "v.class_embd"
FEATURE_LAYER = "clip.vision.feature_layer"
# What llama.cpp calls the projector: one for the whole file or, only where that is missing, one for each modality.
PROJECTOR_TYPE = "clip.projector_type"
VISION_PROJECTOR_TYPE, AUDIO_PROJECTOR_TYPE = "clip.vision.projector_type", "clip.audio.projector_type"
# What the names of a vision tower's tensors begin with, what may follow, and what may stand beside it in LLaVA's files.
_TOWER = re.compile(r"v\.(?:blk\.[0-9]+\.)?")
_TAILS = frozenset(
    gguf for _, gguf, _ in (*VISION.embeddings, *SIGLIP_VISION.embeddings, *BLOCK, *VISION.final, *SIGLIP_VISION.final)
)
_BESIDE = (NEWLINE_NAME, "v.image_newline", VISION.projection)

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
    """A GGUF file's metadata by key and its tensors by name, and what follows from them.

    ``projector_names`` are those of the projector's tensors. ``feature_layers`` are the layers whose features the
    projector takes, where the file says it; readers ignore negative ones.
    """

    file: GGUFFile
    items: Mapping[str, MetadataItem]
    tensors: Mapping[str, SourceTensor]
    projector_names: frozenset[str]
    feature_layers: tuple[int, ...]

    @classmethod
    def of(cls, file: GGUFFile) -> "Contents":
        """Look at a file."""
        items = {item.key: item for item in file.metadata}
        # Both are asked for again and again, and a header can have tens of thousands of tensors and millions of layers.
        layers = _array(items, FEATURE_LAYER, GGUFValueType.INT32)
        return cls(
            file,
            items,
            {tensor.name: tensor for tensor in file.tensors},
            projector_names=frozenset(t.name for t in file.tensors if t.name.startswith(PROJECTOR_PREFIX)),
            feature_layers=tuple(sorted({layer for layer in layers if layer >= 0})),
        )

    def value(self, key: str, value_type: GGUFValueType) -> Any:
        """Return the single value of a metadata key, or None where it is missing or of another type."""
        item = self.items.get(key)
        return item.value if item is not None and item.value_type == value_type and not item.is_array else None

    def array(self, key: str, value_type: GGUFValueType) -> tuple[Any, ...]:
        """Return the values of a metadata key, none where it is missing or no array of that type."""
        return _array(self.items, key, value_type)

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
    def projector_types(self) -> Mapping[str, str]:
        """What the metadata calls the projectors, by key; empty where it does not."""
        for keys in ((PROJECTOR_TYPE,), (VISION_PROJECTOR_TYPE, AUDIO_PROJECTOR_TYPE)):
            if told := {key: text for key in keys if (text := self.value(key, GGUFValueType.STRING))}:
                return told
        return {}

    @property
    def other_family(self) -> str | None:
        """What the metadata says that no CLIP or LLaVA file does, where the file is of a family that is not known here.

        Names of tensors say nothing of that: Qwen2-VL's projector has those of LLaVA's.
        """
        architecture = self.items[ARCHITECTURE].value if ARCHITECTURE in self.items else None
        if architecture not in (None, "clip"):
            return f"{ARCHITECTURE} is {shown(architecture)}, known here is 'clip'"
        told = self.projector_types
        if all(key != AUDIO_PROJECTOR_TYPE and text in PROJECTOR_TYPES for key, text in told.items()):
            return None
        what = " and ".join(f"{key} is {shown(text)}" for key, text in told.items())
        return f"{what}, known here are {', '.join(map(repr, PROJECTOR_TYPES))}"

    @property
    def projector_kind(self) -> Kind | None:
        """Which projector the tensors are; None without one, or when it is none that is known here."""
        if self.other_family is not None:
            return None
        return next((kind for kind in KINDS if kind.gguf_names == self.projector_names), None)

    @property
    def unknown_names(self) -> list[str]:
        """The names of tensors that no projector of LLaVA and no vision tower of CLIP or SigLIP has."""
        known = {*self.projector_names, *_BESIDE}
        return [name for name in self.tensors if name not in known and _TOWER.sub("", name, 1) not in _TAILS]

    @property
    def is_siglip(self) -> bool:
        """Whether the vision tower is SigLIP's, which has no class token."""
        return CLASS_EMBEDDING not in self.tensors

    @property
    def blocks_wanted(self) -> int | None:
        """How many of the vision tower's blocks are meant to run; None where the file does not tell.

        All of them run in CLIP. For a projector they are those before the features that it takes. Without
        ``feature_layer`` that follows from how many blocks the tower has, where it is one that is known: the scripts
        leave out the last, so that all that are stored should run; a file that has every one was made for readers that
        leave out the last themselves.
        """
        count = self.blocks_told(VISION)
        if count is None or self.other_family is not None:
            return None
        if not self.projector_names:
            return count
        if self.feature_layers:
            return self.feature_layers[-1]
        depth = self.tower_depth
        return depth - 1 if depth is not None and count in (depth, depth - 1) else None

    @property
    def tower_depth(self) -> int | None:
        """How many blocks the whole vision tower has that the file's is from, by its width; None for an unknown one."""
        width = self.value("clip.vision.embedding_length", GGUFValueType.UINT32)
        if self.is_siglip:
            return None
        return next((c.num_hidden_layers for c in KNOWN_TOWERS.values() if c.hidden_size == width), None)

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


def _array(items: Mapping[str, MetadataItem], key: str, value_type: GGUFValueType) -> tuple[Any, ...]:
    item = items.get(key)
    return tuple(item.value) if item is not None and item.value_type == value_type and item.is_array else ()


def _key_part(tower: Tower) -> str:
    return "text" if tower == TEXT else "vision"
