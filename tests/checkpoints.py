"""Make CLIP checkpoints as transformers saves them, of any size, in bounded memory and with known values.

The tensor names are written out here a second time on purpose: a test that took them from ``clipgguf.names`` could not
find a mistake there. ``tests/make_golden.py`` loads checkpoints made by this module with transformers, which finds one.
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.json_files import write_json
from tests.weights import Dtypes, Shapes, write_random_weights


@dataclass(frozen=True)
class Tower:
    """A tower's sizes, under the names that config.json has for them."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int


@dataclass(frozen=True)
class Text(Tower):
    """The text tower's sizes."""

    vocab_size: int = 49408
    max_position_embeddings: int = 77


@dataclass(frozen=True)
class Vision(Tower):
    """The vision tower's sizes, in pixels."""

    image_size: int = 224
    patch_size: int = 32


@dataclass(frozen=True)
class Clip:
    """A CLIP model's sizes and what else its config.json says."""

    text: Text
    vision: Vision
    projection_dim: int
    hidden_act: str = "quick_gelu"
    config: dict[str, Any] = field(default_factory=dict)

    def config_json(self) -> dict[str, Any]:
        """Return config.json with every size in it."""
        both = {"hidden_act": self.hidden_act, "layer_norm_eps": 1e-05, "projection_dim": self.projection_dim}
        return {
            "architectures": ["CLIPModel"],
            "dtype": "float32",
            "logit_scale_init_value": 2.6592,
            "model_type": "clip",
            "projection_dim": self.projection_dim,
            "text_config": {**asdict(self.text), **both, "model_type": "clip_text_model"},
            "transformers_version": "5.23.0",
            "vision_config": {**asdict(self.vision), **both, "model_type": "clip_vision_model", "num_channels": 3},
            **self.config,
        }

    def files(self) -> dict[str, Any]:
        """Return the JSON files beside the weights: config, vocabulary and image processor."""
        return {
            "config.json": self.config_json(),
            "vocab.json": {f"tok{i}</w>": i for i in range(self.text.vocab_size)},
            "preprocessor_config.json": {
                "image_mean": [0.48145466, 0.4578275, 0.40821073],
                "image_processor_type": "CLIPImageProcessor",
                "image_std": [0.26862954, 0.26130258, 0.27577711],
                "size": {"shortest_edge": self.vision.image_size},
            },
        }

    def shapes(self) -> Shapes:
        """Return all tensors of the model by name, in alphabetical order, as transformers saves them."""
        t, v = self.text, self.vision
        positions = (v.image_size // v.patch_size) ** 2 + 1
        shapes: Shapes = {
            "logit_scale": (),
            "text_model.embeddings.token_embedding.weight": (t.vocab_size, t.hidden_size),
            "text_model.embeddings.position_embedding.weight": (t.max_position_embeddings, t.hidden_size),
            "text_projection.weight": (self.projection_dim, t.hidden_size),
            "vision_model.embeddings.class_embedding": (v.hidden_size,),
            "vision_model.embeddings.patch_embedding.weight": (v.hidden_size, 3, v.patch_size, v.patch_size),
            "vision_model.embeddings.position_embedding.weight": (positions, v.hidden_size),
            "visual_projection.weight": (self.projection_dim, v.hidden_size),
        }
        for prefix, tower, norms in (
            ("text_model", t, ("final_layer_norm",)),
            ("vision_model", v, ("pre_layrnorm", "post_layernorm")),
        ):
            d, ffn = tower.hidden_size, tower.intermediate_size
            for norm in norms:
                shapes |= _weight_and_bias(f"{prefix}.{norm}", (d,))
            for n in range(tower.num_hidden_layers):
                layer = f"{prefix}.encoder.layers.{n}"
                for linear in ("q_proj", "k_proj", "v_proj", "out_proj"):
                    shapes |= _weight_and_bias(f"{layer}.self_attn.{linear}", (d, d))
                for norm in ("layer_norm1", "layer_norm2"):
                    shapes |= _weight_and_bias(f"{layer}.{norm}", (d,))
                shapes |= _weight_and_bias(f"{layer}.mlp.fc1", (ffn, d))
                shapes |= _weight_and_bias(f"{layer}.mlp.fc2", (d, ffn))
        return dict(sorted(shapes.items()))


def _weight_and_bias(name: str, shape: tuple[int, ...]) -> Shapes:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


TINY = Clip(
    Text(32, 64, 2, 4, vocab_size=99, max_position_embeddings=16),
    Vision(48, 96, 3, 4, image_size=28, patch_size=14),
    projection_dim=24,
)
# The same with the other activation.
GELU = replace(TINY, hidden_act="gelu")
REAL = {
    "vit-b-32": Clip(Text(512, 2048, 12, 8), Vision(768, 3072, 12, 12), 512),
    "vit-l-14-336": Clip(Text(768, 3072, 12, 12), Vision(1024, 4096, 24, 16, 336, 14), 768),
    "vit-h-14": Clip(Text(1024, 4096, 24, 16), Vision(1280, 5120, 32, 16, 224, 14), 1024, "gelu"),
    "vit-bigg-14": Clip(Text(1280, 5120, 32, 20), Vision(1664, 8192, 48, 16, 224, 14), 1280, "gelu"),
}


def write_model(
    directory: Path,
    clip: Clip = TINY,
    *,
    dtype: Dtypes = "F32",
    shards: int = 1,
    order: Callable[[Iterable[str]], Iterable[str]] = sorted,
    seed: int = 0,
    extra: Shapes | None = None,
) -> Path:
    """Write a whole model directory: config, vocabulary, image processor and weights. Returns the directory.

    With several shards, the tensors are dealt out in turn in the given order, so that towers and blocks are torn apart.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for name, value in clip.files().items():
        write_json(directory / name, value)
    shapes = {**clip.shapes(), **(extra or {})}
    write_random_weights(directory, {name: shapes[name] for name in order(shapes)}, dtype, shards=shards, seed=seed)
    return directory


def towers(width: int, text_blocks: int, vision_blocks: int) -> Clip:
    """Return a CLIP model that is hardly more than its blocks: 16 tensors and 12 * width ** 2 values in each."""
    text = Text(width, 4 * width, text_blocks, 2, vocab_size=99, max_position_embeddings=16)
    return Clip(text, Vision(width, 4 * width, vision_blocks, 2, image_size=28, patch_size=14), projection_dim=width)
