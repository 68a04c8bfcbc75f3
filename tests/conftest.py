"""What all tests share: a small model, and the command line as its user runs it."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.checkpoints import write_model
from tests.processes import HANGS_AFTER, interruptible_children, uncovered

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session", autouse=True)
def _interruptible_children() -> Iterator[None]:
    with interruptible_children():
        yield


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A small two-tower model in float32, one safetensors file."""
    return write_model(tmp_path / "tiny-clip")


# Whose runs of the command line are measured for coverage; it takes as long as what they do.
COVERED = ("test_cli", "test_inspect", "test_verify", "test_upgrade")


@pytest.fixture
def run(tmp_path: Path, request: pytest.FixtureRequest) -> Run:
    """Run ``clipgguf`` with arguments, in an empty directory; its output comes back as text."""
    work = tmp_path / "work"
    work.mkdir()
    environment = dict(os.environ) if request.module.__name__.endswith(COVERED) else uncovered()

    def run_clipgguf(*args: object, **options: object) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "clipgguf", *map(str, args)]
        return subprocess.run(  # type: ignore[call-overload, no-any-return]
            command,
            **{
                "cwd": work,
                "env": environment,
                "capture_output": True,
                "text": True,
                "timeout": HANGS_AFTER,
                **options,
            },
        )

    return run_clipgguf
