"""A GGUF file of architecture ``clip``: its values by short name, its family, and what follows from its tensors."""

import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from clipgguf.checkpoint.gguf_file import ARCHITECTURE, GGUFFile, MetadataItem
from clipgguf.checkpoint.gguf_reader import read_gguf
from clipgguf.errors import shown
from clipgguf.families import PROJECTORS
from clipgguf.families.clip import clip_family
from clipgguf.families.llava import llava_family
from clipgguf.families.llava_projectors import KINDS, NEWLINE, PROJECTOR_PREFIX, Kind
from clipgguf.families.llava_tower import KNOWN_TOWERS
from clipgguf.families.tower_tables import CLIP_EMBEDDINGS, MODERN_BLOCK, POST_NORM, SCRIPT_BLOCK, SIGLIP_EMBEDDINGS
from clipgguf.family import PROJECTOR_KEYS, Family
from clipgguf.keys import KEYS
from clipgguf.options import PathLike
from clipgguf.sources.given import given_source
from clipgguf.table import BEGUN
from clipgguf.tensor import View

CLASS_EMBEDDING = "v.class_embd"
# What the names of a part's tensors begin with.
PREFIXES = {"text": "t.", "vision": "v.", "audio": "a."}

# The tokens before and after what is embedded, which are called so for sounds, too.
_TOKENS = ("v.boi", "v.eoi")

# What the names of a vision tower's tensors begin with, what may follow, and what may stand beside it in LLaVA's files.
_TOWER = re.compile(r"v\.(?:blk\.[0-9]+\.)?")
_TAILS = frozenset(
    name for rule in (*CLIP_EMBEDDINGS, *SIGLIP_EMBEDDINGS, *SCRIPT_BLOCK, *POST_NORM) for name in rule.names
)
_BESIDE = (*NEWLINE.names, "v.image_newline", "visual_projection.weight")


