"""A file that is written to a temporary place and then uploaded to the Hugging Face hub, as huggingface_hub does it.

Its public functions take a file that is complete (``HfApi.upload_file``); they know the token, and how large files go
(Xet or LFS). A commit is the last step: until then nothing of it can be seen.
"""

import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import huggingface_hub
from huggingface_hub import errors
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from clipgguf.errors import OutputError, os_reason
from clipgguf.planning import Plan
from clipgguf.sources.address import HubAddress
from clipgguf.sources.hub import why_not
from clipgguf.writer import Progress, write_plan

T = TypeVar("T")

LOG = logging.getLogger("clipgguf")


def upload_when_written(
    plan: Plan, address: HubAddress, *, threads: int | None = None, progress: Progress | None = None
) -> dict[str, int]:
    """Write the file that a plan describes to a temporary directory and upload it; see ``uploads.upload_plan``."""
    hub_size(address)  # What cannot be written there is told before the file is made.
    try:
        with tempfile.TemporaryDirectory(prefix="clipgguf-") as directory:
            path = Path(directory) / "upload.gguf"
            overflows = write_plan(plan, path, threads=threads, progress=progress)
            LOG.info("%s: %s bytes are uploaded", address, f"{path.stat().st_size:,}")
            with _without_bars():
                _asked(address, lambda: _upload(path, address))
    except OSError as e:
        raise OutputError(f"{address}: cannot be written: its temporary file: {os_reason(e)}") from e
    return overflows


def _upload(path: Path, address: HubAddress) -> None:
    huggingface_hub.HfApi().upload_file(
        path_or_fileobj=path,
        path_in_repo=address.path,
        repo_id=address.repo,
        revision=address.revision,
        commit_message=f"Upload {address.path} with clipgguf",
    )


def hub_size(address: HubAddress) -> int | None:
    """Return the bytes of the file that would be replaced, None where there is none.

    Raises OutputError when there is no such model or revision, or nobody is logged in.
    """
    api = huggingface_hub.HfApi()
    if huggingface_hub.get_token() is None:
        raise OutputError(f"{address}: cannot be written: there is no token for the hub; `hf auth login` gets one")
    _asked(address, lambda: api.model_info(address.repo, revision=address.revision))
    found = _asked(address, lambda: api.get_paths_info(address.repo, [address.path], revision=address.revision))
    return next((entry.size for entry in found if isinstance(entry, huggingface_hub.hf_api.RepoFile)), None)


def _asked(address: HubAddress, ask: Callable[[], T]) -> T:
    """Return what the hub answers; huggingface_hub tries again by itself. Raises OutputError."""
    try:
        return ask()
    except errors.OfflineModeIsEnabled as e:
        raise OutputError(f"{address}: cannot be written: HF_HUB_OFFLINE keeps clipgguf from the hub") from e
    except errors.HFValidationError as e:
        raise OutputError(f"{address}: is no model's name on the hub") from e
    except Exception as e:  # What the line does is another class with every version of huggingface_hub.
        raise OutputError(f"{address}: cannot be written: {_reason(address, e)}") from e


def _reason(address: HubAddress, error: BaseException) -> str:
    """Return why it failed, without the library's own words: they may have an address, which may be signed."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, errors.HfHubHTTPError):
        cause = cause.__cause__
    if cause is None:
        return f"the hub cannot be reached, or does not answer ({type(error).__name__})"
    status = cause.response.status_code if cause.response is not None else 0
    return "the token gives no right to write there" if status == 403 else why_not(address, cause, status)


@contextmanager
def _without_bars() -> Iterator[None]:
    """Keep huggingface_hub from showing bars of its own."""
    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
