"""Make tiny LLaVA checkpoints in every layout and spelling that is in use, without torch, in a few milliseconds.

A ``Llava`` says what the model is: tower, projector, sizes. The functions below write it in one layout each and return
the directory (or file):

- ``write_projector``: the projector alone in one file, ``.safetensors`` or torch's format by any other suffix.
- ``write_original``: the layout of the original LLaVA code (``tower="elsewhere"`` is LLaVA 1.5 or MobileVLM,
  ``tower="inside"`` LLaVA 1.6, ``tower="folder"`` Yi-VL), with a language model.
- ``write_hf``: transformers' ``llava`` or ``llava_next``, with a language model, in one of the ``SPELLINGS``.
- ``write_vision_config``: the tower's config.json as a file, as ``vision_config=`` takes it.

All of them take ``dtype`` and ``shards`` (files, over which the tensors are dealt out in turn), and ``suffix``, which
is ``.safetensors`` or ``.bin``. ``Llava.config`` overrides keys of a LLaVA config.json; None takes a key out.

A tensor has one canonical name: that of the original LLaVA checkpoint, but ``vision_model.*`` for the tower, as in a
CLIP directory. Its values (``weights.tensor_values``) follow from that name alone. So the same tower, projector and
newline have the same values wherever they stand, and all layouts of one ``Llava`` must give the same tensors.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.checkpoints import TINY, Clip, Vision
from tests.clip_checkpoints import write_tower
from tests.json_files import write_json
from tests.llava_projectors import ORIGINAL_PROJECTOR_TYPES, PROJECTORS
from tests.weights import Shapes, tensor_values, write_file, write_weights

Floats = NDArray[np.float32]

# Stored names by spelling: what stands before the tower, the projector, the newline, the language model and its head.
SPELLINGS: dict[str, tuple[str, str, str, str, str]] = {
    # transformers before 4.52, and every later one that saves what those wrote.
    "4": ("vision_tower.vision_model.", "multi_modal_projector.", "", "language_model.model.", "language_model."),
    # In memory from 4.52 to 5.5, and on disk where saving forgot to undo it.
    "4.52": ("model.vision_tower.vision_model.", "model.multi_modal_projector.", "model.", "model.language_model.", ""),
    # A model that 5.23 made and not loaded.
    "5": ("vision_tower.", "multi_modal_projector.", "", "language_model.model.", "language_model."),
    # The same with save_original_format=False.
    "5, in memory": ("model.vision_tower.", "model.multi_modal_projector.", "model.", "model.language_model.", ""),
}
ORIGINAL_TOWER = "model.vision_tower.vision_tower.vision_model."
PROJECTOR = "model.mm_projector."
NEWLINE = "model.image_newline"

# Four blocks, so that the feature layers -1, -2 and -3 are all different; 4 x 4 patches.
VISION = Vision(48, 96, 4, 4, image_size=28, patch_size=7)
# MobileVLM's projectors want 24 x 24 patches.
VISION_24 = Vision(48, 96, 3, 4, image_size=48, patch_size=2)


@dataclass(frozen=True)
class Llava:
    """A LLaVA model: the tower and what its config.json says, the kind of projector, and the language model's width.

    ``projector`` is a key of ``PROJECTORS``. ``feature_layer`` is what the config says; None leaves it out. ``layers``
    is of how many layers the projector takes the features.
    """

    vision: Vision = VISION
    projector: str = "mlp"
    hidden_act: str = "quick_gelu"
    text_width: int = 32
    feature_layer: int | list[int] | None = -2
    layers: int = 1
    has_newline: bool = False
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def clip(self) -> Clip:
        """The CLIP model that has the tower."""
        return Clip(TINY.text, self.vision, TINY.projection_dim, self.hidden_act)

    def tower(self) -> Shapes:
        """Return the tower's tensors as CLIPVisionModel has them, by canonical name ("vision_model." ...)."""
        return {name: shape for name, shape in self.clip.shapes().items() if name.startswith("vision_model.")}

    def projector_shapes(self) -> Shapes:
        """Return the projector's tensors by canonical name ("model.mm_projector." ...), in module order."""
        shapes = PROJECTORS[self.projector](self.layers * self.vision.hidden_size, self.text_width)
        return {PROJECTOR + tail: shape for tail, shape in shapes.items()}

    def newline(self) -> Shapes:
        """Return the newline's tensor, if there is one."""
        return {NEWLINE: (self.text_width,)} if self.has_newline else {}

    def language_model(self) -> Shapes:
        """Return the tensors of a Llama of one block, by canonical name."""
        d, text = self.text_width, self.text_config()
        ffn, vocab = text["intermediate_size"], text["vocab_size"]
        layer = "model.layers.0"
        return {
            "lm_head.weight": (vocab, d),
            "model.embed_tokens.weight": (vocab, d),
            f"{layer}.input_layernorm.weight": (d,),
            f"{layer}.mlp.down_proj.weight": (d, ffn),
            f"{layer}.mlp.gate_proj.weight": (ffn, d),
            f"{layer}.mlp.up_proj.weight": (ffn, d),
            f"{layer}.post_attention_layernorm.weight": (d,),
            **{f"{layer}.self_attn.{name}_proj.weight": (d, d) for name in ("k", "o", "q", "v")},
            "model.norm.weight": (d,),
        }

    def text_config(self) -> dict[str, Any]:
        """Return the language model's part of config.json."""
        return {
            "hidden_act": "silu",
            "hidden_size": self.text_width,
            "intermediate_size": 2 * self.text_width,
            "max_position_embeddings": 256,
            "num_attention_heads": 4,
            "num_hidden_layers": 1,
            "num_key_value_heads": 4,
            "rms_norm_eps": 1e-05,
            "vocab_size": 99,
        }

    def vision_config(self) -> dict[str, Any]:
        """Return the tower's config.json, which is flat."""
        return {
            "architectures": ["CLIPVisionModel"],
            "model_type": "clip_vision_model",
            **asdict(self.vision),
            "hidden_act": self.hidden_act,
            "layer_norm_eps": 1e-05,
            "num_channels": 3,
        }

    def original_config(self, vision_tower: str) -> dict[str, Any]:
        """Return config.json as the original LLaVA code has it: flat, and without the tower's sizes."""
        next_ = {
            "image_aspect_ratio": "anyres",
            "image_grid_pinpoints": [list(pair) for pair in self.grid_pinpoints()],
            "mm_patch_merge_type": "spatial_unpad",
        }
        config = {
            "architectures": ["LlavaLlamaForCausalLM"],
            "model_type": "llava",
            **self.text_config(),
            "image_aspect_ratio": "pad",
            "mm_hidden_size": self.vision.hidden_size,
            "mm_projector_type": ORIGINAL_PROJECTOR_TYPES.get(self.projector, "mlp2x_gelu"),
            "mm_use_im_start_end": False,
            "mm_vision_select_feature": "patch",
            "mm_vision_select_layer": self.feature_layer,
            "mm_vision_tower": vision_tower,
            "torch_dtype": "float16",
            **(next_ if self.has_newline else {}),
            **self.config,
        }
        return {key: value for key, value in config.items() if value is not None}

    def hf_config(self) -> dict[str, Any]:
        """Return config.json of transformers' LlavaForConditionalGeneration, with a newline of LlavaNext's."""
        vision = {key: value for key, value in self.vision_config().items() if key != "architectures"}
        config = {
            "architectures": [f"Llava{'Next' if self.has_newline else ''}ForConditionalGeneration"],
            "model_type": "llava_next" if self.has_newline else "llava",
            "image_token_index": 98,
            "projector_hidden_act": "gelu",
            "text_config": {"model_type": "llama", **self.text_config()},
            "tie_word_embeddings": False,
            "vision_config": vision,
            "vision_feature_layer": self.feature_layer,
            "vision_feature_select_strategy": "default",
            # transformers has (height, width) where LLaVA has (width, height).
            "image_grid_pinpoints": [[h, w] for w, h in self.grid_pinpoints()] if self.has_newline else None,
            **self.config,
        }
        return {key: value for key, value in config.items() if value is not None}

    def grid_pinpoints(self) -> tuple[tuple[int, int], ...]:
        """Return the image sizes of LLaVA 1.6, (width, height), in the order and proportions of the published ones."""
        s = self.vision.image_size
        return (s, 2 * s), (2 * s, s), (2 * s, 2 * s), (3 * s, s), (s, 3 * s)


