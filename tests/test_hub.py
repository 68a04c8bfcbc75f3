"""Models of the Hugging Face hub: read by ranges at one commit, whatever goes wrong, and who may read what."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from clipgguf import CheckpointError, Options, convert, plan
from clipgguf.checkpoint.safetensors import read_safetensors_header
from clipgguf.sources.given import place
from clipgguf.sources.local import LocalFile
from tests.conftest import Run
from tests.hub_models import HubFolder, cached, local, served
from tests.hub_server import Fault, HubServer
from tests.llava_checkpoints import Llava, write_hf
from tests.marks import slow_but_for
from tests.processes import run_process
from tests.weights import write_sparse_safetensors


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, _no_hub: None) -> Iterator[HubServer]:
    with served(tmp_path, monkeypatch) as server:
        yield server


def test_the_file_is_that_of_the_local_conversion(hub: HubServer, tmp_path: Path, work: Path, run: Run) -> None:
    expected = local(hub, tmp_path)
    result = run("hf://o/tiny-clip")
    assert result.returncode == 0, result.stderr
    path = work / "model-f16.gguf"
    assert (result.stdout.split(), path.read_bytes() == expected) == ([path.name], True)
    assert f" over the line, from commit {hub.commit('o/tiny-clip')}" in result.stderr
    # Each file is resolved once, whatever its ranges.
    resolved = [r.path for r in hub.requests if "/resolve/" in r.path]
    assert len(resolved) == len(set(resolved)) > 3
    assert {r.encoding for r in hub.requests if r.server == "cdn"} == {"identity"}
    made = json.loads(run("hf://o/tiny-clip", "-o", "x.gguf", "--json").stdout)
    assert made["commit"] == hub.commit("o/tiny-clip")
    assert made["bytes_read"] > made["bytes_in"]


FAULTS = {
    "drop": Fault("drop", after=20_000, times=9),
    "503-hub": Fault("status", "*", server="hub", times=4, headers={"RateLimit": '"api";r=9;t=300'}),
    "429-hub": Fault("status", "*/tree/*", server="hub", status=429, headers={"RateLimit": '"api";r=0;t=1'}),
    "dropped-api": Fault("drop", "*", server="hub", times=2),
    "expire": Fault("expire", times=3, skip=1),
    "short": Fault("short", after=30_000, times=30, skip=3),
    "401-cdn": Fault("status", status=401, skip=3),
}


@pytest.mark.parametrize("kind", slow_but_for(FAULTS, "drop", "expire"))
def test_faults_that_pass(kind: str, hub: HubServer, tmp_path: Path) -> None:
    expected = local(hub, tmp_path)
    hub.faults.append(Fault(**vars(FAULTS[kind])))
    assert convert("hf://o/tiny-clip", tmp_path / "out.gguf").path.read_bytes() == expected
    assert hub.faults[0].times < FAULTS[kind].times


@pytest.mark.slow
def test_signatures_that_expire_all_the_time(hub: HubServer, tmp_path: Path) -> None:
    expected = local(hub, tmp_path)
    hub.lifetime, hub.line.latency = 0.1, 0.02
    assert convert("hf://o/tiny-clip", tmp_path / "out.gguf").path.read_bytes() == expected
    assert any(r.status == 403 for r in hub.requests)


def test_a_file_that_changes_while_its_signature_expires(hub: HubServer, tmp_path: Path) -> None:
    made = plan("hf://o/tiny-clip")
    file = made.tensors[0].source.stored[0].file
    (hub.root / "o" / "tiny-clip" / str(file).rpartition("/")[2]).write_bytes(b"\0" * file.size)
    hub.faults.append(Fault("expire"))
    with pytest.raises(
        CheckpointError, match=r"^hf://o/tiny-clip/model-0000\d-of-00003.safetensors: (is missing|cannot)"
    ):
        file.read(file.size - 9, memoryview(bytearray(9)))


def test_the_token_goes_to_the_hub_alone(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.private.add("o/tiny-clip")
    with pytest.raises(CheckpointError, match="does not exist on the hub, or is private and `hf auth login`"):
        convert("hf://o/tiny-clip")
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert convert("hf://o/tiny-clip", tmp_path / "a.gguf").path.read_bytes() == local(hub, tmp_path)
    assert {r.token for r in hub.requests if r.server == "cdn"} == {None}
    assert {r.token for r in hub.requests[3:] if r.server == "hub"} == {f"Bearer {hub.token}"}
    hub.faults.append(Fault("status", server="cdn", status=418, times=99))
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(CheckpointError, match="does not accept the token") as caught:
        convert("hf://o/tiny-clip")
    assert "hf_wrong" not in str(caught.value)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    with pytest.raises(CheckpointError, match="the server answered 418") as caught:
        convert("hf://o/tiny-clip")
    assert hub.token not in str(caught.value) and "Signature" not in str(caught.value)


def test_the_hub_is_down(hub: HubServer) -> None:
    hub.faults.append(Fault("status", "*", server="hub", times=99))
    with pytest.raises(CheckpointError, match=r"^hf://o/tiny-clip: cannot be read: the hub answered 503, 5 times$"):
        convert("hf://o/tiny-clip")
    hub.faults[0] = Fault("drop", "*", server="hub", times=99)
    with pytest.raises(CheckpointError, match=r"cannot be read: the hub cannot be reached \(\w+\), 5 times$"):
        convert("hf://o/tiny-clip")


def test_a_version_that_is_another_at_the_same_commit(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "commit", lambda repo: "a" * 40)
    path = next((hub.root / "o" / "tiny-clip").glob("*.safetensors"))
    folder = place("hf://o/tiny-clip")
    assert isinstance(folder, HubFolder)
    file = folder.open(path.name)
    file.close()
    os.utime(path, (1, 1))
    hub.faults.append(Fault("expire"))
    with pytest.raises(CheckpointError, match="it has changed: the hub answers with another version than before"):
        file.read(0, memoryview(bytearray(9)))
    other = place("hf://o/tiny-clip")
    path.write_bytes(path.read_bytes() + b"\0")
    assert isinstance(other, HubFolder)
    with pytest.raises(CheckpointError, match=r"has [0-9,]+ bytes, the hub lists [0-9,]+$"):
        other.open(path.name)
    with pytest.raises(CheckpointError, match=r"/nothing: is missing, commit a{40} does not have it$"):
        other.open("nothing")


def test_only_the_tower_comes(hub: HubServer, tmp_path: Path) -> None:
    model = write_hf(hub.root / "o" / "llava", Llava())
    # A language model of 2 GB, which is a hole in the disk.
    (model / "model.safetensors").rename(model / "a.safetensors")
    names = [view.name for view in read_safetensors_header(LocalFile(model / "a.safetensors"))]
    layers: dict[str, tuple[int, ...]] = {
        f"language_model.model.layers.{n}.mlp.up_proj.weight": (16_000, 16_000) for n in range(2)
    }
    write_sparse_safetensors(model / "b.safetensors", layers)
    index = {"weight_map": {**dict.fromkeys(names, "a.safetensors"), **dict.fromkeys(layers, "b.safetensors")}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    expected = local(hub, tmp_path, "o/llava")
    hub.requests.clear()
    result = convert("hf://o/llava", tmp_path / "{name}.gguf")
    assert (result.path.name, result.path.read_bytes()) == ("llava.gguf", expected)
    assert hub.sent("b.safetensors") == 0
    head = min(1 << 18, (model / "a.safetensors").stat().st_size)
    assert hub.sent("a.safetensors") <= plan("hf://o/llava").bytes_far + head + len("found")


def test_the_cache_is_read_and_never_written(hub: HubServer, tmp_path: Path, run: Run, work: Path) -> None:
    snapshot, expected = cached(hub, tmp_path / "cache"), local(hub, tmp_path)
    before = sorted(tmp_path.glob("cache/**/*"))
    hub.requests.clear()
    result = run(snapshot)
    assert result.returncode == 0, result.stderr
    assert (work / "model-f16.gguf").read_bytes() == expected
    assert f"from commit {snapshot.name}" in result.stderr
    assert hub.requests == []
    made = convert(snapshot, tmp_path / "{name}.gguf", Options(model_card=True)).path
    assert made.name == "tiny-clip.gguf"
    convert("hf://o/tiny-clip", tmp_path / "b.gguf")
    assert not any("/resolve/" in r.path for r in hub.requests)
    assert sorted(tmp_path.glob("cache/**/*")) == before


@pytest.mark.slow
def test_offline(hub: HubServer, tmp_path: Path) -> None:
    cached(hub, tmp_path / "home" / "hub")
    expected = local(hub, tmp_path)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": hub.endpoint}
    hub.requests.clear()
    commit = hub.commit("o/tiny-clip")
    for words in (("hf://o/tiny-clip",), ("o/tiny-clip", "--revision", commit)):
        result = run_process(*words, "-o", tmp_path / "off.gguf", cwd=tmp_path, env=environment)
        assert result.returncode == 0, result.stderr
        assert (tmp_path / "off.gguf").read_bytes() == expected
    result = run_process("hf://o/other", cwd=tmp_path, env=environment)
    assert "hf://o/other: is not in the local cache" in result.stderr
    assert hub.requests == []
