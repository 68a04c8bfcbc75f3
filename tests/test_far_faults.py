"""Every kind of fault at random moments: the file of the local conversion, or one error, and that file next time.

CLIPGGUF_FUZZ is a hundred times how many conversions there are, with those of test_hub_faults.py; CLIPGGUF_FUZZ_SEED
makes others of them. A scheduled run (``.ci/fuzz``) has 200.
"""

import os
import random
import zipfile
from collections import Counter
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

KINDS = ("status", "drop", "stall", "wait", "short", "shift", "ignore", "gzip", "swap", "expire")
STATUSES = (400, 401, 403, 404, 408, 410, 412, 416, 429, 500, 502, 503, 504)
# A round of conversions has seen each model, both endings, and many kinds.
ROUND = 25
SEED = int(os.environ.get("CLIPGGUF_FUZZ_SEED", "0"))
# Half of the rounds are for a web server, half for the hub.
SEEDS = range(SEED, SEED + max(1, int(os.environ.get("CLIPGGUF_FUZZ", "10000")) // 100 // ROUND // 2))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    monkeypatch.setattr(tries, "FIRST_WAIT", 0.002)
    monkeypatch.setattr(partial_file, "LEAST_NBYTES", 0)
    with HubServer(tmp_path / "root") as server:
        yield server


def random_fault(dice: random.Random, servers: tuple[str, ...]) -> Fault:
    return Fault(
        dice.choice(KINDS),
        dice.choice(["*", "*.safetensors", "*.json", "*.bin"]),
        server=dice.choice(servers),
        method=dice.choice(["GET", "GET", "HEAD"]),
        times=dice.choice([1, 1, 2, 6]),
        skip=dice.randrange(12),
        after=dice.choice([0, 1, 1000, 20_000, 100_000]),
        status=dice.choice(STATUSES),
        seconds=0.01,
    )


def endings(hub: HubServer, at: str, servers: tuple[str, ...], seed: int, tmp_path: Path) -> "Counter[str]":
    """Convert 25 times with random faults; return how often that ended in a file, and how often in an error."""
    dice = random.Random(seed)
    write_model(hub.root / "o" / "clip", DEEP, shards=3)
    write_hf(hub.root / "o" / "llava", Llava())
    expected = {
        name: convert(hub.root / "o" / name, tmp_path / f"{name}.gguf").path.read_bytes() for name in ("clip", "llava")
    }
    found: Counter[str] = Counter()
    for number in range(ROUND):
        name, out = dice.choice(sorted(expected)), tmp_path / f"{number}" / "out.gguf"
        hub.faults[:] = [random_fault(dice, servers) for _ in range(dice.randrange(1, 4))]
        try:
            made = convert(f"{at}/{name}", out, threads=dice.choice([1, 2, 5])).path.read_bytes()
        except ClipGGUFError as e:
            assert all(at in problem for problem in e.problems), str(e)
            assert not out.exists()
            found["error"] += 1
            # What is left, if anything, the next one goes on with.
            hub.faults.clear()
            assert convert(f"{at}/{name}", out).path.read_bytes() == expected[name]
            assert list(out.parent.iterdir()) == [out]
        else:
            assert made == expected[name]
            found["file"] += 1
    return found


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_random_faults_of_a_web_server(seed: int, hub: HubServer, tmp_path: Path) -> None:
    found = endings(hub, f"{hub.plain}/o", ("cdn",), seed, tmp_path)
    assert set(found) == {"error", "file"}


@pytest.mark.parametrize("kind", slow_but_for(("stored", "deflated"), "stored"))
@pytest.mark.slow
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
