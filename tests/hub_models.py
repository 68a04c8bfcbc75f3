"""A hub on loopback that huggingface_hub takes for the real one, and models of it, here and in a cache."""

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from clipgguf import Options, convert
from clipgguf.sources import tries
from tests.checkpoints import write_model
from tests.hub_server import HubServer
from tests.test_sources import DEEP

try:
    import huggingface_hub
except ImportError:
    pytest.skip("the extra hub is not installed", allow_module_level=True)
from huggingface_hub import constants, file_download

from clipgguf.sources.hub import HubFolder

__all__ = ["HubFolder", "cached", "local", "served"]


@contextmanager
def served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server_class: type[HubServer] = HubServer
) -> Iterator[HubServer]:
    """Serve the model o/tiny-clip; the cache and the token's place are below ``tmp_path``."""
    monkeypatch.setitem(sys.modules, "huggingface_hub", huggingface_hub)
    monkeypatch.setattr(tries, "FIRST_WAIT", 0.01)
    root = tmp_path / "root"
    write_model(root / "o" / "tiny-clip", DEEP, shards=3)
    with server_class(root, page=3) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace("https://huggingface.co", server.endpoint)
        for module in (constants, file_download):  # Version 0.36 has it in both.
            monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
        yield server


def local(hub: HubServer, directory: Path, name: str = "o/tiny-clip", **options: Any) -> bytes:
    """Return the file of the local conversion."""
    return convert(hub.root / name, directory / "local.gguf", Options(**options)).path.read_bytes()


def cached(hub: HubServer, directory: Path) -> Path:
    """Put the model into a cache as the hub's client does, and return its snapshot."""
    repository, commit = directory / "models--o--tiny-clip", hub.commit("o/tiny-clip")
    shutil.copytree(hub.root / "o" / "tiny-clip", repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    return repository / "snapshots" / commit
