"""Which family a checkpoint belongs to, and its tensors under CLIP's canonical (Hugging Face) names."""

from dataclasses import replace

from clipgguf.checkpoint import Checkpoint
from clipgguf.checkpoint.not_weights import hub_advice, other_folder
from clipgguf.config import valid_text
from clipgguf.errors import CheckpointError, os_reason
from clipgguf.families.clip import open_transformers
from clipgguf.families.llava import is_llava, open_llava
from clipgguf.families.model import Content, Model, Projector, Request, refuse_unused
from clipgguf.families.open_clip import CONFIG_FILE, is_openclip, open_openclip
from clipgguf.json_file import is_present, read_json_object
from clipgguf.regular_file import NO_MODEL_FILES, open_regular

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
    model, directory = request.model_dir, request.directory
    path = directory / "config.json"
    if not model.exists():
        raise CheckpointError(
            f"{model}: is missing, should be a model's directory, with config.json and its weights{hub_advice(model)}"
        )
    if model.is_file():
        # Before its directory is looked at: somebody may have given something else than weights.
        open_regular(model, CheckpointError, NO_MODEL_FILES).close()
    if not is_present(path) and not is_present(directory / CONFIG_FILE) and (what := other_folder(directory)):
        raise CheckpointError(f"{directory}: {what}")
    if _is_open_clip(request):
        return open_openclip(request)
    config = read_json_object(path)
    if request.llava_projector is not None or is_llava(config):
        return open_llava(request, config)
    return open_transformers(request, config)


def _is_open_clip(request: Request) -> bool:
    """Return whether the weights that will be read are OpenCLIP's, by the name of their file or config."""
    directory = request.directory
    has_config, has_own = is_present(directory / "config.json"), is_present(directory / CONFIG_FILE)
    if has_own and not has_config:
        return True
    if request.model_dir.is_file():
        if request.model_dir.name.startswith("open_clip_"):
            return True
        # A training run calls its file anything ("epoch_3.pt"). With both configs beside it, or none, the names tell.
        return has_own == has_config and is_openclip(request.open_checkpoint().tensors)
    if not has_config:
        # Only to say what is missing: OpenCLIP's config, or config.json.
        return any(directory.glob("open_clip_*"))
    return Checkpoint.find(directory, request.variant).name.startswith("open_clip_")
