"""CLIPModel directories as transformers 4 and 5 save them."""

from collections.abc import Mapping
from typing import Any

from clipgguf.checkpoint import Checkpoint
from clipgguf.config import TextConfig, VisionConfig, model_name, parse_sub_config, read_image_statistics
from clipgguf.errors import ConfigError, collect
from clipgguf.families.model import Content, Model, Request
from clipgguf.vocabulary import read_vocabulary


def open_clip(request: Request, config: Mapping[str, Any]) -> Model:
    """Open a CLIPModel directory, whose config.json is already read.

    Raises ConfigError or CheckpointError when it is none, or lacks a part of what was asked for.
    """
    directory = request.model_dir
    path = directory / "config.json"
    model_type = config.get("model_type")
    has_towers = any(key in config for key in ("text_config", "vision_config"))
    if model_type != "clip" and not (model_type is None and has_towers):
        is_what = "has no model_type" if model_type is None else f"is of model_type {model_type!r}"
        raise ConfigError(f"{path}: {is_what}, supported are 'clip' (CLIPModel) and LLaVA's")
    problems: list[str] = []
    with collect(problems):
        text = parse_sub_config(TextConfig, config, "text", path)
    with collect(problems):
        vision = parse_sub_config(VisionConfig, config, "vision", path)
    ConfigError.raise_all(problems)
    content = (
        Content.TEXT_ONLY if request.text_only else Content.VISION_ONLY if request.vision_only else Content.TWO_TOWER
    )
    # Before the headers, whose validation imports numpy: what parsing a vocabulary needs is then free again.
    vocabulary = None if content is Content.VISION_ONLY else read_vocabulary(directory)
    statistics = (
        None
        if content is Content.TEXT_ONLY
        else read_image_statistics((directory,), request.image_mean, request.image_std)
    )
    return Model(
        directory=directory,
        name=model_name(config, directory),
        content=content,
        text=text,
        vision=vision,
        tensors=Checkpoint.open(directory).tensors,
        vocabulary=vocabulary,
        statistics=statistics,
    )
