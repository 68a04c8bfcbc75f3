"""Models that have each of the JSON files that are read, for tests that spoil one of them."""

from collections.abc import Callable
from pathlib import Path

from tests.checkpoints import write_model
from tests.clip_checkpoints import write_clip
from tests.open_clip_checkpoints import write_open_clip


def tokenizer(directory: Path) -> Path:
    """Write a model with the JSON files of transformers 5."""
    return write_clip(directory, vocabulary="tokenizer.json", processor="processor_config.json")


def sharded(directory: Path) -> Path:
    """Write a model in three shards."""
    return write_model(directory, shards=3)


# Every JSON file that is read, and what writes a model that has it.
JSON_FILES: dict[str, Callable[[Path], Path]] = {
    "config.json": write_model,
    "preprocessor_config.json": write_model,
    "vocab.json": write_model,
    "processor_config.json": tokenizer,
    "tokenizer.json": tokenizer,
    "model.safetensors.index.json": sharded,
    "open_clip_config.json": write_open_clip,
}
INDEX = "model.safetensors.index.json"
