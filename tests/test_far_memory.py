"""The promise of constant memory, over a line: the command line's peak, measured by the operating system."""

import sys
from pathlib import Path

import pytest

from tests.hub_server import Fault, HubServer
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
