"""CLIP and SigLIP as transformers 4 and 5 save them: CLIPModel, its towers alone, and SigLIP's vision tower.

The defaults are those of transformers 5.23, ``configuration_clip.py`` and ``configuration_siglip.py``; transformers 4
writes only the fields that differ from them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from clipgguf.config import CLIP_STATISTICS, SIGLIP_STATISTICS
from clipgguf.errors import CheckpointError, ConfigError, shown
from clipgguf.families.bases import SCRIPT, statistics
from clipgguf.families.tower_tables import (
    CLIP_EMBEDDINGS,
    POST_NORM,
    SCRIPT_BLOCK,
    SIGLIP_EMBEDDINGS,
    SIGLIP_HEAD,
    TOWER,
)
from clipgguf.family import Family, Prefix, Rule, Section, Value, norm
from clipgguf.inputs import Config, Inputs
from clipgguf.model import Model, open_family
from clipgguf.sources.given import place
from clipgguf.vocabulary import Vocabulary, read_vocabulary

TEXT, VISION = "text", "vision"

# The activations that a file can tell its readers of, by the bool ``clip.use_gelu``. llama.cpp's own GELU is the tanh
# approximation that SigLIP was trained with.
KNOWN_ACTIVATIONS = {"gelu": True, "gelu_pytorch_tanh": True, "quick_gelu": False}


def _told_activation(values: Mapping[str, Any]) -> Any:
    """Return the activation that a file tells of: the vision tower's, and without one the text tower's."""
    return values.get("vision.act", values.get("text.act"))


def activation(values: Mapping[str, Any]) -> bool:
    """Return the one flag for the whole file."""
    return KNOWN_ACTIVATIONS.get(_told_activation(values), False)


def vocabulary(inputs: Inputs) -> Vocabulary:
    """Return the text tower's tokens in the order of their ids."""
    given = inputs.options.vocab
    return read_vocabulary(inputs.directory, None if given is None else place(given))


TEXT_VALUES = (
    Value("text.positions", "text_config.max_position_embeddings", 77),
    Value("text.width", "text_config.hidden_size", 512),
    Value("text.ffn", "text_config.intermediate_size", 2048),
    # CLIPModel makes its projections from the top level's; a tower's own comes first, because so it was always written.
    Value("text.projection", "text_config.projection_dim|projection_dim", 512, told_by_tensor=True),
    Value("text.heads", "text_config.num_attention_heads", 8),
    Value("text.epsilon", "text_config.layer_norm_eps", 1e-5),
    Value("text.blocks", "text_config.num_hidden_layers", 12),
    Value("text.vocab", "text_config.vocab_size", 49408),
    Value("text.act", "text_config.hidden_act", "quick_gelu"),
)


