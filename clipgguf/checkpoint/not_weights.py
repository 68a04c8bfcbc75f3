"""What a directory without weights is, and what is to be done about it: downloads and formats that people mix up."""

import contextlib
import re
from collections.abc import Sequence
from pathlib import Path

from clipgguf.sources import Folder
from clipgguf.sources.local import LocalFolder

# Weights of other programs, which transformers saves beside ours or instead of them.
_TRANSFORMERS_4 = "transformers 4 turns them into ours: load the model with {}=True and save it with save_pretrained"
_EXPORTED = "they should be converted from the checkpoint that they were exported from"
OTHER_FORMATS: Sequence[tuple[str, str, str]] = (
    ("flax_model*.msgpack", "Flax", _TRANSFORMERS_4.format("from_flax")),
    ("tf_model*.h5", "TensorFlow", _TRANSFORMERS_4.format("from_tf")),
    ("*.onnx", "ONNX", _EXPORTED),
    ("onnx/*.onnx", "ONNX", _EXPORTED),
    ("*.gguf", "GGUF already", "`clipgguf inspect` looks into them"),
)
# How a file of weights is called, and what else of a training run looks like one.
WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.ckpt")
NO_WEIGHTS = re.compile(r"(?:training_args|optimizer|scheduler|scaler|rng_state|tokenizer).*")
SHARD = re.compile(r"-\d{5}-of-\d{5}\.")
# One of several weights of one directory, as transformers and diffusers call them.
VARIANT = re.compile(
    r"(?:model|pytorch_model)\."
    r"(?:(?!\d{5}-of-)([^.]+?)(?:-\d{5}-of-\d{5})?\.(?:safetensors|bin)(?:\.index\.json)?"
    r"|(?:safetensors|bin)\.index\.([^.]+)\.json)"
)
SUB_MODELS = ("text_encoder", "text_encoder_2", "image_encoder")
MOST_NAMED = 5


def other_folder(folder: Folder) -> str | None:
    """Return what a directory is that holds a model in another place, or none yet; None when it is not recognised."""
    if not isinstance(folder, LocalFolder):  # Which cannot be looked into, but for names that are known.
        there = "model_index.json" in folder
        return _pipeline([folder.name_of(n) for n in SUB_MODELS if f"{n}/config.json" in folder]) if there else None
    directory = folder.path
    if snapshot := _snapshot(directory):
        return f"is a model's folder in the cache of the Hugging Face hub, the model itself is in {snapshot}"
    if (directory / "model_index.json").is_file():
        return _pipeline([str(directory / name) for name in SUB_MODELS if (directory / name).is_dir()])
    if unfinished := _unfinished(directory):
        return f"is a download that is not finished ({unfinished}); the same `hf download` once more finishes it"
    return None


def _pipeline(folders: Sequence[str]) -> str:
    what = f"each is converted by itself: {' or '.join(folders)}" if folders else "none of its models is a CLIP"
    return f"is a diffusers pipeline of several models, {what}"


def instead_of_weights(folder: Folder, missing: str) -> str:
    """Return what a directory without weights of ours is or has, and what to do; ``missing`` says what it lacks."""
    if other := other_folder(folder):
        return other
    if not isinstance(folder, LocalFolder):
        return missing
    directory = folder.path
    matches = map(VARIANT.fullmatch, _names(directory, "*"))
    if variants := sorted({match[1] or match[2] for match in matches if match}):
        option = " or ".join(f"`--variant {variant}`" for variant in variants)
        return f"has no model.safetensors, but weights of a variant; {option} takes them"
    for pattern, program, advice in OTHER_FORMATS:
        if names := _names(directory, pattern):
            return f"has weights only for {program} ({_listed(names)}); {advice}"
    names = [name for pattern in WEIGHTS for name in _names(directory, pattern) if not NO_WEIGHTS.match(name)]
    if shards := [name for name in names if SHARD.search(name)]:
        return f"{missing}; it has shards ({_listed(shards)}), but not the index that names them"
    return f"{missing}; it has {_listed(names)}, which can be given as the model" if names else missing


def _snapshot(directory: Path) -> Path | None:
    """Return the snapshot that a hub cache's folder of a model stands for, or None when it is no such folder."""
    root = directory.parent if directory.absolute().name == "snapshots" else directory
    snapshots = root / "snapshots"
    if not snapshots.is_dir() or not root.absolute().name.startswith("models--"):
        return None
    revisions = sorted(path.name for path in snapshots.iterdir())
    with contextlib.suppress(OSError, UnicodeDecodeError), (root / "refs" / "main").open(encoding="ascii") as file:
        revisions = [revision] if (revision := file.read(100).strip()) in revisions else revisions
    return snapshots / revisions[0] if revisions else None


def _unfinished(directory: Path) -> str | None:
    """Return the name of a file that ``hf download`` has not finished, or None without any."""
    places = [directory, directory / ".cache" / "huggingface" / "download"]
    if directory.absolute().parent.name == "snapshots":
        places.append(directory.absolute().parent.parent / "blobs")
    return next((name for place in places for name in _names(place, "*.incomplete")), None)


def _names(directory: Path, pattern: str) -> list[str]:
    with contextlib.suppress(OSError):  # A directory that may be searched, but not listed.
        return sorted(path.relative_to(directory).as_posix() for path in directory.glob(pattern))
    return []


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMED:,} more" if len(names) > MOST_NAMED else ""
    return f"{', '.join(names[:MOST_NAMED])}{more}"
