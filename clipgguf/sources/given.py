"""What a path means that the command line or Python gives: a folder, or a file in one."""

import re
from pathlib import Path

from clipgguf.options import PathLike
from clipgguf.sources import File, Folder
from clipgguf.sources.local import LocalFolder

# A model's name on the Hugging Face hub, also as a part of its address there.
_HUB = re.compile(r"(?:https?:/(?:www\.)?huggingface\.co/|hf\.co/)?([\w-][\w.-]*/[\w-][\w.-]*)(?:/(?:tree|blob)/.*)?")
_FILE_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".json")


def place(given: PathLike) -> Folder | File:
    """Return the folder that a path leads to, or else the file that it is meant to be; either need not be there."""
    path = Path(given)
    return LocalFolder(path) if path.is_dir() else given_file(path)


def given_file(given: PathLike) -> File:
    """Return the file that a path is meant to be; it need not be there."""
    path = Path(given)
    return LocalFolder(path.parent).file(path.name)


def hub_advice(given: Folder | File) -> str:
    """Return how to download what a path that is not there may mean on the Hugging Face hub; empty for any other."""
    path = Path(str(given))
    match = _HUB.fullmatch(path.as_posix())
    if match is None or path.suffix in _FILE_SUFFIXES or path.parent.exists():
        return ""
    name = match[1].rpartition("/")[2]
    download = f"`hf download {match[1]} --local-dir {name}`"
    return f"; if it is a model of the Hugging Face hub, {download} gets it, and {name} can then be converted"
