"""An object store on loopback that obstore takes for S3, and a model in it; skipped where obstore is not installed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from clipgguf.sources import tries
from tests.checkpoints import write_model
from tests.object_server import ObjectServer
from tests.test_sources import DEEP

pytest.importorskip("obstore", reason="the extra s3 is not installed")

__all__ = ["stored"]


@contextmanager
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectServer]:
    """Serve the bucket b, with a model below models/m/."""
    monkeypatch.setattr(tries, "FIRST_WAIT", 0.01)
    root = tmp_path / "root"
    write_model(root / "b" / "models" / "m", DEEP, shards=3)
    for name in [name for name in os.environ if name.startswith(("AWS_", "GOOGLE_", "AZURE_"))]:
        monkeypatch.delenv(name)
    with ObjectServer(root) as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        yield server
