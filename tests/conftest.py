"""What all tests share: a small model, and the command line as its user runs it."""

import contextlib
import faulthandler
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from clipgguf import convert, kernels
from clipgguf.encode import encoder
from clipgguf.kernels.build import build
from tests.checkpoints import write_model
from tests.family_fixtures import FIXTURES, Fixture, Write, Written
from tests.llama_client import write_tiny_language_model
from tests.llava_checkpoints import Llava
from tests.processes import HANGS_AFTER, interruptible_children, run_here, run_process

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session", autouse=True)
def _interruptible_children() -> Iterator[None]:
    with interruptible_children():
        yield


@pytest.fixture(autouse=True)
def _never_waits(request: pytest.FixtureRequest) -> Iterator[None]:
    """End the tests where one waits for a pipe or reads without end; a slow one may take long."""
    if request.node.get_closest_marker("slow") is None:
        faulthandler.dump_traceback_later(HANGS_AFTER, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have no huggingface_hub, so that no name is looked for on the hub; tests/test_hub.py has it."""
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A small two-tower model in float32, one safetensors file."""
    return write_model(tmp_path / "tiny-clip")


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """The empty directory in which the command line runs."""
    path = tmp_path / "work"
    path.mkdir()
    return path


@pytest.fixture
def run(work: Path) -> Run:
    """Run ``clipgguf`` with arguments in this process; its exit code and its output come back as a process's would."""
    return lambda *args, cwd=work: run_here(*args, cwd=cwd)


@pytest.fixture
def run_alone(work: Path) -> Run:
    """Run ``clipgguf`` in a process of its own, where that matters; the options are those of ``subprocess.run``."""
    return lambda *args, **options: run_process(*args, **{"cwd": work, **options})


@pytest.fixture(scope="session")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny language model of llama.cpp's tests, as wide as the projectors of ``Llava``."""
    path = tmp_path_factory.mktemp("lm") / "llama.gguf"
    write_tiny_language_model(path, Llava().text_width)
    return path


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Write:
    """Write a family's fixture and convert it, once in a session."""

    @cache
    def write(name: str) -> Written:
        directory = tmp_path_factory.mktemp("family")
        model = Fixture.read(FIXTURES / f"{name}.json").write(directory / "m")
        return Written(model, convert(model, directory / "out.gguf").path)

    return lambda fixture: write(fixture.name)


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled encoders, made from the source as it stands."""
    path = tmp_path_factory.mktemp("kernels") / kernels.LIBRARY.name
    if sys.byteorder != "little" or not build(path):
        pytest.skip("no C compiler that works here")
    return path


@contextlib.contextmanager
def looked_for_anew() -> Iterator[None]:
    """Look for the compiled encoders again, and once more afterwards."""
    kernels.kernel.cache_clear()
    encoder.cache_clear()
    yield
    kernels.kernel.cache_clear()
    encoder.cache_clear()


@pytest.fixture(params=["compiled", "numpy"])
def encoders(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Run the test with the compiled encoders, then with numpy's."""
    if request.param == "compiled":
        monkeypatch.setattr(kernels, "LIBRARY", request.getfixturevalue("library"))
        monkeypatch.delenv("CLIPGGUF_PURE", raising=False)
    else:
        monkeypatch.setenv("CLIPGGUF_PURE", "1")
    with looked_for_anew():
        assert kernels.encoders() == request.param
        yield request.param


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[bytes], Path]:
    """Write a file of torch's with a content, and return its path."""

    def save(content: bytes) -> Path:
        path = tmp_path / "pytorch_model.bin"
        path.write_bytes(content)
        return path

    return save


# ---- what is left out ------------------------------------------------------------------------------------------------


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say in a line what the default "-m 'not slow'" leaves out; how many they are, the workers alone know."""
    if config.option.markexpr == "not slow":
        terminalreporter.write_line("left out: slow tests; python -m pytest -m '' runs all")
