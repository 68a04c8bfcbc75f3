"""Checkpoints of families at real sizes: names and shapes by the families' own tables, from a configuration.

For measuring and for tests of what sizes change; that the tables are right is what the fixtures hold.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from clipgguf.blocks import numbers
from clipgguf.family import Family
from clipgguf.inputs import Config
from clipgguf.shape import shape_of
from clipgguf.sources.local import LocalFolder
from clipgguf.table import Prefix
from tests.weights import Shapes


@dataclass(frozen=True)
class FamilyModel:
    """A model of a family: its module, its config.json, and the sizes that the configuration does not tell.

    They are the vision tower's but for full names, such as "audio.width". ``optional`` are words in the names of
    optional tensors that it has, ``spelling`` which of several spellings its names have.
    """

    module: str
    config: Mapping[str, Any]
    sizes: Mapping[str, int] = field(default_factory=dict)
    optional: tuple[str, ...] = ()
    spelling: int = 0

    @property
    def family(self) -> Family:
        """The family, with the parts that the model has."""
        family: Family = importlib.import_module(f"clipgguf.families.{self.module}").FAMILY
        return family.of([part for part in family.parts if family.told_by.get(part, "model_type") in self.config])

    def values(self) -> dict[str, Any]:
        """Return the family's values, as far as config.json tells them."""
        config = Config(LocalFolder(Path("model")).file("config.json"), self.config)
        part = self.family.parts[0]
        sizes = self.sizes.items()
        found: dict[str, Any] = {name if "." in name else f"{part}.{name}": size for name, size in sizes}
        for value in self.family.all_values:
            if value.of is not None:
                found[value.name] = value.of(found)
            elif isinstance(value.source, str):
                default = value.default_for(self.config.get("model_type"))
                found[value.name] = config.get(value.source, default)
            elif value.source is None:
                found[value.name] = value.default
        return found

    def shapes(self) -> Shapes:
        """Return the shapes of all tensors of the tower and the projector by name."""
        family, values, found = self.family, self.values(), Shapes()
        sizes = {name: value for name, value in values.items() if type(value) is int}
        for section in family.sections:
            prefix = section.prefix
            start = prefix.default + self._spelled(prefix.tail) if isinstance(prefix, Prefix) else self._spelled(prefix)
            for number, _ in enumerate(numbers(section, family, values)):
                beside = [
                    replace(rule, theirs=name, shape=rule.beside_shape or rule.shape)
                    for rule in section.rules
                    for name in rule.beside
                ]
                for rule in (*section.rules, *beside):
                    if rule.optional and not any(word in rule.theirs for word in self.optional):
                        continue
                    shape = shape_of(rule.pattern.stored, family.sizes_of(rule.pattern.stored, section.part, sizes))
                    name = start.replace("{}", str(number)) + self._spelled(rule.theirs)
                    # A length that no table names ("any") is one of the sizes by the tensor's name in the file.
                    known = tuple(self.sizes.get(str(rule.ours)) if n is None else n for n in shape)
                    assert None not in known, (name, rule.shape, sizes)
                    found[name] = tuple(n for n in known if n is not None)
        return found

    def _spelled(self, names: str) -> str:
        spellings = names.split("|")
        return spellings[min(self.spelling, len(spellings) - 1)]

    def files(self) -> dict[str, Any]:
        """Return the JSON files beside the weights."""
        processor = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
        return {"config.json": self.config, "preprocessor_config.json": processor}


QWEN2_5_VL_7B = FamilyModel(
    "qwen2_5_vl",
    {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "hidden_size": 3584,
        "rms_norm_eps": 1e-06,
        "vision_config": {
            **{"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584},
            **{"patch_size": 14, "fullatt_block_indexes": [7, 15, 23, 31]},
        },
    },
)
# Of 5.5 thousand million values.
INTERN_VIT_6B = FamilyModel(
    "internvl",
    {
        "architectures": ["InternVLChatModel"],
        "model_type": "internvl_chat",
        "downsample_ratio": 0.5,
        "min_dynamic_patch": 1,
        "max_dynamic_patch": 12,
        "llm_config": {"hidden_size": 8192, "model_type": "qwen2"},
        "vision_config": {
            **{"architectures": ["InternVisionModel"], "model_type": "intern_vit_6b", "hidden_act": "gelu"},
            **{"hidden_size": 3200, "image_size": 448, "intermediate_size": 12800, "layer_norm_eps": 1e-06},
            **{"num_attention_heads": 25, "num_hidden_layers": 45, "patch_size": 14, "qk_normalization": True},
            **{"norm_type": "rms_norm", "qkv_bias": False},
        },
    },
)
