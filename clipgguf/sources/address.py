"""Addresses that are no paths: models of the Hugging Face hub, and what web servers and object stores have."""

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
# Amazon S3 and what speaks as it does, Google Cloud Storage, Azure Blob Storage.
_STORE = re.compile(r"(?P<scheme>s3|gs|az)://(?P<rest>.*)", re.DOTALL)
_BUCKET = re.compile(r"(?P<bucket>[\w][\w.-]*)(?:/(?P<key>.*))?", re.DOTALL)


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


@dataclass(frozen=True, slots=True)
class StoreAddress:
    """A bucket of an object store (Azure: a container), and the key of an object in it, or what keys begin with."""

    scheme: str
    bucket: str
    key: str = ""

    @classmethod
    def read(cls, text: str) -> "StoreAddress | None":
        """Return what "s3://...", "gs://..." or "az://..." names, None for all else; CheckpointError without bucket."""
        if (found := _STORE.fullmatch(text)) is None:
            return None
        scheme, named = found["scheme"], _BUCKET.fullmatch(found["rest"])
        if named is None:
            raise CheckpointError(f"{scheme}://: names no bucket, should be {scheme}://BUCKET/PREFIX/")
        return cls(scheme, named["bucket"], (named["key"] or "").lstrip("/"))

    def __str__(self) -> str:
        """Return the address as it is given."""
        return f"{self.scheme}://{self.bucket}/{self.key}"


def is_store(text: str) -> bool:
    """Return whether a text is the address of something in an object store."""
    return _STORE.fullmatch(text) is not None
