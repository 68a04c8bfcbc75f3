"""The promise of constant memory, over a line: the command line's peak, measured by the operating system."""

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.hub_process import hub_process
from tests.hub_server import Fault, HubServer
from tests.line import Line
from tests.object_server import ObjectServer
from tests.processes import MIB, peak_rss
from tests.test_interruption import sparse_model

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss is in KiB on Linux only")


@pytest.mark.slow
def test_peak_memory_over_a_line(tmp_path: Path) -> None:
    with HubServer(tmp_path / "root") as hub:
        sparse_model(hub.root / "o" / "vit")
        hub.faults.append(Fault("drop", after=500_000, skip=5, times=20))
        words = ("-m", "clipgguf", f"{hub.plain}/o/vit", "-o", tmp_path / "out", "--outtype", "f16")
        assert peak_rss(*words) <= 68 * MIB
        assert hub.sent("*.safetensors") > 600e6
        assert hub.faults[0].times == 0


@pytest.mark.slow
@pytest.mark.skipif(find_spec("huggingface_hub") is None, reason="the extra hub is not installed")
def test_peak_memory_from_the_hub_over_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sparse_model(tmp_path / "root" / "o" / "vit")
    with hub_process(tmp_path / "root", Line(latency=0.01), tmp_path / "home", tls=True) as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        assert peak_rss("-m", "clipgguf", "hf://o/vit", "-o", tmp_path / "out") <= 80 * MIB


@pytest.mark.slow
def test_peak_memory_from_and_into_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("obstore", reason="the extra s3 is not installed")
    with ObjectServer(tmp_path / "root") as store:
        local = sparse_model(store.root / "b" / "vit")
        for name, value in store.environment().items():
            monkeypatch.setenv(name, value)
        words = ("-m", "clipgguf", "--outtype", "f32", "-o", "s3://b/out/")
        assert peak_rss(*words, local) <= 60 * MIB
        assert peak_rss(*words, "s3://b/vit") <= 78 * MIB
        assert store.sent("*.safetensors") > 600e6
