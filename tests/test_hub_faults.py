"""Every kind of fault at random moments, as in test_far_faults.py, of the hub and its CDN."""

from pathlib import Path

import pytest

from clipgguf import partial_file
from clipgguf.sources import tries
from tests.hub_models import served
from tests.test_far_faults import SEEDS, endings


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_random_faults(seed: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, _no_hub: None) -> None:
    with served(tmp_path, monkeypatch) as hub:
        monkeypatch.setattr(tries, "FIRST_WAIT", 0.002)
        monkeypatch.setattr(partial_file, "LEAST_NBYTES", 0)
        found = endings(hub, "hf://o", ("cdn", "hub"), seed, tmp_path)
    assert set(found) == {"error", "file"}
