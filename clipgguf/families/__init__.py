"""Which family a checkpoint belongs to, and its tensors under CLIP's canonical (Hugging Face) names."""

from dataclasses import replace

from clipgguf.checkpoint import Checkpoint
from clipgguf.config import valid_text
from clipgguf.errors import CheckpointError, ConfigError, os_reason
from clipgguf.families.clip import open_transformers
from clipgguf.families.llava import is_llava, open_llava
from clipgguf.families.model import Content, Model, Projector, Request, refuse_unused
from clipgguf.families.open_clip import CONFIG_FILE, open_openclip
from clipgguf.json_file import read_json_object

__all__ = ["Content", "Model", "Projector", "Request", "open_model"]


def open_model(request: Request) -> Model:
    """Open the checkpoint of a request: read its JSON files and headers, and find out what it is.

    Raises ConfigError or CheckpointError when it is nothing that can be converted as requested, UsageError when the
    request has options that do not apply to it.
    """
    try:
        model = _open(request)
    except OSError as e:  # A directory that may not be searched, a name that is too long.
        raise CheckpointError(f"{e.filename or request.model_dir}: cannot be read: {os_reason(e)}") from e
    refuse_unused(request, model)
    return model if request.name is None else replace(model, name=valid_text(request.name))


def _open(request: Request) -> Model:
    if not request.model_dir.exists():
        raise CheckpointError(
            f"{request.model_dir}: is missing, should be a model's directory, with config.json and its weights"
        )
    path = request.directory / "config.json"
    if _is_open_clip(request):
        return open_openclip(request)
    config = read_json_object(path)
    if quantization := config.get("quantization_config"):
        method = quantization.get("quant_method") if isinstance(quantization, dict) else None
        by = method if isinstance(method, str) and method else "quantization_config"
        raise ConfigError(
            f"{path}: the checkpoint is quantized ({by}), supported are weights in F64, F32, F16 and BF16"
        )
    if request.llava_projector is not None or is_llava(config):
        return open_llava(request, config)
    return open_transformers(request, config)


def _is_open_clip(request: Request) -> bool:
    """Return whether the weights that will be read are OpenCLIP's, by the name of their file or config."""
    directory = request.directory
    if not (directory / "config.json").exists() and (directory / CONFIG_FILE).exists():
        return True
    if request.model_dir.is_file():
        return request.model_dir.name.startswith("open_clip_")
    if not (directory / "config.json").exists():
        # Only to say what is missing: OpenCLIP's config, or config.json.
        return any(directory.glob("open_clip_*"))
    return Checkpoint.find(directory, request.variant).name.startswith("open_clip_")
