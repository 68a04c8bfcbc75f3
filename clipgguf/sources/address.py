"""Addresses that are no paths: models of the Hugging Face hub, and what web servers have."""

import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from clipgguf.errors import CheckpointError

# A model's name on the hub: its owner's and its own.
_NAME = r"[\w-][\w.-]*/[\w-][\w.-]*"
# A revision has no slash, but for those that git calls refs/pr/7.
_HF = re.compile(rf"hf://(?:models/)?(?P<repo>{_NAME})(?:@(?P<revision>refs/[^/@]+/[^/@]+|[^/@]+))?(?:/(?P<path>.*))?")
_PAGE = re.compile(
    rf"(?:https?://(?:www\.)?huggingface\.co/|hf\.co/)(?P<repo>{_NAME})"
    r"(?:/(?:tree|blob|resolve)/(?P<revision>refs/[^/]+/[^/]+|[^/]+)(?:/(?P<path>[^?]*))?)?/?(?:\?.*)?"
)


@dataclass(frozen=True, slots=True)
class HubAddress:
    """A model on the hub, at a revision (None: the default branch), and a file or folder in it ("" for all of it)."""

    repo: str
    revision: str | None = None
    path: str = ""

    @classmethod
    def read(cls, text: str) -> "HubAddress | None":
        """Return what "hf://..." or a page of the hub names, None for all else; CheckpointError for a wrong one."""
        if (page := _PAGE.fullmatch(text)) is not None:
            return cls(page["repo"], page["revision"] and unquote(page["revision"]), unquote(page["path"] or ""))
        if not text.startswith("hf://"):
            return None
        found = _HF.fullmatch(text)
        if found is None or found["repo"].partition("/")[0] in ("datasets", "spaces", "models"):
            raise CheckpointError(f"{text}: is no model of the hub, should be hf://OWNER/NAME[@REVISION][/FOLDER]")
        return cls(found["repo"], found["revision"], (found["path"] or "").strip("/"))

    @classmethod
    def bare(cls, text: str) -> "HubAddress | None":
        """Return what OWNER/NAME names on the hub, None for anything else."""
        return cls(text) if re.fullmatch(_NAME, text) else None

    def __str__(self) -> str:
        """Return the address as it is given."""
        at = f"@{self.revision}" if self.revision else ""
        return f"hf://{self.repo}{at}{self.path and '/' + self.path}"


def is_web(text: str) -> bool:
    """Return whether a text is the address of something on a web server."""
    return text.startswith(("https://", "http://")) and bool(urlsplit(text).hostname)
