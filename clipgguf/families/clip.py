"""CLIP and SigLIP as transformers 4 and 5 save them: CLIPModel, its towers alone, and SigLIP's vision tower.

The defaults are those of transformers 5.23, ``configuration_clip.py`` and ``configuration_siglip.py``; transformers 4
writes only the fields that differ from them.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from clipgguf.config import CLIP_STATISTICS, SIGLIP_STATISTICS, ImageStatistics
from clipgguf.errors import CheckpointError, ConfigError, shown
from clipgguf.families import tower_tables as tables
from clipgguf.families.bases import SCRIPT, statistics
from clipgguf.family import Family
from clipgguf.inputs import Config, Inputs, read_values
from clipgguf.layers import norm
from clipgguf.model import Model, matched_model
from clipgguf.quantized import refuse_quantized
from clipgguf.sources import File
from clipgguf.table import Prefix, Rule, Section, Value
from clipgguf.vocabulary import read_vocabulary

TEXT, VISION = "text", "vision"
Towers = tuple[str, ...]

# The activations that a file can tell its readers of, by the bool ``clip.use_gelu``. llama.cpp's own GELU is the tanh
# approximation that SigLIP was trained with.
KNOWN_ACTIVATIONS = {"gelu": True, "gelu_pytorch_tanh": True, "quick_gelu": False}


def _told_activation(values: Mapping[str, Any]) -> Any:
    """Return the activation that a file tells of: the vision tower's, and without one the text tower's."""
    return values.get("vision.act", values.get("text.act"))


def activation(values: Mapping[str, Any]) -> bool:
    """Return the one flag for the whole file."""
    return KNOWN_ACTIVATIONS.get(_told_activation(values), False)


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
TOKENS = Value("text.tokens", lambda inputs: read_vocabulary(inputs.directory, inputs.options.vocab))


HEAD_NOTE = "vision_model.head.* is left out ({count} tensors): no reader of GGUF files runs SigLIP's attention pooling"


@dataclass(frozen=True, slots=True)
class VisionTower:
    """What CLIP's vision tower and SigLIP's differ in: defaults, how many class tokens there are, tables."""

    name: str
    patch: int
    epsilon: float
    act: str
    class_tokens: int
    embeddings: tuple[Rule, ...]
    statistics: ImageStatistics
    # What stands under the tower's prefix and is left out, with a line for the user.
    noted: tuple[tuple[str, str], ...] = ()

    def noted_after(self, prefix: str) -> tuple[tuple[str, str], ...]:
        """Return the patterns of what is left out with a line for the user, and that line."""
        return tuple((re.escape(prefix) + pattern, note) for pattern, note in self.noted)

    @property
    def values(self) -> tuple[Value, ...]:
        """The tower's values; sizes of images and patches are in pixels."""
        return (
            Value("vision.image", "vision_config.image_size", 224),
            Value("vision.patch", "vision_config.patch_size", self.patch),
            Value("vision.width", "vision_config.hidden_size", 768),
            Value("vision.ffn", "vision_config.intermediate_size", 3072),
            Value("vision.projection", "vision_config.projection_dim|projection_dim", 512, told_by_tensor=True),
            Value("vision.heads", "vision_config.num_attention_heads", 12),
            Value("vision.epsilon", "vision_config.layer_norm_eps", self.epsilon),
            Value("vision.blocks", "vision_config.num_hidden_layers", 12),
            Value("vision.channels", "vision_config.num_channels", 3),
            Value("vision.act", "vision_config.hidden_act", self.act),
            Value("vision.positions", of=lambda v: (v["vision.image"] // v["vision.patch"]) ** 2 + self.class_tokens),
        )


CLIP = VisionTower("CLIP", 32, 1e-5, "quick_gelu", 1, tables.CLIP_EMBEDDINGS, CLIP_STATISTICS)
SIGLIP = VisionTower(
    "SigLIP",
    16,
    1e-6,
    "gelu_pytorch_tanh",
    0,
    tables.SIGLIP_EMBEDDINGS,
    SIGLIP_STATISTICS,
    ((r"head\.", HEAD_NOTE),),
)

TEXT_TOWER = Prefix("embeddings.token_embedding.weight", "text_model.")
TEXT_EMBEDDINGS = (Rule("embeddings.token_embedding.weight", "token_embd.weight", "vocab width"), tables.POSITIONS)


def _tower(part: str, prefix: Prefix, embeddings: tuple[Rule, ...], last: tuple[Rule, ...]) -> tuple[Section, ...]:
    """Return the sections of a whole tower."""
    ours = f"{part[0]}."
    return (
        Section(prefix, ours, embeddings, part=part),
        Section(prefix + "encoder.layers.{}.", ours + "blk.{}.", tables.SCRIPT_BLOCK, times="blocks", part=part),
        Section(prefix, ours, last, part=part),
    )


# The towers' projections into one space, which stand after both towers.
PROJECTIONS = {VISION: "visual_projection.weight", TEXT: "text_projection.weight"}
PREFIXES = {TEXT: TEXT_TOWER, VISION: tables.TOWER}
# What a checkpoint may hold and a file never does: the temperature of the contrastive loss, and old integer buffers.
POSITION_IDS = r"embeddings\.position_ids$"
_NEVER_WRITTEN = (r"logit_scale$", r"(text|vision)_model\." + POSITION_IDS)
# The tensors of a tower that was not asked for.
OTHER_TOWER = {
    TEXT: (r"text_model\.", r"text_projection\.weight$"),
    VISION: (r"vision_model\.", r"visual_projection\.weight$"),
}


def clip_family(
    title: str, towers: Towers, *, stored: Towers = (), is_siglip: bool = False, default: ImageStatistics | None = None
) -> Family:
    """Return the family of CLIP models of which these towers go into the file.

    ``stored`` are those that the checkpoint has, whose configuration must be right, too; a single one may be without
    its projection. ``default`` are the image statistics where they are others than the tower's own.
    """
    only = towers[0] if len(towers) == 1 else ""
    vision = SIGLIP if is_siglip else CLIP
    sections: list[Section] = []
    if TEXT in towers:
        sections += _tower(TEXT, TEXT_TOWER, TEXT_EMBEDDINGS, norm("final_layer_norm", "post_ln"))
    if VISION in towers:
        sections += _tower(VISION, tables.TOWER, vision.embeddings, tables.POST_NORM)
    for tower, name in PROJECTIONS.items():
        if tower in towers and not is_siglip:
            rule = Rule(name, name, "projection width", optional=len(stored) == 1)
            sections.append(Section("", "", (rule,), part=tower))
    return Family(
        title=title,
        base=SCRIPT,
        description=f"{only}-only CLIP model" if only else "two-tower CLIP model",
        file_prefix=f"{only}-" if only else "",
        values=(
            *(TEXT_VALUES if TEXT in (stored or towers) else ()),
            *(vision.values if VISION in (stored or towers) else ()),
            Value("has_text", default=TEXT in towers),
            Value("has_vision", default=VISION in towers),
            Value("has_llava", default=False),
            *((TOKENS,) if TEXT in towers else ()),
            *(statistics(default or vision.statistics) if VISION in towers else ()),
            Value("gelu", of=activation),
        ),
        sections=tuple(sections),
        left_out=tuple(pattern for tower in stored if tower not in towers for pattern in OTHER_TOWER[tower]),
        shared=frozenset({"projection"}),
    )


def with_names_beside(family: Family, names: Mapping[str, Any], stored: Towers, *, is_siglip: bool) -> Family:
    """Return CLIP's family with what a checkpoint of these names may hold besides, and no file does.

    A tower whose names have no prefix leaves none for the other tower's.
    """
    vision = SIGLIP if is_siglip else CLIP
    prefixes = {tower: next(iter(PREFIXES[tower].found(names)), PREFIXES[tower].default) for tower in stored}
    ignored, noted = list(_NEVER_WRITTEN), list[tuple[str, str]]()
    for tower, prefix in prefixes.items():
        if tower in family.parts:
            ignored.append(re.escape(prefix) + POSITION_IDS)
            noted += vision.noted_after(prefix) if tower == VISION else ()
        elif prefix:
            ignored.append(re.escape(prefix))
    if all(prefixes.values()):
        ignored += [pattern for tower in PREFIXES if tower not in family.parts for pattern in OTHER_TOWER[tower]]
    if is_siglip:
        ignored.append(r"logit_bias$")
    return replace(family, ignored=tuple(ignored), noted=tuple(noted))


# What a model_type is called, and the towers that can go into a file; one that ends in "_model" is of a tower alone.
LAYOUTS: Mapping[str, tuple[str, Towers]] = {
    "clip": ("CLIPModel", (TEXT, VISION)),
    "clip_text_model": ("CLIPTextModel", (TEXT,)),
    "clip_vision_model": ("CLIPVisionModel", (VISION,)),
    "siglip": ("SigLIP (SiglipModel)", (VISION,)),
    "siglip_vision_model": ("SigLIP (SiglipVisionModel)", (VISION,)),
}
# The class of a tower that was saved with the config.json of the whole model.
_SINGLE_TOWER = re.compile(r"CLIP(Text|Vision)Model(WithProjection)?")


def open_model(inputs: Inputs) -> Model:
    """Open a directory of CLIP's or SigLIP's whose config.json is already read.

    Raises ConfigError or CheckpointError when it is none, or lacks a part of what was asked for.
    """
    config = inputs.config
    model_type: str = config.get("model_type", "clip")
    title, stored = LAYOUTS[model_type]
    match config.values.get("architectures"):
        case [str(name)] if model_type == "clip" and (single := _SINGLE_TOWER.fullmatch(name)):
            title, stored = name, (single[1].lower(),)
    inputs.config = standard_config(config, stored[0] if model_type.endswith("_model") else None)
    if model_type == "siglip" and not inputs.options.vision_only:
        raise ConfigError(
            f"{config.path}: is a SigLIP model of two towers, which no reader of GGUF files can run (clip.cpp knows "
            "neither its text tower nor its attention pooling); --vision-only converts the vision tower"
        )
    towers = towers_asked_for(inputs, title, stored)
    family = clip_family(title, towers, stored=stored, is_siglip=is_siglip(config))
    # All JSON before the headers, whose validation imports numpy: what parsing a vocabulary needs is then free again.
    values = read_values(family, inputs)
    checkpoint = inputs.open_checkpoint(lambda name: not family.leaves_out(name))
    refuse_quantized(inputs.config.values, config.path, checkpoint.tensors.values())
    family = with_names_beside(family, checkpoint.tensors, stored, is_siglip=is_siglip(config))
    model = matched_model(family, inputs, values, checkpoint.tensors, checkpoint)
    return with_value_warnings(model, config.path)


def is_siglip(config: Config) -> bool:
    """Return whether a config.json is SigLIP's, of the whole model or of its vision tower, and not CLIP's."""
    return config.values.get("model_type") in ("siglip", "siglip_vision_model")


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


def towers_asked_for(inputs: Inputs, title: str, towers: Towers) -> Towers:
    """Return which of a checkpoint's towers go into the file; CheckpointError when it lacks the one asked for."""
    for tower, asked in ((TEXT, inputs.options.text_only), (VISION, inputs.options.vision_only)):
        if asked and tower not in towers:
            only = f"has only a {towers[0]} tower ({title})"
            raise CheckpointError(f"{inputs.directory}: {only}; --{tower}-only asks for the one that is not there")
        if asked:
            return (tower,)
    return towers


def with_value_warnings(model: Model, path: File) -> Model:
    """Return a model with warnings about activations that the file's one flag cannot tell, and tokens without a row."""
    values = model.values
    vision = _told_activation(values)
    text = values["text.act"] if TEXT in model.family.parts else vision
    warnings = [
        f"{path}: readers of the file do not know hidden_act {shown(act)}; they will compute quick_gelu"
        for act in dict.fromkeys((text, vision))
        if act not in KNOWN_ACTIVATIONS
    ]
    if text != vision:
        both = f"the text tower's hidden_act is {shown(text)}, the vision tower's {shown(vision)}"
        warnings.append(f"{path}: {both}; the file has one flag for both and tells the vision tower's")
    tokens, rows = values.get("text.tokens"), values.get("text.vocab")
    if tokens is not None and len(tokens) != rows:
        warnings.append(f"the vocabulary has {len(tokens)} tokens, the token embedding {rows} rows")
    return replace(model, warnings=(*model.warnings, *warnings))