def write_vision_config(path: Path, llava: Llava) -> Path:
    """Write the tower's config.json under any name."""
    write_json(path, llava.vision_config())
    return path


def write_projector(path: Path, llava: Llava, *, prefix: str = PROJECTOR, dtype: str = "F32") -> Path:
    """Write the projector and the newline alone, as LLaVA's ``mm_projector.bin`` or as safetensors, by the suffix."""
    tensors = _renamed(llava.projector_shapes(), PROJECTOR, prefix) | _renamed(llava.newline(), "", "")
    write_file(path, _values(tensors), dtype)
    return path


def write_original(
    directory: Path,
    llava: Llava,
    *,
    tower: str = "elsewhere",
    vision_tower: str = "openai/clip-vit-large-patch14-336",
    dtype: str = "F32",
    shards: int = 1,
    suffix: str = ".safetensors",
) -> Path:
    """Write a checkpoint of the original LLaVA code; ``vision_tower`` is what config.json calls the tower.

    ``tower`` is "elsewhere", "inside", or "folder": in a folder of the checkpoint, which config.json then names.
    """
    if tower == "folder":
        vision_tower = "./vit/clip-vit-h-14-448"
        write_tower(directory / vision_tower, "vision", llava.clip, dtype=dtype, shards=shards, suffix=suffix)
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / "config.json", llava.original_config(vision_tower))
    tensors = _renamed(llava.language_model() | llava.newline() | llava.projector_shapes(), "", "")
    if tower == "inside":
        tensors |= _renamed(llava.tower(), "vision_model.", ORIGINAL_TOWER)
    write_weights(directory, _values(tensors), dtype=dtype, shards=shards, suffix=suffix)
    return directory


