"""Which family a checkpoint belongs to, and its tensors under CLIP's canonical (Hugging Face) names."""

from clipgguf.errors import CheckpointError
from clipgguf.families.clip import open_clip
from clipgguf.families.model import Content, Model, Request

__all__ = ["Content", "Model", "Request", "open_model"]


def open_model(request: Request) -> Model:
    """Open the checkpoint of a request: read its JSON files and headers, and find out what it is.

    Raises ConfigError or CheckpointError when it is nothing that can be converted as requested.
    """
    if not request.model_dir.is_dir():
        raise CheckpointError(
            f"{request.model_dir}: is no directory, should be a model's, with config.json and its weights"
        )
    return open_clip(request)
