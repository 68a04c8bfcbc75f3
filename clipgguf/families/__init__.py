"""Which family a checkpoint belongs to, and its tensors under CLIP's canonical (Hugging Face) names."""

from clipgguf.errors import CheckpointError
from clipgguf.families.clip import open_clip
from clipgguf.families.llava import is_llava, open_llava
from clipgguf.families.model import Content, Model, Projector, Request
from clipgguf.json_file import read_json_object

__all__ = ["Content", "Model", "Projector", "Request", "open_model"]


def open_model(request: Request) -> Model:
    """Open the checkpoint of a request: read its JSON files and headers, and find out what it is.

    Raises ConfigError or CheckpointError when it is nothing that can be converted as requested.
    """
    directory = request.model_dir
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: is no directory, should be a model's, with config.json and its weights")
    config = read_json_object(directory / "config.json")
    if request.llava_projector is not None or is_llava(config):
        return open_llava(request, config)
    return open_clip(request, config)