def write_hf(
    directory: Path,
    llava: Llava,
    *,
    spelling: str = "4",
    dtype: str = "F32",
    shards: int = 1,
    suffix: str = ".safetensors",
) -> Path:
    """Write a checkpoint as transformers saves it: ``llava_next`` with a newline, ``llava`` without."""
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / "config.json", llava.hf_config())
    write_json(
        directory / "preprocessor_config.json",
        {
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_processor_type": f"Llava{'Next' if llava.has_newline else ''}ImageProcessor",
            "image_std": [0.26862954, 0.26130258, 0.27577711],
            "size": {"shortest_edge": llava.vision.image_size},
        },
    )
    tower, projector, newline, language_model, head = SPELLINGS[spelling]
    tensors = _renamed(llava.tower(), "vision_model.", tower) | _renamed(llava.newline(), "model.", newline)
    for name, shape in llava.projector_shapes().items():
        tail = name.removeprefix(PROJECTOR)
        for original, hf in (("0.", "linear_1."), ("2.", "linear_2.")):
            tail = hf + tail.removeprefix(original) if tail.startswith(original) else tail
        tensors[projector + tail] = (name, shape)
    for name, shape in llava.language_model().items():
        is_head = name.startswith("lm_head.")
        tensors[head + name if is_head else language_model + name.removeprefix("model.")] = (name, shape)
    write_weights(directory, _values(tensors), dtype=dtype, shards=shards, suffix=suffix)
    return directory


# Stored name to canonical name and shape.
Stored = dict[str, tuple[str, tuple[int, ...]]]


def _renamed(shapes: Shapes, prefix: str, to: str) -> Stored:
    return {to + name.removeprefix(prefix): (name, shape) for name, shape in shapes.items()}


def _values(tensors: Stored) -> dict[str, Floats]:
    return {stored: tensor_values(name, shape) for stored, (name, shape) in tensors.items()}
