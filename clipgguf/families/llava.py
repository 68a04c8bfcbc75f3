"""LLaVA: a vision tower and a projector, from wherever they are, as the image encoder that llama.cpp calls an mmproj.

There are two layouts of whole checkpoints: the original one (LLaVA 1.5 and 1.6, BakLLaVA, Yi-VL, MobileVLM, ...), and
transformers' own (llava-hf). Either is told by its tensors' names, and only the tower's and projector's are looked at.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from clipgguf.checkpoint import Checkpoint
from clipgguf.errors import CheckpointError, ConfigError
from clipgguf.families import module_of
from clipgguf.families.bases import SCRIPT, statistics
from clipgguf.families.clip import (
    CLIP,
    POSITION_IDS,
    PROJECTIONS,
    SIGLIP,
    VISION,
    activation,
    is_siglip,
    with_value_warnings,
)
from clipgguf.families.llava_projectors import NEWLINE, Kind, by_tail, is_projector_name, projector_prefix, recognise
from clipgguf.families.llava_settings import Settings, check_strategy, settings_values
from clipgguf.families.llava_tower import find_tower, tower_prefix
from clipgguf.families.tower_tables import SCRIPT_BLOCK, TOWER
from clipgguf.family import Family
from clipgguf.inputs import Inputs, read_values
from clipgguf.json_file import read_json_object
from clipgguf.model import Model, matched_model
from clipgguf.quantized import refuse_quantized
from clipgguf.sources import File, Folder
from clipgguf.sources.given import place
from clipgguf.table import Rule, Section, Value
from clipgguf.tensor import View

# Names in the language models that LLaVA was built on (Llama, Mistral, Qwen, Phi, StableLM, GPT-NeoX, MPT).
_LANGUAGE_MODEL = re.compile(
    r"(?:model\.|language_model\.|transformer\.|gpt_neox\.)*"
    r"(?:layers|h|blocks|embed_tokens|embed_in|embed_out|wte|norm|norm_f|final_layernorm|final_layer_norm|ln_f|lm_head)\."
)
# What a CLIP model has besides its vision tower.
_BESIDE_TOWER = re.compile(
    r"text_model\..*|text_projection\.weight|logit_scale|logit_bias|vision_model\.embeddings\.position_ids"
)
LLAVA_USES = frozenset({"llava_projector", "feature_layer", "keep_last_layer", "projector_type", "vision_config"})
# MobileVLM's LDP downsamples a fixed grid in llama.cpp (``build_llava`` in tools/mtmd/models/llava.cpp).
LDP_GRID = 24

# What the values that depend on LLaVA's settings are called, where there is only a file to tell them.
_TOLD = (Value("vision.blocks"), Value("vision.feature_layer"))
# Read for its rows alone, which are the projection_dim that readers ask for.
_PROJECTION = Section("", "", (Rule(PROJECTIONS[VISION], (), "projection width", optional=True),))


def llava_family(
    kind: Kind, *, is_siglip: bool, block: tuple[Rule, ...] = SCRIPT_BLOCK, settings: tuple[Value, ...] = _TOLD
) -> Family:
    """Return the family of mmproj files with a kind of projector and of tower.

    CLIP's projection is known, and not written.
    """
    tower = SIGLIP if is_siglip else CLIP
    return Family(
        title=f"LLaVA ({kind.name} projector, {tower.name} tower)",
        projector=kind.projector_type,
        base=SCRIPT,
        description="image encoder for LLaVA",
        values=(
            Value("has_text", default=False),
            Value("has_vision", default=True),
            Value("has_llava", default=True),
            # The tower's own blocks are its layers; block_count are those that the file has.
            *(replace(v, name="vision.layers") if v.name == "vision.blocks" else v for v in tower.values),
            *statistics(tower.statistics),
            Value("gelu", of=activation),
            *settings,
            Value("vision.features", of=_features),
        ),
        sections=(
            Section("mm.", "", (*kind.rules, NEWLINE)),
            Section(TOWER, "v.", tower.embeddings),
            Section(TOWER + "encoder.layers.{}.", "v.blk.{}.", block, times="layers", stored="blocks"),
            *(() if is_siglip else (_PROJECTION,)),
        ),
        # MobileVLM's projectors halve the sides. The class token is left out.
        merge=1 if kind.projector_type == "mlp" else 2,
    )


def _features(values: Mapping[str, Any]) -> int:
    """Return how many numbers of each patch the projector takes: those of several layers lie side by side.

    A file may say a layer twice, or negative ones, which readers pass over.
    """
    layers = {layer for layer in values.get("vision.feature_layer", ()) if layer >= 0}
    width: int = values["vision.width"]
    return width * max(len(layers), 1)


def open_model(inputs: Inputs) -> Model:
    """Open what becomes an mmproj file: a LLaVA checkpoint, or a CLIP directory with a projector from elsewhere.

    Raises ConfigError or CheckpointError when a part is missing, or is of a kind that no reader can run.
    """
    options = inputs.options
    if (asked := inputs.options.only) is not None:
        what = "is a LLaVA checkpoint, which gives an mmproj file"
        raise ConfigError(f"{inputs.directory}: {what}; --{asked}-only is for CLIP models")
    own = Settings(inputs.config.path, inputs.config.values)
    settings, checkpoint = own, None
    if module_of(own.values) == "llava":
        checkpoint = inputs.open_checkpoint(lambda name: not _LANGUAGE_MODEL.match(name))
        is_elsewhere = options.vision_tower is not None
        wanted = [t for name, t in checkpoint.tensors.items() if is_projector_name(name) or not is_elsewhere]
        refuse_quantized(own.values, own.path, wanted)
    projector, keep_order, projector_from = _projector(inputs, checkpoint)
    if checkpoint is None and not isinstance(projector_from, File) and "config.json" in projector_from:
        path = projector_from.file("config.json")
        settings = Settings(path, read_json_object(path))
    config, tower = find_tower(inputs, settings, checkpoint)
    siglip = is_siglip(config)
    named = by_tail(projector)
    kind = recognise(named, options.projector_type, str(projector_from))
    check_strategy(settings, siglip)
    first = named[kind.rules[0].theirs].shape
    family = llava_family(kind, is_siglip=siglip, settings=settings_values(inputs, settings, first[-1] if first else 0))
    inputs.places = (inputs.directory, tower.folder)
    inputs.config = replace(config, values={**config.values, "_name_or_path": own.values.get("_name_or_path")})
    values = read_values(family, inputs)
    grid = values["vision.image"] // values["vision.patch"]
    if kind.projector_type != "mlp" and grid != LDP_GRID:
        runs = f"which llama.cpp runs on {LDP_GRID} x {LDP_GRID} patches only; this tower has {grid} x {grid}"
        raise CheckpointError(f"{projector_from}: the projector is of kind {kind.name}, {runs}")
    tensors, strays = _sorted(checkpoint, tower)
    tensors |= {f"mm.{tail}": tensor for tail, tensor in named.items()}
    spelling = [projector_prefix(tensor.name) for tensor in projector]
    family = _with_names_beside(family, tower_prefix(tower) or "", is_siglip=siglip)
    model = matched_model(family, inputs, values, tensors, tower, spelling, strays)
    model = with_value_warnings(model, inputs.config.path)
    elsewhere = {"vision_tower", "fetch_tower"} if checkpoint is not None else set()
    model = replace(model, uses=model.uses | LLAVA_USES | elsewhere)
    return _in_order_of(projector, model) if keep_order else model


def _with_names_beside(family: Family, prefix: str, *, is_siglip: bool) -> Family:
    """Return the family with what a tower may hold after its prefix, and no file does."""
    start = re.escape(prefix)
    ignored = (start + POSITION_IDS, start + r"post_layernorm\.(weight|bias)$")
    return replace(family, ignored=ignored, noted=(SIGLIP if is_siglip else CLIP).noted_after(prefix))


def _sorted(checkpoint: Checkpoint | None, tower: Checkpoint) -> tuple[dict[str, View], list[View]]:
    """Return the tower's tensors by name, and those that are nobody's.

    Nobody's are those of a LLaVA checkpoint but the language model's, the projector's, and what stands where its own
    tower does; of another directory with a tower, those that CLIP has not.
    """
    strays: list[View] = []
    if checkpoint is not None:
        prefix = tower_prefix(checkpoint)
        # Beside the tower proper, its CLIP model may have left its projection.
        root = None if prefix is None else prefix.removesuffix("vision_model.")
        own = [(name, t) for name, t in checkpoint.tensors.items() if not is_projector_name(name)]
        strays += [tensor for name, tensor in own if root is None or not name.startswith(root)]
    prefix = tower_prefix(tower) or ""
    found = {name: tensor for name, tensor in tower.tensors.items() if name.startswith(prefix)}
    if checkpoint is tower:
        return {name: tensor for name, tensor in found.items() if not is_projector_name(name)}, strays
    for name, tensor in tower.tensors.items():
        if name == PROJECTIONS[VISION]:
            found[name] = tensor
        elif name not in found and not _BESIDE_TOWER.fullmatch(name):
            strays.append(tensor)
    return found, strays


def _in_order_of(projector: list[View], model: Model) -> Model:
    """Return a model whose projector has the order in which its tensors came."""
    count = len(projector)
    order = {tensor.name: number for number, tensor in enumerate(projector)}
    first = sorted(model.outputs[:count], key=lambda output: order[output.source.name])
    return replace(model, outputs=(*first, *model.outputs[count:]))


def _projector(inputs: Inputs, checkpoint: Checkpoint | None) -> tuple[list[View], bool, Folder | File]:
    """Return the projector's tensors, whether their order is the file's to keep, and where they are from."""
    if inputs.options.llava_projector is None:
        assert checkpoint is not None
        tensors = [tensor for name, tensor in checkpoint.tensors.items() if is_projector_name(name)]
        return tensors, False, checkpoint.folder
    source = place(inputs.options.llava_projector)
    opened = Checkpoint.open_file(source) if isinstance(source, File) else Checkpoint.open(source, is_projector_name)
    CheckpointError.raise_all(
        f"{source}: tensor {name!r} is unknown, a projector's are model.mm_projector.* or multi_modal_projector.*"
        for name in opened.tensors
        if not is_projector_name(name)
    )
    # The torch reference takes a file of torch's as it comes; a safetensors file's order means nothing.
    return list(opened.tensors.values()), isinstance(source, File) and not opened.is_safetensors, source
