"""Every kind of fault at random moments: the file of the local conversion, or one error, and that file next time."""

import random
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from clipgguf import ClipGGUFError, Options, convert, partial_file, plan, verify
from clipgguf.sources import tries
from tests.checkpoints import write_model
from tests.hub_server import Fault, HubServer
from tests.llava_checkpoints import Llava, write_hf
from tests.marks import slow_but_for
from tests.test_sources import DEEP, deflated

KINDS = ("status", "drop", "stall", "short", "shift", "ignore", "gzip", "swap")
STATUSES = (400, 403, 404, 408, 410, 416, 429, 500, 502, 503, 504)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    monkeypatch.setattr(tries, "FIRST_WAIT", 0.002)
    monkeypatch.setattr(partial_file, "LEAST_NBYTES", 0)
    with HubServer(tmp_path / "root") as server:
        yield server


def random_fault(dice: random.Random) -> Fault:
    return Fault(
        dice.choice(KINDS),
        dice.choice(["*", "*.safetensors", "*.json", "*.bin"]),
        method=dice.choice(["GET", "GET", "HEAD"]),
        times=dice.choice([1, 1, 2, 6]),
        skip=dice.randrange(12),
        after=dice.choice([0, 1, 1000, 20_000, 100_000]),
        status=dice.choice(STATUSES),
        seconds=0.01,
    )


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_random_faults(seed: int, hub: HubServer, tmp_path: Path) -> None:
    dice = random.Random(seed)
    write_model(hub.root / "o" / "clip", DEEP, shards=3)
    write_hf(hub.root / "o" / "llava", Llava())
    expected = {
        name: convert(hub.root / "o" / name, tmp_path / f"{name}.gguf").path.read_bytes() for name in ("clip", "llava")
    }
    endings = set()
    for number in range(25):
        name, out = dice.choice(sorted(expected)), tmp_path / f"{number}" / "out.gguf"
        hub.faults[:] = [random_fault(dice) for _ in range(dice.randrange(1, 4))]
        try:
            made = convert(f"{hub.plain}/o/{name}", out, threads=dice.choice([1, 2, 5])).path.read_bytes()
        except ClipGGUFError as e:
            assert all(hub.plain in problem for problem in e.problems), str(e)
            assert not out.exists()
            endings.add("error")
            # What is left, if anything, the next one goes on with.
            hub.faults.clear()
            assert convert(f"{hub.plain}/o/{name}", out).path.read_bytes() == expected[name]
            assert list(out.parent.iterdir()) == [out]
        else:
            assert made == expected[name]
            endings.add("file")
    assert endings == {"error", "file"}


@pytest.mark.parametrize("kind", slow_but_for(("stored", "deflated"), "stored"))
def test_archives_of_torch(kind: str, hub: HubServer, tmp_path: Path) -> None:
    archive = deflated(model := write_model(hub.root / "o" / "m", DEEP))
    if kind == "stored":
        with zipfile.ZipFile(archive) as packed:
            entries = {name: packed.read(name) for name in packed.namelist()}
        with zipfile.ZipFile(archive, "w") as unpacked:
            for name, data in entries.items():
                unpacked.writestr(name, data)
    path = convert(model, tmp_path / "a.gguf").path
    if kind == "stored":
        hub.requests.clear()
        assert plan(f"{hub.plain}/o/m").bytes_in > 0
        # The directory, data.pkl, and the headers of storages, which lie close together here.
        assert len([r for r in hub.requests if r.path.endswith(".bin") and r.method == "GET"]) < 12
    hub.faults.append(Fault("drop", "*.bin", after=30_000, skip=1, times=5))
    made = convert(f"{hub.plain}/o/m", tmp_path / "b.gguf", Options()).path
    assert made.read_bytes() == path.read_bytes()
    assert verify(made, f"{hub.plain}/o/m").agrees