def vision_values(*, patch: int, epsilon: float, act: str, class_token: bool) -> tuple[Value, ...]:
    """Return the values of a vision tower, with the defaults in which CLIP and SigLIP differ; pixels."""
    return (
        Value("vision.image", "vision_config.image_size", 224),
        Value("vision.patch", "vision_config.patch_size", patch),
        Value("vision.width", "vision_config.hidden_size", 768),
        Value("vision.ffn", "vision_config.intermediate_size", 3072),
        Value("vision.projection", "vision_config.projection_dim|projection_dim", 512, told_by_tensor=True),
        Value("vision.heads", "vision_config.num_attention_heads", 12),
        Value("vision.epsilon", "vision_config.layer_norm_eps", epsilon),
        Value("vision.blocks", "vision_config.num_hidden_layers", 12),
        Value("vision.channels", "vision_config.num_channels", 3),
        Value("vision.act", "vision_config.hidden_act", act),
        # One for each patch, and one for the class token.
        Value("vision.positions", of=lambda v: (v["vision.image"] // v["vision.patch"]) ** 2 + class_token),
    )


CLIP_VISION_VALUES = vision_values(patch=32, epsilon=1e-5, act="quick_gelu", class_token=True)
SIGLIP_VISION_VALUES = vision_values(patch=16, epsilon=1e-6, act="gelu_pytorch_tanh", class_token=False)

TEXT_TOWER = Prefix("embeddings.token_embedding.weight", "text_model.")
TEXT_SECTIONS = (
    Section(
        TEXT_TOWER,
        "t.",
        (
            Rule("embeddings.token_embedding.weight", "token_embd.weight", "vocab width"),
            Rule("embeddings.position_embedding.weight", "position_embd.weight", "positions width"),
        ),
        part=TEXT,
    ),
    Section(TEXT_TOWER + "encoder.layers.{}.", "t.blk.{}.", SCRIPT_BLOCK, times="blocks", part=TEXT),
    Section(TEXT_TOWER, "t.", norm("final_layer_norm", "post_ln"), part=TEXT),
)


def vision_sections(embeddings: tuple[Rule, ...]) -> tuple[Section, ...]:
    """Return the sections of a whole vision tower."""
    return (
        Section(TOWER, "v.", embeddings),
        Section(TOWER + "encoder.layers.{}.", "v.blk.{}.", SCRIPT_BLOCK, times="blocks"),
        Section(TOWER, "v.", POST_NORM),
    )


def _projections(towers: tuple[str, ...], *, optional: bool) -> tuple[Section, ...]:
    """Return the towers' projections into one space, as sections of their own after the towers."""
    names = {VISION: "visual_projection.weight", TEXT: "text_projection.weight"}
    return tuple(
        Section("", "", (Rule(name, name, "projection width", optional=optional),), part=tower)
        for tower, name in names.items()
        if tower in towers
    )


# What goes into a file, by its towers: general.description, and the prefix of the file's name.
CONTENTS = {
    (TEXT, VISION): ("two-tower CLIP model", ""),
    (TEXT,): ("text-only CLIP model", "text-"),
    (VISION,): ("vision-only CLIP model", "vision-"),
}
# What a checkpoint may hold and a file never does: the temperature of the contrastive loss, and old integer buffers.
NEVER_WRITTEN = (r"logit_scale$", r"(.*\.)?embeddings\.position_ids$")
# The tensors of a tower that was not asked for.
OTHER_TOWER = {
    TEXT: (r"(.*\.)?text_model\.", r"(text\.)?text_projection"),
    VISION: (r"(.*\.)?vision_model\.", r"visual_projection"),
}


def clip_family(
    title: str,
    towers: tuple[str, ...],
    *,
    stored: tuple[str, ...] = (),
    projection_optional: bool = False,
    is_siglip: bool = False,
) -> Family:
    """Return the family of CLIP models of which these towers go into the file.

    ``stored`` are those that the checkpoint has, whose configuration must be right, too.
    """
    description, file_prefix = CONTENTS[towers]
    embeddings, default = (SIGLIP_EMBEDDINGS, SIGLIP_STATISTICS) if is_siglip else (CLIP_EMBEDDINGS, CLIP_STATISTICS)
    sections = (TEXT_SECTIONS if TEXT in towers else ()) + (vision_sections(embeddings) if VISION in towers else ())
    left_out = [pattern for tower in (TEXT, VISION) if tower not in towers for pattern in OTHER_TOWER[tower]]
    return Family(
        title=title,
        base=SCRIPT,
        description=description,
        file_prefix=file_prefix,
        values=(
            *(TEXT_VALUES if TEXT in (*towers, *stored) else ()),
            *((SIGLIP_VISION_VALUES if is_siglip else CLIP_VISION_VALUES) if VISION in (*towers, *stored) else ()),
            *(Value(f"has_{tower}", default=tower in towers) for tower in (TEXT, VISION)),
            Value("has_llava", default=False),
            *((Value("text.tokens", vocabulary),) if TEXT in towers else ()),
            *(statistics(default) if VISION in towers else ()),
            Value("gelu", of=activation),
        ),
        sections=sections + (() if is_siglip else _projections(towers, optional=projection_optional)),
        left_out=tuple(left_out),
        ignored=(*NEVER_WRITTEN, *((r"logit_bias$",) if is_siglip else ())),
        noted=((SIGLIP_HEAD, HEAD_NOTE),) if is_siglip else (),
        shared=frozenset({"projection"}),
    )


HEAD_NOTE = "vision_model.head.* is left out ({count} tensors): no reader of GGUF files runs SigLIP's attention pooling"


@dataclass(frozen=True, slots=True)
class _Layout:
    """What a model_type is: the towers that its checkpoints have, and whether config.json is a tower's own, flat."""

    name: str
    towers: tuple[str, ...]
    is_flat: bool = False
    is_siglip: bool = False


LAYOUTS: Mapping[str, _Layout] = {
    "clip": _Layout("CLIPModel", (TEXT, VISION)),
    "clip_text_model": _Layout("CLIPTextModel", (TEXT,), is_flat=True),
    "clip_vision_model": _Layout("CLIPVisionModel", (VISION,), is_flat=True),
    "siglip": _Layout("SigLIP (SiglipModel)", (VISION,), is_siglip=True),
    "siglip_vision_model": _Layout("SigLIP (SiglipVisionModel)", (VISION,), is_flat=True, is_siglip=True),
}
# A tower that was saved with the config.json of the whole model tells by its class.
_SINGLE_TOWERS: Mapping[str, str] = {
    "CLIPTextModel": TEXT,
    "CLIPTextModelWithProjection": TEXT,
    "CLIPVisionModel": VISION,
    "CLIPVisionModelWithProjection": VISION,
}


def open_model(inputs: Inputs) -> Model:
    """Open a directory of CLIP's or SigLIP's whose config.json is already read.

    Raises ConfigError or CheckpointError when it is none, or lacks a part of what was asked for.
    """
    layout = _layout(inputs.config)
    inputs.config = standard_config(inputs.config, layout.towers[0] if layout.is_flat else None)
    family = clip_family(
        layout.name,
        _content(inputs, layout),
        stored=layout.towers,
        projection_optional=len(layout.towers) == 1,
        is_siglip=layout.is_siglip,
    )
    model = open_family(family, inputs)
    return replace(model, warnings=model.warnings + value_warnings(model.values, family.parts, inputs.config.path))


def _layout(config: Config) -> _Layout:
    """Return what config.json describes."""
    model_type = config.get("model_type", "clip")
    layout = LAYOUTS[model_type]
    architectures = config.values.get("architectures")
    if model_type == "clip" and isinstance(architectures, list) and len(architectures) == 1:
        name = architectures[0]
        tower = _SINGLE_TOWERS.get(name) if isinstance(name, str) else None
        if tower is not None:
            return _Layout(name, (tower,))
    return layout


def standard_config(config: Config, flat: str | None = None) -> Config:
    """Return a config.json with the towers' parts where the tables look for them.

    ``flat`` is the tower that the whole file describes. A non-null ``*_config_dict`` wins completely: CLIPConfig writes
    the class's defaults overlaid with it over every field of ``*_config``, so that even an empty one resets all.
    """
    if flat is not None:
        return Config(config.path, {**config.values, f"{flat}_config": config.values}, {f"{flat}_config": ""})
    given = [key for key in ("text_config", "vision_config") if config.values.get(f"{key}_dict") is not None]
    values = {**config.values, **{key: config.values[f"{key}_dict"] for key in given}}
    return Config(config.path, values, {key: f"{key}_dict" for key in given})


def _content(inputs: Inputs, layout: _Layout) -> tuple[str, ...]:
    """Return the towers that go into the file: those that were asked for, else all that are there."""
    options = inputs.options
    if layout.is_siglip and not layout.is_flat and not options.vision_only:
        raise ConfigError(
            f"{inputs.config.path}: is a SigLIP model of two towers, which no reader of GGUF files can run (clip.cpp "
            "knows neither its text tower nor its attention pooling); --vision-only converts the vision tower"
        )
    for asked, option, tower, kind in (
        (options.text_only, "--text-only", TEXT, "vision"),
        (options.vision_only, "--vision-only", VISION, "text"),
    ):
        if asked and tower not in layout.towers:
            raise CheckpointError(
                f"{inputs.directory}: has only a {kind} tower ({layout.name}); {option} asks for the one that is not "
                "there"
            )
    return towers_asked_for(inputs, layout.towers)


def towers_asked_for(inputs: Inputs, towers: tuple[str, ...]) -> tuple[str, ...]:
    """Return which of a checkpoint's towers go into the file."""
    only = {TEXT: inputs.options.text_only, VISION: inputs.options.vision_only}
    return tuple(tower for tower in towers if only[tower]) or towers


def value_warnings(values: Mapping[str, Any], parts: tuple[str, ...], path: object) -> tuple[str, ...]:
    """Return warnings about activations that the one flag of a file cannot tell of, and tokens without a row."""
    vision = _told_activation(values)
    text = values["text.act"] if TEXT in parts else vision
    unknown = [
        f"{path}: readers of the file do not know hidden_act {shown(act)}; they will compute quick_gelu"
        for act in dict.fromkeys((text, vision))
        if act not in KNOWN_ACTIVATIONS
    ]
    if text != vision:
        unknown.append(
            f"{path}: the text tower's hidden_act is {shown(text)}, the vision tower's {shown(vision)}; "
            "the file has one flag for both and tells the vision tower's"
        )
    tokens, rows = values.get("text.tokens"), values.get("text.vocab")
    if tokens is not None and len(tokens) != rows:
        unknown.append(f"the vocabulary has {len(tokens)} tokens, the token embedding {rows} rows")
    return tuple(unknown)
