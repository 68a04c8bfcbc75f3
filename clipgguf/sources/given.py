"""What the command line or Python gives means: a path, or an address on the Hugging Face hub, the web, in a store."""

import importlib.util
import os
import sys
from dataclasses import replace
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit, urlunsplit

from clipgguf.errors import CheckpointError, UsageError
from clipgguf.options import PathLike
from clipgguf.sources import File, Folder, Source
from clipgguf.sources.address import HubAddress, StoreAddress, is_store, is_web
from clipgguf.sources.local import LocalFile, LocalFolder

_FILE_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".projector", ".gguf", ".json")
INSTALL_HUB = "`pip install 'clipgguf[hub]'`"
INSTALL_STORES = "`pip install 'clipgguf[s3]'`"


def place(given: PathLike, revision: str | None = None) -> Folder | File:
    """Return the folder that something given leads to, or else the file that it is meant to be.

    Paths need not be there. What is OWNER/NAME and no path here is looked for on the hub; ``revision`` is for models of
    the hub. Raises CheckpointError when there is nothing on the hub, or huggingface_hub is needed and not installed.
    """
    if (far := _far(given, revision)) is not None:
        return far
    path = Path(given)
    return LocalFolder(path) if path.is_dir() else _local_file(path)


def given_file(given: PathLike) -> File:
    """Return the file that something given is meant to be; it need not be there."""
    if (far := _far(given, None, is_file=True)) is None:
        return _local_file(Path(given))
    if isinstance(far, File):
        return far
    raise CheckpointError(f"{far}: is a folder, should be a file")


def given_source(given: PathLike) -> Source:
    """Open a file of any kind. Raises CheckpointError when it is missing."""
    if not is_far(given):
        return LocalFile(Path(given))
    file = given_file(given)
    return file.folder.open_any(file.name)


def is_far(given: PathLike) -> bool:
    """Return whether something given is an address, and no path. What has only the form of one is a path."""
    return isinstance(given, str) and (given.startswith("hf://") or is_web(given) or is_store(given))


def shown_place(given: PathLike) -> Path | str:
    """Return what is given for messages and results: a path, or an address without what may give access."""
    if not is_far(given):
        return Path(given)
    text = os.fspath(given)
    parts = urlsplit(text)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", "")) if is_web(text) else text


def bytes_received() -> int:
    """Return how many bytes this process has had over the line, without any where nobody needed the line."""
    callers = sys.modules.get("clipgguf.sources.callers")
    return 0 if callers is None else int(callers.CALLERS.received)


def _local_file(path: Path) -> File:
    return LocalFolder(path.parent).file(path.name)


def _far(given: PathLike, revision: str | None, *, is_file: bool = False) -> Folder | File | None:
    """Return what an address names, None for a path."""
    if not isinstance(given, str):
        return None
    if (stored := StoreAddress.read(given)) is not None:
        return _in_a_store(stored, is_file)
    address = HubAddress.read(given)
    if address is not None and (given.startswith("hf://") or _has_hub()):
        return _on_the_hub(_at(address, revision))
    if (address is None and is_web(given)) or (address is not None and address.path and is_web(given)):
        return _on_the_web(given, is_file)
    if not is_file and address is None and (bare := _bare(given)) is not None and _has_hub():
        try:
            return _on_the_hub(_at(bare, revision))
        except CheckpointError as e:
            raise CheckpointError(*(f"{given}: is no directory here; {problem}" for problem in e.problems)) from e
    return None


def _at(address: HubAddress, revision: str | None) -> HubAddress:
    if revision is not None and address.revision not in (None, revision):
        raise UsageError(f"is {revision}, but {address} names another", "revision")
    return replace(address, revision=revision or address.revision)


def _bare(given: str) -> HubAddress | None:
    """Return what OWNER/NAME may be on the hub, where it can hardly be meant as a path."""
    path = Path(given)
    if path.suffix in _FILE_SUFFIXES or os.path.lexists(path) or path.parent.exists():
        return None
    return HubAddress.bare(given)


def _has_hub() -> bool:
    return has_package("huggingface_hub")


def has_package(name: str) -> bool:
    """Return whether a package of an extra is installed."""
    try:
        return importlib.util.find_spec(name) is not None
    except ValueError:  # Somebody has put None in its place, as one does to be without a module.
        return False


def _on_the_hub(address: HubAddress) -> Folder | File:
    if not _has_hub():
        raise CheckpointError(f"{address}: is on the Hugging Face hub; {INSTALL_HUB} lets clipgguf read from there")
    from clipgguf.sources.hub import hub_place

    return hub_place(address)


def _on_the_web(given: str, is_file: bool) -> Folder | File:
    from clipgguf.sources.line import Access
    from clipgguf.sources.web_folder import WebFolder

    parts = urlsplit(given)
    user, host = parts.netloc.rpartition("@")[::2]
    url = urlunsplit(parts._replace(netloc=host, fragment=""))
    access = Access.of_user(url, user)
    suffix = PurePosixPath(parts.path).suffix
    if parts.path.endswith("/") or not (is_file or suffix in _FILE_SUFFIXES):
        return WebFolder(url, access)
    path, _, name = parts.path.rpartition("/")
    folder = WebFolder(urlunsplit(urlsplit(url)._replace(path=path + "/")), access)
    return folder.file(unquote(name))


def _in_a_store(address: StoreAddress, is_file: bool) -> Folder | File:
    if not has_package("obstore"):
        raise CheckpointError(f"{address}: is in an object store; {INSTALL_STORES} lets clipgguf read from there")
    from clipgguf.sources.object_store import store_place

    return store_place(address, is_file=is_file or PurePosixPath(address.key).suffix in _FILE_SUFFIXES)


def hub_advice(given: Folder | File) -> str:
    """Return how to come by what a path that is not there may mean on the Hugging Face hub; empty for any other."""
    text = Path(str(given)).as_posix().replace("https:/h", "https://h").replace("http:/h", "http://h")
    address = HubAddress.read(text) or _bare(text)
    if address is None or Path(text).suffix in _FILE_SUFFIXES:
        return ""
    name = address.repo.rpartition("/")[2]
    read = "" if _has_hub() else f"; with {INSTALL_HUB} clipgguf reads models from the Hugging Face hub"
    download = f"`hf download {address.repo} --local-dir {name}`"
    return f"{read}; if it is a model of the Hugging Face hub, {download} gets it, and {name} can then be converted"
