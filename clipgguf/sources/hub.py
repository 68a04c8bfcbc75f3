"""Models of the Hugging Face hub as folders: huggingface_hub knows who may read what, ranges bring the bytes.

A revision is resolved to its commit once, and the commit stands in every address: nothing changes meanwhile. What the
local cache has of that commit is read there; nothing is written into it.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import huggingface_hub
from huggingface_hub import errors
from huggingface_hub.utils import build_hf_headers

from clipgguf.errors import CheckpointError
from clipgguf.regular_file import NO_MODEL_FILES, STAND_INS
from clipgguf.sources import File, Folder, Source
from clipgguf.sources.address import HubAddress
from clipgguf.sources.expected import Files
from clipgguf.sources.https import WebFile
from clipgguf.sources.line import Access, told_wait
from clipgguf.sources.local import LocalFile, LocalFolder
from clipgguf.sources.tries import AGAIN, LineError, tried

T = TypeVar("T")

# How long the hub may take for an answer, in seconds.
_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Repository:
    """A model at one commit: the sizes of its files by their paths, and what gives access to them."""

    id: str
    revision: str | None
    commit: str
    files: Mapping[str, int]
    endpoint: str
    access: Access


class HubFolder(Folder):
    """The files of a model, or of a folder in it, at one commit."""

    def __init__(self, repository: Repository, path: str = "") -> None:
        """Take the folder, which need not be there."""
        self.repository, self.path = repository, path
        self.revision, self.commit = repository.revision, repository.commit
        self.name = str(HubAddress(repository.id, repository.revision, path))
        self._files = Files(lambda file: self._opened(file, NO_MODEL_FILES))

    @property
    def title(self) -> str:
        """The folder's name, that of the model without its owner where it is all of it."""
        return (self.path or self.repository.id).rpartition("/")[2]

    def _path(self, name: str) -> str:
        return f"{self.path}/{name}" if self.path else name

    def __contains__(self, file: str) -> bool:
        """Return whether the commit has a file or a folder of this name."""
        path, files = self._path(file), self.repository.files
        return path in files or any(name.startswith(f"{path}/") for name in files)

    def open(self, file: str) -> Source:
        """Open a file. Raises CheckpointError when it is missing or none that a model has."""
        return self._files.get(file)

    def expect(self, files: Iterable[str], one_of: Iterable[str] = ()) -> None:
        """Open files at the same time, as far as they are there."""
        here, others = ([n for n in names if self._path(n) in self.repository.files] for names in (files, one_of))
        self._files.expect([*here, *others[:1]])

    def open_any(self, file: str) -> Source:
        """Open a file that need not be a model's."""
        return self._opened(file, STAND_INS)

    def _opened(self, file: str, refused: Mapping[bytes, str]) -> Source:
        path, repository, name = self._path(file), self.repository, self.name_of(file)
        if path not in repository.files:
            raise CheckpointError(f"{name}: is missing, commit {repository.commit} does not have it")
        cached = huggingface_hub.try_to_load_from_cache(repository.id, path, revision=repository.commit)
        if isinstance(cached, str):
            return LocalFile(Path(cached), refused)
        url = huggingface_hub.hf_hub_url(repository.id, path, revision=repository.commit, endpoint=repository.endpoint)
        found = WebFile(name, url, repository.access, refused)
        if found.size != repository.files[path]:
            raise CheckpointError(f"{name}: has {found.size:,} bytes, the hub lists {repository.files[path]:,}")
        return found

    def name_of(self, file: str) -> str:
        """Return a file's address."""
        return f"{self.name}/{file}"

    def folder(self, name: str) -> "HubFolder":
        """Return a folder inside, or beside where ``name`` begins with "../"."""
        if name.startswith("../"):
            above = self.path.rpartition("/")[0]
            return HubFolder(self.repository, f"{above}/{name[3:]}" if above else name[3:])
        return HubFolder(self.repository, self._path(name))


def hub_place(address: HubAddress) -> Folder | File:
    """Return what an address names: a folder, or a file in one.

    Offline, that is the snapshot in the local cache. Raises CheckpointError when there is no such model, revision, file
    or folder, or when the hub cannot be reached.
    """
    try:
        repository = _asked(address, lambda: _repository(address))
    except errors.OfflineModeIsEnabled:
        return _cached(address)
    path = address.path
    if path in repository.files:
        folder, _, name = path.rpartition("/")
        return HubFolder(repository, folder).file(name)
    whole = HubFolder(repository)
    if path and path not in whole:
        raise CheckpointError(f"{address}: is missing, commit {repository.commit} does not have it")
    return HubFolder(repository, path)


def _repository(address: HubAddress) -> Repository:
    api = huggingface_hub.HfApi()
    commit = api.model_info(address.repo, revision=address.revision, timeout=_SECONDS).sha
    if not commit:
        raise CheckpointError(f"{address}: the hub names no commit")
    entries = api.list_repo_tree(address.repo, recursive=True, revision=commit)
    files = {entry.path: entry.size for entry in entries if isinstance(entry, huggingface_hub.hf_api.RepoFile)}
    # The token that the user has logged in with, if there is one and it may be used unasked.
    token = {name: value for name, value in build_hf_headers().items() if name.lower() == "authorization"}
    access = Access(api.endpoint, token)
    return Repository(address.repo, address.revision, commit, files, api.endpoint, access)


def _asked(address: HubAddress, ask: Callable[[], T]) -> T:
    """Return what the hub answers, after the usual tries; CheckpointError where it answers that there is nothing."""

    def ask_once() -> T:
        try:
            return ask()
        except (CheckpointError, errors.OfflineModeIsEnabled):
            raise
        except errors.HfHubHTTPError as e:
            status = e.response.status_code if e.response is not None else 0
            if status not in AGAIN:
                raise CheckpointError(f"{address}: {why_not(address, e, status)}") from e
            raise LineError(f"the hub answered {status}", told_wait(status, e.response.headers)) from e
        except errors.HFValidationError as e:
            raise CheckpointError(f"{address}: is no model's name on the hub") from e
        except Exception as e:  # What the line does is another class with every version of huggingface_hub.
            raise LineError(f"the hub cannot be reached ({type(e).__name__})") from e

    return tried(str(address), ask_once)


def why_not(address: HubAddress, error: Any, status: int) -> str:
    """Return why the hub refuses something, by huggingface_hub's error and the status of the answer."""
    if isinstance(error, errors.GatedRepoError):
        return "is a gated model: its page asks for consent, and `hf auth login` then gives access"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "does not exist on the hub, or is private and `hf auth login` gives access"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"the model has no revision {address.revision}"
    if status == 401:
        return "the hub does not accept the token; `hf auth login` renews it"
    return f"the hub answered {status}"


def _cached(address: HubAddress) -> Folder | File:
    """Return what an address names in the local cache, for work without a network."""
    try:
        found = Path(huggingface_hub.snapshot_download(address.repo, revision=address.revision, local_files_only=True))
    except (errors.LocalEntryNotFoundError, OSError, ValueError) as e:
        raise CheckpointError(f"{address}: is not in the local cache, and HF_HUB_OFFLINE keeps it so") from e
    path = found / address.path
    folder = LocalFolder(path if path.is_dir() else path.parent)
    folder.revision = address.revision
    return folder if path.is_dir() else folder.file(path.name)
