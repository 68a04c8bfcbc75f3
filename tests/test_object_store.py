"""Checkpoints in object stores: whatever the line does, the file is that of the local conversion, or there is none."""

import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from clipgguf import CheckpointError, ClipGGUFError, Options, convert, inspect, plan, verify
from clipgguf.sources import File, Folder
from clipgguf.sources.address import StoreAddress
from clipgguf.sources.given import given_source, place
from clipgguf.uploads import object_store
from tests.checkpoints import write_model
from tests.conftest import Run
from tests.hub_server import Fault
from tests.llava_checkpoints import Llava, write_original
from tests.marks import slow_but_for
from tests.object_server import KEY, SECRET, ObjectServer
from tests.processes import command, interrupted, uncovered
from tests.store_models import stored
from tests.test_far_faults import random_fault
from tests.test_sources import DEEP

MODEL = "s3://b/models/m"


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectServer]:
    with stored(tmp_path, monkeypatch) as server:
        yield server


@pytest.fixture
def expected(store: ObjectServer, tmp_path: Path) -> bytes:
    return convert(store.root / "b" / "models" / "m", tmp_path / "local.gguf").path.read_bytes()


def folder_at(address: str) -> Folder:
    found = place(address)
    assert not isinstance(found, File)
    return found


def test_the_file_is_that_of_the_local_conversion(store: ObjectServer, expected: bytes, work: Path, run: Run) -> None:
    result = run(MODEL)
    assert result.returncode == 0, result.stderr
    path = work / "model-f16.gguf"
    assert (result.stdout.split(), path.read_bytes() == expected) == ([path.name], True)
    assert " over the line" in result.stderr
    made = json.loads(run(f"{MODEL}/", "-o", "x.gguf", "--json").stdout)
    assert (made["commit"], made["bytes_read"] > made["bytes_in"]) == (None, True)
    # All of it once, and a head of each file; one listing.
    size = sum(path.stat().st_size for path in (store.root / "b" / "models" / "m").iterdir())
    assert store.sent("*.safetensors") < 2 * (size + 3 * (1 << 18))
    assert len([r for r in store.requests if "list-type=2" in r.path]) == 2


GOOD_FAULTS = {
    "drop": Fault("drop", after=20_000, times=9),
    "drop-at-once": Fault("drop", times=3),
    "503": Fault("status", times=4),
    "503-listing": Fault("status", "b", times=4),
    "429": Fault("status", status=429, times=2, skip=3),
    "500-json": Fault("status", "*.json", status=500, times=2),
    "stall": Fault("stall", seconds=0.05, after=9, skip=3),
}


@pytest.mark.parametrize("kind", slow_but_for(GOOD_FAULTS, "429", "stall"))
def test_faults_that_pass(kind: str, store: ObjectServer, expected: bytes, tmp_path: Path) -> None:
    store.faults.append(replace(GOOD_FAULTS[kind], server="store"))
    assert convert(MODEL, tmp_path / "out.gguf").path.read_bytes() == expected
    assert store.faults[0].times < GOOD_FAULTS[kind].times


BAD_FAULTS = {
    "drop": (Fault("drop", times=99, skip=4), r"cannot be read: the store cannot be reached, .*, 5 times"),
    "503": (Fault("status", times=99, skip=4), "the store answered 503 Service Unavailable, 5 times"),
    "503-listing": (Fault("status", "b", times=99), "the store answered 503 Service Unavailable, 5 times"),
    "400": (Fault("status", status=400, skip=4), "the store answered 400 Bad Request$"),
    "403": (Fault("status", status=403, skip=4), "the credentials of the environment do not allow it .*403"),
    "403-listing": (Fault("status", "b", status=403), "the credentials of the environment do not allow it .*403"),
    "404": (Fault("status", status=404, skip=4), "is missing: the store answered 404"),
    "412": (Fault("status", status=412, skip=4), r"the store has another version \(ETag\) than before"),
    "301": (Fault("status", status=301, skip=4), "in another region, which AWS_REGION should name"),
    "ignore": (Fault("ignore", skip=4, times=99), "the store ignores ranges, and sends the whole object"),
    "shift": (Fault("shift", after=7, skip=4), "answers another range than was asked for"),
    "short": (Fault("short", after=100, skip=4), "answers another range than was asked for"),
    "swap": (Fault("swap", skip=4), r"answers with another version \(ETag\) than before"),
}


