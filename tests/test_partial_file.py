"""What a conversion from far away leaves when it is interrupted: the next one goes on with it, byte for byte."""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipgguf import CheckpointError, Options, OutputError, convert, partial_file
from clipgguf.checkpoint.safetensors import read_safetensors_header
from clipgguf.options import DEFAULTS
from clipgguf.partial_file import record_of
from clipgguf.sources import tries
from clipgguf.sources.https import WebFile
from clipgguf.sources.local import LocalFile
from tests.checkpoints import towers, write_model
from tests.hub_server import Fault, HubServer
from tests.marks import slow_but_for
from tests.processes import uncovered

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no locks by which parts are told")

fcntl = pytest.importorskip("fcntl")
CLIP = towers(96, 4, 4)
Break = Callable[..., Path]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    monkeypatch.setattr(tries, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(partial_file, "LEAST_NBYTES", 0)
    write_model(tmp_path / "root" / "o" / "m", CLIP, shards=3)
    with HubServer(tmp_path / "root") as server:
        yield server


@pytest.fixture
def expected(hub: HubServer, tmp_path: Path) -> bytes:
    return convert(hub.root / "o" / "m", tmp_path / "local.gguf").path.read_bytes()


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "new" / "out" / "x.gguf"


@pytest.fixture
def broken(hub: HubServer, out: Path) -> Break:
    """Convert over a line that breaks for good when more than half has come; return the file that is left."""

    def convert_and_break(options: Options = DEFAULTS, error: BaseException | None = None) -> Path:
        def progress(done: int, total: int) -> None:
            if done > 0.5 * total:
                raise error or CheckpointError("the line is broken")

        with pytest.raises(type(error) if error else CheckpointError):
            convert(f"{hub.plain}/o/m", out, options, progress=progress)
        (left,) = out.parent.glob("*.tmp")
        return left

    return convert_and_break


def files(out: Path) -> list[str]:
    return sorted(path.suffix for path in out.parent.iterdir())


def again(hub: HubServer, out: Path, options: Options = DEFAULTS) -> int:
    """Convert again, and return how many bytes came over the line."""
    result = convert(f"{hub.plain}/o/m", out, options)
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    return result.bytes_read


def test_a_broken_line(hub: HubServer, out: Path, expected: bytes, caplog: pytest.LogCaptureFixture) -> None:
    hub.faults.append(Fault("status", times=9999, skip=100))
    with pytest.raises(CheckpointError, match="5 times"):
        convert(f"{hub.plain}/o/m", out)
    assert files(out) == [".jsonl", ".tmp"]
    hub.faults.clear()
    caplog.set_level("INFO", "clipgguf")
    assert again(hub, out) < 2.2 * len(expected)
    assert out.read_bytes() == expected
    assert any("x.gguf: goes on after " in line for line in caplog.messages)


@pytest.mark.slow
def test_it_breaks_again_and_again(hub: HubServer, out: Path, expected: bytes, broken: Break) -> None:
    whole = convert(f"{hub.plain}/o/m", out.with_name("y.gguf")).bytes_read
    out.with_name("y.gguf").unlink()
    broken()
    ends = [json.loads(record_of(broken()).read_bytes().splitlines()[-1])["beginning"]["end"] for _ in range(3)]
    assert ends == sorted(ends) and ends[0] > 0.5 * len(expected)
    assert again(hub, out) < 0.6 * whole
    assert out.read_bytes() == expected


PLACES = ["chunk:3", "chunk:40", "flush:1", "record:2", "rename:1", "rename:2", "flush:3", "rename:3", "chunk:9999"]


def killed(hub: HubServer, out: Path, places: list[str]) -> list[dict[str, Any]]:
    words = [sys.executable, "-m", "tests.interrupted_conversion", f"{hub.plain}/o/m", str(out), *places]
    result = subprocess.run(words, env=uncovered(), capture_output=True, text=True, check=True)
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.mark.slow
def test_kills_at_many_places(hub: HubServer, out: Path, expected: bytes) -> None:
    ended = killed(hub, out, PLACES)
    assert [e["code"] for e in ended[:3]] == [-9] * 3
    assert ended[-1]["code"] == 0
    assert out.read_bytes() == expected
    assert files(out) == [".gguf"]
    # Each one after the first goes on, but where the file was just getting its new name.
    ended = killed(hub, out.with_name("y.gguf"), ["chunk:60", "chunk:9999"])
    assert [e["code"] for e in ended] == [-9, 0]
    assert ended[1]["first"] > 30
    assert out.with_name("y.gguf").read_bytes() == expected


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_kills_at_random_places(seed: int, hub: HubServer, out: Path, expected: bytes) -> None:
    dice = random.Random(seed)
    firsts = []
    for number in range(12):
        path = out.with_name(f"{number}.gguf")
        kinds = {"chunk": 150, "flush": 20, "record": 20, "rename": 4}
        places = [f"{kind}:{dice.randrange(1, kinds[kind])}" for kind in dice.choices([*kinds], k=dice.randrange(1, 6))]
        ended = killed(hub, path, [*places, "chunk:9999"])
        assert {e["code"] for e in ended} <= {0, -9}
        assert path.read_bytes() == expected, places
        firsts.append(ended[-1]["first"])
    assert files(out) == [".gguf"] * 12
    assert max(firsts) > 50


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def edited(left: Path, **values: Any) -> None:
    record = json.loads(record_of(left).read_bytes().splitlines()[-1])
    beginning = {**record["beginning"], **values.pop("beginning", {})}
    record_of(left).write_text(json.dumps({**record, **values, "beginning": beginning}) + "\n")


UNTRUSTED: dict[str, Callable[[Path], object]] = {
    "a bit of the metadata": lambda left: flip(left, 99),
    "a bit of the tensors": lambda left: flip(left, left.stat().st_size // 3),
    "shorter": lambda left: os.truncate(left, 20_000),
    "empty": lambda left: os.truncate(left, 0),
    "no file": lambda left: left.unlink(),
    "no record": lambda left: record_of(left).unlink(),
    "a record of nothing": lambda left: record_of(left).write_bytes(b""),
    "a record of something else": lambda left: record_of(left).write_bytes(b'{"output": 3}\n[]\n\xff\n{}\n'),
    "another plan": lambda left: edited(left, key="0" * 64),
    "another CRC-32": lambda left: edited(left, beginning={"crc32": 1}),
    "another number of tensors": lambda left: edited(left, beginning={"tensors": 5}),
    "no tensor": lambda left: edited(left, beginning={"tensors": 0}),
    "too many tensors": lambda left: edited(left, beginning={"tensors": 10_000}),
    "another end": lambda left: edited(left, beginning={"end": 100}),
    "no overflows": lambda left: edited(left, beginning={"overflows": []}),
    "text for a number": lambda left: edited(left, beginning={"end": "x", "tensors": "1"}),
}


@pytest.mark.parametrize("what", slow_but_for(UNTRUSTED, "a bit of the tensors", "another plan"))
def test_what_is_not_trusted(what: str, hub: HubServer, out: Path, expected: bytes, broken: Break) -> None:
    UNTRUSTED[what](broken())
    assert again(hub, out) > 1.9 * (len(expected) - 50_000)
    assert out.read_bytes() == expected


@pytest.mark.slow
def test_another_request_or_checkpoint(hub: HubServer, out: Path, expected: bytes, broken: Break) -> None:
    broken()
    whole = again(hub, out, Options(outtype="f32"))
    assert out.read_bytes() == convert(hub.root / "o" / "m", out, Options(outtype="f32")).path.read_bytes()
    out.unlink()
    broken()
    for path in sorted((hub.root / "o" / "m").glob("*.safetensors"))[1:]:  # The same bytes, for all that can be known.
        os.utime(path)
    assert again(hub, out) > 0.99 * whole
    assert out.read_bytes() == expected


def test_what_overflows_is_still_told(hub: HubServer, out: Path, broken: Break) -> None:
    for path in (hub.root / "o" / "m").glob("*.safetensors"):
        views = [view for view in read_safetensors_header(LocalFile(path)) if view.name.endswith("mlp.fc1.weight")]
        with path.open("r+b") as file:
            for view in views:
                file.seek(view.offset)
                file.write(np.float32(1e6).tobytes())
    whole = convert(hub.root / "o" / "m", out.with_name("y.gguf"))
    assert len(whole.warnings) == 8
    out.with_name("y.gguf").rename(out.parent.parent / "y.gguf")
    broken()
    result = convert(f"{hub.plain}/o/m", out)
    assert result.bytes_read < 0.75 * whole.bytes_in
    assert result.warnings == whole.warnings
    assert out.read_bytes() == (out.parent.parent / "y.gguf").read_bytes()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left")], ids=["Ctrl-C", "full"])
def test_what_ends_it_for_good(error: BaseException, hub: HubServer, out: Path, broken: Break) -> None:
    def progress(done: int, total: int) -> None:
        if done > total // 2:
            raise error

    broken()
    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else OutputError):
        convert(f"{hub.plain}/o/m", out, progress=progress)
    assert list(out.parent.iterdir()) == []


def test_a_signal_that_asks_to_end(hub: HubServer, out: Path, expected: bytes, broken: Break) -> None:
    broken(error=SystemExit(143))
    assert again(hub, out) < 1.5 * len(expected)
    assert out.read_bytes() == expected


def test_only_what_is_far_away_and_large_enough_is_left(
    hub: HubServer, out: Path, monkeypatch: pytest.MonkeyPatch, broken: Break
) -> None:
    def fail(done: int, total: int) -> None:
        raise CheckpointError("as if a file had become shorter")

    with pytest.raises(CheckpointError):
        convert(hub.root / "o" / "m", out, progress=fail)
    monkeypatch.setattr(partial_file, "LEAST_NBYTES", 1 << 22)
    with pytest.raises(CheckpointError):
        convert(f"{hub.plain}/o/m", out, progress=fail)
    monkeypatch.setattr(partial_file, "LEAST_NBYTES", 0)
    monkeypatch.setattr(WebFile, "version", None)
    with pytest.raises(CheckpointError):
        convert(f"{hub.plain}/o/m", out, progress=fail)
    monkeypatch.undo()
    monkeypatch.setattr(partial_file, "LEAST_NBYTES", 0)
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)  # A file system that takes locks for nothing.
    with pytest.raises(CheckpointError):
        convert(f"{hub.plain}/o/m", out, progress=fail)
    assert not out.parent.parent.exists()