@dataclass(frozen=True)
class ClipFile:
    """A GGUF file's metadata by key and its tensors by name, and what follows from them."""

    file: GGUFFile
    items: Mapping[str, MetadataItem]
    tensors: Mapping[str, View]

    @classmethod
    def read(cls, path: PathLike) -> "ClipFile":
        """Read a file's header, here or far away; CheckpointError as ``read_gguf`` raises it."""
        file = read_gguf(given_source(path))
        return cls(file, {item.key: item for item in file.metadata}, {tensor.name: tensor for tensor in file.tensors})

    def value(self, name: str) -> Any:
        """Return a value by its short name (of an array a tuple), or None: missing, or of another type."""
        return KEYS[name].read(self.items)

    def has(self, part: str) -> bool:
        """Return whether tensors of a tower are there, or of a projector that stands for one, as Gemma 4 unified's."""
        prefixes = PREFIXES[part], f"mm.{PREFIXES[part]}"
        return any(name.startswith(prefixes) and name not in _TOKENS for name in self.tensors)

    def without(self, part: str) -> "ClipFile":
        """Return the file as if it had nothing of a tower."""
        names, keys = (PREFIXES[part], f"mm.{PREFIXES[part]}"), (f"clip.{part}.", f"clip.has_{part}_encoder")
        items = {key: item for key, item in self.items.items() if not key.startswith(keys)}
        tensors = {name: tensor for name, tensor in self.tensors.items() if not name.startswith(names)}
        return ClipFile(self.file, items, tensors)

    def tells(self, part: str) -> bool:
        """Return whether the file says that it has a tower."""
        return bool(self.value(f"has_{part}"))

    def blocks_stored(self, part: str) -> int:
        """Return of how many of a tower's blocks there are tensors."""
        prefix = f"{PREFIXES[part]}blk."
        return len({name.split(".")[2] for name in self.tensors if name.startswith(prefix)})

    @cached_property
    def projector_names(self) -> frozenset[str]:
        """The names of the projector's tensors; those of Granite 4 Vision are called as if they were the tower's."""
        return frozenset(name for name in self.tensors if name.startswith((PROJECTOR_PREFIX, "v.proj_blk.")))

    @property
    def is_mmproj(self) -> bool:
        """Whether it has a projector; those of MiniCPM-V's are not called as others', and its files name their type."""
        return bool(self.projector_names) or self.module not in (None, "clip", "llava")

    @cached_property
    def projector_types(self) -> Mapping[str, str]:
        """What the metadata calls the projectors, by key; empty where it does not.

        llama.cpp looks for one of the whole file and, only where that is missing, for one of each modality.
        """
        for names in (("projector",), PROJECTOR_KEYS):
            if told := {KEYS[name].key: text for name in names if (text := self.value(name))}:
                return told
        return {}

    @cached_property
    def module(self) -> str | None:
        """The module of the family that the metadata names, LLaVA's or CLIP's where it names none; None: not known."""
        if self.architecture not in (None, "clip"):
            return None
        if told := self.projector_types:
            return PROJECTORS.get("+".join(told.values()))
        return "llava" if self.projector_names else "clip"

    @property
    def architecture(self) -> Any:
        """What the metadata says; None without it."""
        return self.file.value(ARCHITECTURE)

    @property
    def why_not_known(self) -> str | None:
        """What the metadata says that no file of a known family does; None for a file of a known one."""
        if self.architecture not in (None, "clip"):
            return f"{ARCHITECTURE} is {shown(self.architecture)}, known here is 'clip'"
        if self.module is not None:
            return None
        what = " and ".join(f"{key} is {shown(text)}" for key, text in self.projector_types.items())
        return f"{what}, of which no family is known here"

    @property
    def is_llava(self) -> bool:
        """Whether it is one of LLaVA's mmproj files, or should be."""
        return self.module == "llava"

    @cached_property
    def kind(self) -> Kind | None:
        """Which of LLaVA's projectors the tensors are; None without one, or when it is none of them."""
        return next((kind for kind in KINDS if self.is_llava and kind.names == self.projector_names), None)

    @property
    def is_siglip(self) -> bool:
        """Whether a vision tower of CLIP or SigLIP is SigLIP's, which has no class token."""
        return CLASS_EMBEDDING not in self.tensors

    @cached_property
    def family(self) -> Family | None:
        """The family whose tables the file should fit; None when it is not known."""
        if self.module not in (None, "clip", "llava"):
            family: Family = importlib.import_module(f"clipgguf.families.{self.module}").FAMILY
            told = [part for part in family.parts if self.tells(part)]
            return family.of(told or family.parts)
        if self.module is None or (self.is_llava and self.kind is None):
            return None
        if self.kind is not None:
            # Whether fc1, whose rows are of the tower's width, is called ffn_up, as everywhere but in CLIP's own files.
            fc1 = self.tensors.get("v.blk.0.ffn_down.weight")
            is_modern = fc1 is not None and fc1.shape[-1:] != (self.value("vision.width"),)
            block = MODERN_BLOCK if is_modern else SCRIPT_BLOCK
            return llava_family(self.kind, is_siglip=self.is_siglip, block=block)
        towers = tuple(part for part in ("text", "vision") if self.tells(part) or self.has(part))
        return clip_family("CLIP", towers, is_siglip=self.has("vision") and self.is_siglip) if towers else None

    @cached_property
    def feature_layers(self) -> tuple[int, ...]:
        """The layers whose features the projector takes, where the file says it; readers ignore negative ones."""
        return tuple(sorted({layer for layer in self.value("vision.feature_layer") or () if layer >= 0}))

    @property
    def blocks_wanted(self) -> int | None:
        """How many of the vision tower's blocks are meant to run; None where the file does not tell.

        All of them run but for LLaVA, where it is those before the features that the projector takes. Without
        ``feature_layer`` that follows from how many blocks the tower has, where it is one that is known: the scripts
        leave out the last, so that all that are stored should run; a file that has every one was made for readers that
        leave out the last themselves.
        """
        count: int | None = self.value("vision.blocks")
        if count is None or self.module is None:
            return None
        if not self.is_llava:
            sections = self.family.sections if self.family else ()
            return None if any(section.times == BEGUN for section in sections) else count
        if self.feature_layers:
            return self.feature_layers[-1]
        depth = self.tower_depth
        return depth - 1 if depth is not None and count in (depth, depth - 1) else None

    @property
    def tower_depth(self) -> int | None:
        """How many blocks the whole vision tower has that LLaVA's is from, by its width; None for an unknown one."""
        depths = {tower["hidden_size"]: tower["num_hidden_layers"] for tower in KNOWN_TOWERS.values()}
        return None if self.is_siglip else depths.get(self.value("vision.width"))

    @property
    def unknown_names(self) -> list[str]:
        """The names of tensors that no projector of LLaVA and no vision tower of CLIP or SigLIP has."""
        known = {*self.projector_names, *_BESIDE}
        return [name for name in self.tensors if name not in known and _TOWER.sub("", name, 1) not in _TAILS]