@pytest.mark.parametrize("kind", slow_but_for(BAD_FAULTS, "403", "412", "swap"))
def test_faults_that_do_not_pass(kind: str, store: ObjectServer, tmp_path: Path) -> None:
    fault, words = BAD_FAULTS[kind]
    store.faults.append(replace(fault, server="store"))
    with pytest.raises(CheckpointError, match=words) as caught:
        convert(MODEL, tmp_path / "out" / "out.gguf")
    text = str(caught.value)
    assert text.startswith(MODEL)
    assert not any(hidden in text for hidden in (KEY, SECRET, "http:", "\n"))
    assert not (tmp_path / "out").exists()


def test_an_object_that_changes_in_between(store: ObjectServer) -> None:
    path = next((store.root / "b" / "models" / "m").glob("*.safetensors"))
    file = folder_at(MODEL).open(path.name)
    path.write_bytes(path.read_bytes() + b"?")
    file.close()
    with pytest.raises(CheckpointError, match=r"^s3://b/models/m/.*: cannot be read: it has changed: the store has an"):
        file.read(0, memoryview(bytearray(9)))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("s3://b/nothing", r"^s3://b/nothing/: is missing: the store has nothing whose name begins so$"),
        ("s3://b/models/m/none.bin", r"^s3://b/models/m/none\.bin: is missing"),
        ("s3://other/m", r"^s3://other/m/: cannot be read: there is no bucket other$"),
        ("s3://", r"^s3://: names no bucket, should be s3://BUCKET/PREFIX/$"),
        ("gs:///m", r"^gs://: names no bucket"),
        ("s3://b", r"^s3://b/config\.json: is missing"),
    ],
)
def test_what_is_not_there(given: str, words: str) -> None:
    with pytest.raises(ClipGGUFError, match=words):
        convert(given)


def test_without_access(store: ObjectServer, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "wrong")
    result = run(MODEL)
    assert (result.returncode, len(result.stderr.splitlines())) == (1, 1)
    assert "the credentials of the environment do not allow it (the store answered 403)" in result.stderr
    monkeypatch.delenv("AWS_ALLOW_HTTP")
    assert "AWS_ALLOW_HTTP=true" in run(MODEL).stderr
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert "cannot be read: the store cannot be reached, or does not answer, 5 times" in run(MODEL).stderr
    assert "AZURE_STORAGE_ACCOUNT_NAME" in run("az://b/m").stderr