def test_versions_are_strong_etags(hub: HubServer) -> None:
    file = WebFile("x", f"{hub.plain}/o/m/config.json")
    assert file.version is not None and file.version.startswith('"')
    for etag in ('W/"1"', "Sat, 28 Nov 2026 14:00:00 GMT", None):
        file._last = type(file._last)("", etag)
        assert file.version is None


def test_others_leave_it_for_a_week(hub: HubServer, out: Path, broken: Break, tmp_path: Path) -> None:
    left = broken()
    other = write_model(tmp_path / "other")
    convert(other, out.with_name("y.gguf"))
    assert left.exists() and record_of(left).exists()
    old = time.time() - partial_file.KEPT_SECONDS - 60
    os.utime(record_of(left), (old, old))
    convert(other, out.with_name("y.gguf"))
    assert files(out) == [".gguf"]


@pytest.mark.slow
def test_another_conversion_into_the_file_removes_it(hub: HubServer, out: Path, expected: bytes, broken: Break) -> None:
    left = broken()
    for path in (left, record_of(left)):  # As two processes at once may leave two.
        shutil.copy(path, path.with_name(f".clipgguf-{'0' * 16}{path.suffix}"))
    assert files(out) == [".jsonl", ".jsonl", ".tmp", ".tmp"]
    assert again(hub, out) < 1.5 * len(expected)
    broken()
    assert convert(hub.root / "o" / "m", out).path.read_bytes() == expected
    assert files(out) == [".gguf"]


