"""Make tiny SigLIP checkpoints: both towers, the vision tower alone, and LLaVA with such a tower."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tests.checkpoints import Clip, Text, Vision
from tests.clip_checkpoints import write_processor
from tests.json_files import write_json
from tests.llava_checkpoints import PROJECTOR, SPELLINGS, Llava
from tests.weights import Array, Arrays, Shapes, arrays_of, write_weights

SIGLIP_VISION = Vision(48, 96, 3, 4, image_size=28, patch_size=7)
SIGLIP_TEXT = Text(48, 96, 2, 4, vocab_size=99, max_position_embeddings=16)


def siglip_shapes(vision: Vision = SIGLIP_VISION, text: Text = SIGLIP_TEXT, *, head: bool = True) -> Shapes:
    """Return SiglipModel's tensors by name; ``head`` is the vision tower's attention pooling."""
    clip = Clip(text, vision, 1)
    patches = (vision.image_size // vision.patch_size) ** 2
    d = vision.hidden_size
    left_out = ("pre_layrnorm", "class_embedding", "_projection.weight")
    shapes: Shapes = {name: shape for name, shape in clip.shapes().items() if not any(x in name for x in left_out)}
    shapes |= {
        "logit_bias": (1,),
        "logit_scale": (1,),
        "text_model.head.bias": (d,),
        "text_model.head.weight": (d, text.hidden_size),
        "vision_model.embeddings.patch_embedding.bias": (d,),
        "vision_model.embeddings.position_embedding.weight": (patches, d),
    }
    if head:
        own = "vision_model.head"
        shapes |= {
            f"{own}.probe": (1, 1, d),
            f"{own}.attention.in_proj_weight": (3 * d, d),
            f"{own}.attention.in_proj_bias": (3 * d,),
            f"{own}.attention.out_proj.weight": (d, d),
            f"{own}.attention.out_proj.bias": (d,),
            f"{own}.layernorm.weight": (d,),
            f"{own}.layernorm.bias": (d,),
            f"{own}.mlp.fc1.weight": (vision.intermediate_size, d),
            f"{own}.mlp.fc1.bias": (vision.intermediate_size,),
            f"{own}.mlp.fc2.weight": (d, vision.intermediate_size),
            f"{own}.mlp.fc2.bias": (d,),
        }
    return dict(sorted(shapes.items()))


def siglip_tower_shapes(vision: Vision = SIGLIP_VISION, *, head: bool = True) -> Shapes:
    """Return SiglipVisionModel's tensors by canonical name ("vision_model." ...)."""
    return {n: s for n, s in siglip_shapes(vision, head=head).items() if n.startswith("vision_model.")}


def siglip_vision_config(vision: Vision = SIGLIP_VISION, *, head: bool = True) -> dict[str, Any]:
    """Return the vision tower's config; activation and epsilon are SiglipVisionConfig's defaults, and left out."""
    use_head = {} if head else {"vision_use_head": False}
    return {"model_type": "siglip_vision_model", **asdict(vision), **use_head}


def write_siglip_tower(
    directory: Path,
    vision: Vision = SIGLIP_VISION,
    *,
    prefix: bool = True,
    head: bool = True,
    processor: bool = False,
    extra: Mapping[str, Array] | None = None,
    **weights: Any,
) -> Path:
    """Write a SiglipVisionModel, which transformers 5 saves without ``prefix`` where it made it itself."""
    directory.mkdir(parents=True, exist_ok=True)
    write_json(
        directory / "config.json", {"architectures": ["SiglipVisionModel"], **siglip_vision_config(vision, head=head)}
    )
    if processor:
        half = [0.5, 0.5, 0.5]
        write_processor(directory, image_processor_type="SiglipImageProcessor", image_mean=half, image_std=half)
    arrays = arrays_of(siglip_tower_shapes(vision, head=head))
    named = {(name if prefix else name.removeprefix("vision_model.")): array for name, array in arrays.items()}
    write_weights(directory, {**named, **(extra or {})}, **weights)
    return directory


def write_siglip(directory: Path, vision: Vision = SIGLIP_VISION, text: Text = SIGLIP_TEXT, **weights: Any) -> Path:
    """Write a SiglipModel, both towers."""
    directory.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["SiglipModel"],
        "model_type": "siglip",
        "text_config": {"model_type": "siglip_text_model", **asdict(text), "projection_size": vision.hidden_size},
        "vision_config": siglip_vision_config(vision),
    }
    write_json(directory / "config.json", config)
    write_weights(directory, arrays_of(siglip_shapes(vision, text)), **weights)
    return directory


SIGLIP_LLAVA = Llava(vision=SIGLIP_VISION, feature_layer=-1)
# Granite Vision 3, whose features are of [-24, -20, -12, -1], and whose pictures may be of a single tile.
GRANITE_VISION = Llava(
    vision=replace(SIGLIP_VISION, num_hidden_layers=5),
    feature_layer=[-4, -3, -1],
    layers=3,
    has_newline=True,
    config={"image_grid_pinpoints": [[28, 28], [28, 56], [56, 28]]},
)


def write_siglip_llava(
    directory: Path, llava: Llava = SIGLIP_LLAVA, *, spelling: str = "4", head: bool = False, **weights: Any
) -> Path:
    """Write a LLaVA of transformers with a SigLIP tower, like llava-interleave-qwen, in one of the ``SPELLINGS``.

    With a newline it is LlavaNext's, like Granite Vision 3.
    """
    directory.mkdir(parents=True, exist_ok=True)
    config = llava.hf_config()
    config |= {
        "vision_config": siglip_vision_config(llava.vision, head=head),
        "vision_feature_select_strategy": "full",
        **llava.config,
    }
    write_json(directory / "config.json", {key: value for key, value in config.items() if value is not None})
    tower, projector, newline, language_model, lm_head = SPELLINGS[spelling]
    arrays: Arrays = {
        newline + name.removeprefix("model."): array for name, array in arrays_of(llava.newline()).items()
    }
    for name, array in arrays_of(siglip_tower_shapes(llava.vision, head=head)).items():
        arrays[tower + name.removeprefix("vision_model.")] = array
    for name, array in arrays_of(llava.projector_shapes()).items():
        tail = name.removeprefix(PROJECTOR)
        arrays[projector + {"0": "linear_1", "2": "linear_2"}[tail[0]] + tail[1:]] = array
    for name, array in arrays_of(llava.language_model()).items():
        is_head = name.startswith("lm_head.")
        arrays[lm_head + name if is_head else language_model + name.removeprefix("model.")] = array
    write_weights(directory, arrays, **weights)
    return directory