def test_a_certificate_that_nobody_trusts(store: ObjectServer, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    store._servers["store"].use_tls()
    address = store.address.replace("http:", "https:").replace("127.0.0.1", "localhost")
    monkeypatch.setenv("AWS_ENDPOINT_URL", address)
    monkeypatch.delenv("AWS_ALLOW_HTTP")
    result = run(MODEL)
    assert result.stderr == f"clipgguf: error: {MODEL}/: cannot be read: the store's certificate is not trusted\n"


@pytest.mark.slow
def test_dry_run_verify_and_inspect(store: ObjectServer, tmp_path: Path, run: Run) -> None:
    model = store.root / "b" / "models" / "m"
    path = convert(model, tmp_path / "a.gguf").path
    result = run(MODEL, "--dry-run")
    assert result.returncode == 0, result.stderr
    assert f"; {plan(MODEL).bytes_in:,} bytes would come over the line" in result.stdout
    assert run("verify", path, MODEL).returncode == 0
    assert verify(path, MODEL, threads=3).agrees
    large = convert(model, store.root / "b" / "m.gguf", Options(outtype="f32")).path
    with large.open("ab") as file:
        file.write(bytes(4 << 20))
    store.requests.clear()
    result = run("inspect", "s3://b/m.gguf", "--json")
    assert json.loads(result.stdout)["tensors"] == json.loads(run("inspect", large, "--json").stdout)["tensors"]
    assert store.sent("m.gguf") <= 1 << 18
    assert not [r for r in store.requests if "list-type" in r.path]
    assert inspect("s3://b/m.gguf").path == "s3://b/m.gguf"


def test_parts_from_a_store(store: ObjectServer, tmp_path: Path) -> None:
    model = write_original(tmp_path / "llava", Llava())
    tower = write_model(store.root / "b" / "tower", Llava().clip)
    expected = convert(model, tmp_path / "a.gguf", Options(vision_tower=tower)).path.read_bytes()
    made = convert(model, tmp_path / "b.gguf", Options(vision_tower="s3://b/tower"))
    assert made.path.read_bytes() == expected
    write_model(store.root / "b" / "words", DEEP)
    vocab = Options(vocab="s3://b/words/vocab.json")
    local = convert(store.root / "b" / "models" / "m", tmp_path / "c.gguf").path.read_bytes()
    assert convert(MODEL, tmp_path / "d.gguf", vocab).path.read_bytes() == local


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["gs", "az"])
def test_other_stores(
    scheme: str, store: ObjectServer, expected: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "PART_NBYTES", 1 << 17)
    for name, value in store.environment(scheme).items():
        monkeypatch.setenv(name, value)
    model, before = f"{scheme}://b/models/m", len(store.requests)
    store.faults.append(Fault("drop", server="store", after=20_000, times=9))
    assert convert(model, tmp_path / "a.gguf").path.read_bytes() == expected
    assert convert(model, f"{scheme}://b/out/").path == f"{scheme}://b/out/model-f16.gguf"
    assert (store.root / "b" / "out" / "model-f16.gguf").read_bytes() == expected
    assert len([r for r in store.requests[before:] if "partNumber" in r.path or "comp=block&" in r.path]) > 1
    with pytest.raises(CheckpointError, match=f"^{scheme}://b/none/: is missing"):
        convert(f"{scheme}://b/none")
    store.faults.append(Fault("status", "*.safetensors", server="store", status=403, skip=4))
    with pytest.raises(CheckpointError, match="the credentials of the environment do not allow it"):
        convert(model, tmp_path / "a.gguf")


def test_names_and_folders(store: ObjectServer) -> None:
    folder = folder_at("s3://b/models/m/")
    assert (folder.name, "config.json" in folder, "none" in folder) == (f"{MODEL}/", True, False)
    above = folder.folder("../n")
    assert (above.name, above.title) == ("s3://b/models/n/", "n")
    assert "m/config.json" in folder_at("s3://b/models/")
    store.page = 2
    assert "vocab.json" in folder_at(MODEL)
    (store.root / "b" / "empty").write_bytes(b"")
    assert given_source("s3://b/empty").size == 0
    assert StoreAddress.read("s3a://b/m") is None


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    result = run(MODEL)
    assert (result.returncode, len(result.stderr.splitlines())) == (1, 1)
    assert (
        f"{MODEL}: is in an object store; `pip install 'clipgguf[s3]'` lets clipgguf read from there" in result.stderr
    )


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT to send to one process")
@pytest.mark.parametrize("kind", ["body", "headers"])
def test_ctrl_c_ends_at_once(kind: str, store: ObjectServer, tmp_path: Path) -> None:
    stall = Fault("stall" if kind == "body" else "wait", server="store", seconds=60, times=99, skip=3)
    store.faults.append(stall)
    words = command(MODEL, "-o", tmp_path / "out", "--threads", 3)
    process = subprocess.Popen(words, env={**uncovered(), **store.environment()}, stderr=subprocess.PIPE, text=True)
    while stall.times == 99:
        assert process.poll() is None, "ended before it could be interrupted"
        time.sleep(0.01)
    time.sleep(0.3)
    interrupted(process)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_random_faults(seed: int, store: ObjectServer, expected: bytes, tmp_path: Path) -> None:
    dice = random.Random(seed)
    endings = set()
    for number in range(25):
        out = tmp_path / f"{number}" / "out.gguf"
        store.faults[:] = [random_fault(dice, ("store",)) for _ in range(dice.randrange(1, 4))]
        try:
            made = convert(MODEL, out, threads=dice.choice([1, 2, 5])).path.read_bytes()
        except ClipGGUFError as e:
            assert all(problem.startswith(MODEL) and "http:" not in problem for problem in e.problems), str(e)
            assert not out.parent.exists()
            endings.add("error")
        else:
            assert made == expected
            endings.add("file")
    assert endings == {"error", "file"}