@pytest.mark.slow
def test_what_another_process_writes_is_left_alone(hub: HubServer, out: Path, expected: bytes, broken: Break) -> None:
    left = broken()
    with left.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        before = left.read_bytes()
        assert convert(f"{hub.plain}/o/m", out).path.read_bytes() == expected
        assert left.read_bytes() == before
    assert again(hub, out) < 1.5 * len(expected)


@pytest.mark.parametrize("kind", slow_but_for(("symbolic link", "second name", "linked record"), "symbolic link"))
def test_what_is_not_a_file_of_its_own(kind: str, hub: HubServer, out: Path, expected: bytes, broken: Break) -> None:
    left = broken()
    elsewhere = out.parent.parent / "elsewhere"
    path = record_of(left) if kind == "linked record" else left
    if kind == "second name":
        elsewhere.hardlink_to(path)
    else:
        path.rename(elsewhere)
        path.symlink_to(elsewhere)
    before = elsewhere.read_bytes()
    assert convert(f"{hub.plain}/o/m", out).path.read_bytes() == expected
    assert elsewhere.read_bytes() == before


def test_its_room_counts(hub: HubServer, out: Path, broken: Break, monkeypatch: pytest.MonkeyPatch) -> None:
    left = broken()
    free = 2_000_000 - left.stat().st_blocks * 512
    usage = shutil.disk_usage(out.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=free))
    again(hub, out)
