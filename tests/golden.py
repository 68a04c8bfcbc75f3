"""Golden values: the SHA-256 of whole files that the torch reference wrote, and the checkpoints it wrote them from.

``tests/make_golden.py`` (which needs torch and transformers) makes them anew and prints the table.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.checkpoints import TINY, Clip, Text, Vision, write_model

# Sizes of one, which vanish from the shapes: a single position row, and a convolution over single pixels.
DEGENERATE = Clip(
    Text(32, 64, 1, 4, vocab_size=99, max_position_embeddings=1), Vision(48, 96, 1, 4, image_size=3, patch_size=1), 24
)


@dataclass(frozen=True)
class Case:
    """A checkpoint, and the options with which it is converted."""

    name: str
    clip: Clip = TINY
    layout: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)

    def write(self, directory: Path) -> Path:
        """Write the checkpoint below a directory; its own directory's name, which goes into the file, is fixed."""
        return write_model(directory / "tiny-clip", self.clip, **self.layout)


def _reversed(names: Any) -> list[str]:
    return sorted(names)[::-1]


CASES = (
    Case("two-tower f16 from f32"),
    Case("two-tower f32 from f32", options={"outtype": "f32"}),
    Case("text-only f16 from f32", options={"text_only": True}),
    Case("text-only f32 from f16", layout={"dtype": "F16"}, options={"text_only": True, "outtype": "f32"}),
    Case("vision-only f16 from bf16", layout={"dtype": "BF16"}, options={"vision_only": True}),
    Case("vision-only f32 from f32", options={"vision_only": True, "outtype": "f32"}),
    Case("two-tower f16 from f16", layout={"dtype": "F16"}),
    Case("two-tower f32 from bf16", layout={"dtype": "BF16"}, options={"outtype": "f32"}),
    Case("two-tower f16 from f64", layout={"dtype": "F64"}),
    Case("two-tower f16 from 5 shards, reversed", layout={"shards": 5, "order": _reversed}),
    Case("two-tower f16 with gelu", clip=replace(TINY, hidden_act="gelu")),
    Case("degenerate f16", clip=DEGENERATE),
    Case("degenerate f32", clip=DEGENERATE, options={"outtype": "f32"}),
)

# Case name to (file name, SHA-256).
GOLDEN: dict[str, tuple[str, str]] = {
    "two-tower f16 from f32": (
        "model-f16.gguf",
        "a2792c7dc69e2f299e27e13f2fa723fb31d1356032b01591f1ab778083e06f5e",
    ),
    "two-tower f32 from f32": (
        "model-f32.gguf",
        "652b824e0ef326de612ad4345e04fec5be355531e506da5b8bd6ff51420bc1bd",
    ),
    "text-only f16 from f32": (
        "text-model-f16.gguf",
        "61dc27b4b18ed0ab8cc955a8946f88b452c3d02669fc4f2c463853f9b44b4ebd",
    ),
    "text-only f32 from f16": (
        "text-model-f32.gguf",
        "2f67abec769fd094941b407227827906bc79230438276a08b77965b32514e0d1",
    ),
    "vision-only f16 from bf16": (
        "vision-model-f16.gguf",
        "413ec15875fa5ce1e5cefcddbe0e0a6cf89583377180325a07aeaeeb64db5f60",
    ),
    "vision-only f32 from f32": (
        "vision-model-f32.gguf",
        "118c854fff3257571d875a6d390661e64f44c3611c7389aef3e2c6e5957ff46b",
    ),
    "two-tower f16 from f16": (
        "model-f16.gguf",
        "16c423d899d5760133b207f6b8ecb772c7cf84f8902700ea0ebdd18205e96791",
    ),
    "two-tower f32 from bf16": (
        "model-f32.gguf",
        "4e973ce2ec3158519643ca3cd82941bb6a566db52537c1769398ed7f89e73a77",
    ),
    "two-tower f16 from f64": (
        "model-f16.gguf",
        "a2792c7dc69e2f299e27e13f2fa723fb31d1356032b01591f1ab778083e06f5e",
    ),
    "two-tower f16 from 5 shards, reversed": (
        "model-f16.gguf",
        "a2792c7dc69e2f299e27e13f2fa723fb31d1356032b01591f1ab778083e06f5e",
    ),
    "two-tower f16 with gelu": (
        "model-f16.gguf",
        "e7d1bf37a868a4535f8b1ac09d0f77a95104a424307db31e100e7718d379d0b2",
    ),
    "degenerate f16": (
        "model-f16.gguf",
        "f1a002fde40587c5e3a02f8d3439f77ec370b2cdc5f88a87a1890418f4933ac9",
    ),
    "degenerate f32": (
        "model-f32.gguf",
        "079b41dfde500dc195a74f559beac408093b049efdf50c08b682a31bdb85fd6b",
    ),
}
