"""Models of the Hugging Face hub: found, read by ranges at one commit, and who may read what."""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from clipgguf import CheckpointError, Options, convert, inspect, plan, verify
from clipgguf.checkpoint.safetensors import read_safetensors_header
from clipgguf.sources import fetch
from clipgguf.sources.address import HubAddress
from clipgguf.sources.local import LocalFile
from tests.checkpoints import write_model
from tests.clip_checkpoints import write_pipeline
from tests.conftest import Run
from tests.hub_server import Fault, HubServer
from tests.llava_checkpoints import Llava, write_hf, write_original
from tests.processes import run_process
from tests.test_sources import DEEP
from tests.weights import write_sparse_safetensors

try:
    import huggingface_hub
except ImportError:
    pytest.skip("the extra hub is not installed", allow_module_level=True)
from huggingface_hub import constants, file_download


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, _no_hub: None) -> Iterator[HubServer]:
    monkeypatch.setitem(sys.modules, "huggingface_hub", huggingface_hub)
    monkeypatch.setattr(fetch, "FIRST_WAIT", 0.01)
    root = tmp_path / "root"
    write_model(root / "o" / "tiny-clip", DEEP, shards=3)
    with HubServer(root, page=3) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace("https://huggingface.co", server.endpoint)
        for module in (constants, file_download):  # Version 0.36 has it in both.
            monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
        yield server


def local(hub: HubServer, directory: Path, name: str = "o/tiny-clip", **options: Any) -> bytes:
    return convert(hub.root / name, directory / "local.gguf", Options(**options)).path.read_bytes()


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


@pytest.mark.parametrize("kind", FAULTS)
def test_faults_that_pass(kind: str, hub: HubServer, tmp_path: Path) -> None:
    expected = local(hub, tmp_path)
    hub.faults.append(Fault(**vars(FAULTS[kind])))
    assert convert("hf://o/tiny-clip", tmp_path / "out.gguf").path.read_bytes() == expected
    assert hub.faults[0].times < FAULTS[kind].times


def test_signatures_that_expire_all_the_time(hub: HubServer, tmp_path: Path) -> None:
    expected = local(hub, tmp_path)
    hub.lifetime, hub.latency = 0.1, 0.02
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


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("hf://o/nothing", r"^hf://o/nothing: does not exist on the hub, or is private"),
        ("o/nothing", r"^o/nothing: is no directory here; hf://o/nothing: does not exist on the hub"),
        ("hf://o/tiny-clip@v9", r"^hf://o/tiny-clip@v9: the model has no revision v9$"),
        ("hf://o/tiny-clip/sub", r"^hf://o/tiny-clip/sub: is missing, commit [0-9a-f]{40} does not have it$"),
        ("hf://datasets/o/tiny-clip", "is no model of the hub, should be hf://OWNER/NAME"),
        ("hf://tiny", "is no model of the hub, should be"),
        ("hf://o/gated", "is a gated model: its page asks for consent"),
        ("hf://o/a--b", "is no model's name on the hub"),
    ],
)
def test_what_is_not_there(given: str, words: str, hub: HubServer) -> None:
    write_model(hub.root / "o" / "gated")
    hub.gated.add("o/gated")
    with pytest.raises(CheckpointError, match=words):
        convert(given)


def test_the_hub_is_down(hub: HubServer) -> None:
    hub.faults.append(Fault("status", "*", server="hub", times=99))
    with pytest.raises(CheckpointError, match=r"^hf://o/tiny-clip: cannot be read: the hub answered 503, 5 times$"):
        convert("hf://o/tiny-clip")
    hub.faults[0] = Fault("drop", "*", server="hub", times=99)
    with pytest.raises(CheckpointError, match=r"cannot be read: the hub cannot be reached \(\w+\), 5 times$"):
        convert("hf://o/tiny-clip")


def test_a_bare_name_is_the_hubs_where_it_is_no_path(hub: HubServer, work: Path, run: Run) -> None:
    result = run("o/tiny-clip", "-o", "x.gguf")
    assert result.returncode == 0, result.stderr
    assert "hf://" not in result.stdout
    write_model(work / "o" / "tiny-clip")
    hub.requests.clear()
    assert run("o/tiny-clip", "-o", "y.gguf").returncode == 0
    assert run("o/other", "-o", "y.gguf").stderr.startswith("clipgguf: error: o/other: is missing, ")
    assert hub.requests == []


def test_revisions(hub: HubServer, run: Run) -> None:
    commit = hub.commit("o/tiny-clip")
    for words in (
        (f"hf://o/tiny-clip@{commit}",),
        ("hf://o/tiny-clip", "--revision", commit),
        ("hf://o/tiny-clip@main",),
    ):
        assert run(*words, "-o", "x.gguf").returncode == 0
    result = run("hf://o/tiny-clip@main", "--revision", commit)
    assert (result.returncode, "names another" in result.stderr) == (2, True)
    result = run(hub.root / "o" / "tiny-clip", "--revision", "main")
    assert result.returncode == 2
    assert "--revision is for models of the Hugging Face hub" in result.stderr


def test_dry_run_and_verify(hub: HubServer, tmp_path: Path, run: Run) -> None:
    path = convert(hub.root / "o" / "tiny-clip", tmp_path / "a.gguf").path
    result = run("hf://o/tiny-clip", "--dry-run")
    assert result.returncode == 0, result.stderr
    made = plan("hf://o/tiny-clip")
    assert f"{made.bytes_in:,} bytes in" in result.stdout
    assert f"; {made.bytes_in:,} bytes would come over the line, from commit {made.commit}" in result.stdout
    assert run("verify", path, "hf://o/tiny-clip").returncode == 0
    assert verify(path, "hf://o/tiny-clip", threads=3).agrees
    other = convert(hub.root / "o" / "tiny-clip", tmp_path / "b.gguf", Options(outtype="q8_0")).path
    data = bytearray(other.read_bytes())
    data[-4096] ^= 8
    other.write_bytes(data)
    result = run("verify", other, "hf://o/tiny-clip")
    assert result.returncode == 1
    assert "is not what a conversion of hf://o/tiny-clip gives" in result.stdout


def test_inspect_reads_the_header_alone(hub: HubServer, tmp_path: Path, run: Run) -> None:
    large = write_model(tmp_path / "m", DEEP)
    path = convert(large, hub.root / "o" / "tiny-clip" / "m.gguf", Options(outtype="f32")).path
    with path.open("ab") as file:
        file.write(bytes(4 << 20))
    for address in ("hf://o/tiny-clip/m.gguf", f"{hub.plain}/o/tiny-clip/m.gguf?secret=1"):
        hub.requests.clear()
        result = run("inspect", address, "--json")
        assert result.returncode == 0, result.stderr
        assert json.loads(result.stdout)["tensors"] == json.loads(run("inspect", path, "--json").stdout)["tensors"]
        assert hub.sent("m.gguf") <= (1 << 18) + len("found")
        assert "secret" not in result.stdout
    assert inspect("hf://o/tiny-clip/m.gguf").path == "hf://o/tiny-clip/m.gguf"
    assert "is missing" in run("inspect", "hf://o/tiny-clip/n.gguf").stderr


def test_parts_from_the_hub(hub: HubServer, tmp_path: Path) -> None:
    model = write_original(tmp_path / "llava", Llava())
    tower = write_model(hub.root / "o" / "tower", Llava().clip)
    expected = convert(model, tmp_path / "a.gguf", Options(vision_tower=tower)).path.read_bytes()
    # What the checkpoint itself names is not fetched.
    with pytest.raises(CheckpointError, match="has no vision tower"):
        convert(model, tmp_path / "b.gguf")
    assert hub.requests == []
    for given in ("hf://o/tower", "o/tower", f"{hub.plain}/o/tower/"):
        made = convert(model, tmp_path / "b.gguf", Options(vision_tower=given)).path.read_bytes()
        assert made == expected
    write_model(hub.root / "o" / "words", DEEP)
    vocab = convert("hf://o/tiny-clip", tmp_path / "c.gguf", Options(vocab="hf://o/words/vocab.json"))
    assert vocab.path.read_bytes() == local(hub, tmp_path)


def test_a_folder_of_a_model(hub: HubServer, tmp_path: Path) -> None:
    write_pipeline(hub.root / "o" / "sd", DEEP)
    expected = local(hub, tmp_path, "o/sd/text_encoder")
    assert convert("hf://o/sd/text_encoder", tmp_path / "a.gguf").path.read_bytes() == expected
    address = f"{hub.plain}/o/sd/text_encoder"
    assert convert(address, tmp_path / "b.gguf").path.read_bytes() == expected


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


def cached(hub: HubServer, directory: Path) -> Path:
    """Put the model into a cache as the hub's client does, and return its snapshot."""
    repository, commit = directory / "models--o--tiny-clip", hub.commit("o/tiny-clip")
    shutil.copytree(hub.root / "o" / "tiny-clip", repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    return repository / "snapshots" / commit


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


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    result = run("hf://o/tiny-clip")
    assert (result.returncode, len(result.stderr.splitlines())) == (1, 1)
    assert "`pip install 'clipgguf[hub]'` lets clipgguf read from there" in result.stderr
    assert "with `pip install 'clipgguf[hub]'` clipgguf reads" in run("o/tiny-clip").stderr


IMPORTED = """
import sys
from clipgguf import convert
convert({model!r}, {out!r})
print(*(name for name in sys.modules if name in ("huggingface_hub", "urllib3", "ssl", "clipgguf.sources.line")))
"""


def test_local_work_imports_nothing_of_it(hub: HubServer, tmp_path: Path, run_alone: Callable[..., Any]) -> None:
    import subprocess

    code = IMPORTED.format(model=str(hub.root / "o" / "tiny-clip"), out=str(tmp_path / "a.gguf"))
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("hf://o/n", HubAddress("o/n")),
        ("hf://models/o/n@v1.0/a/b/", HubAddress("o/n", "v1.0", "a/b")),
        ("hf://o/n@refs/pr/7/a", HubAddress("o/n", "refs/pr/7", "a")),
        ("https://huggingface.co/o/n", HubAddress("o/n")),
        ("https://huggingface.co/o/n/tree/main", HubAddress("o/n", "main")),
        ("https://huggingface.co/o/n/tree/main/a", HubAddress("o/n", "main", "a")),
        ("hf.co/o/n/blob/refs%2Fpr%2F7/a.gguf", HubAddress("o/n", "refs/pr/7", "a.gguf")),
        ("https://huggingface.co/o/n/resolve/main/a.gguf?download=true", HubAddress("o/n", "main", "a.gguf")),
        ("https://example.com/o/n", None),
        ("o/n", None),
    ],
)
def test_addresses(text: str, found: HubAddress | None) -> None:
    assert HubAddress.read(text) == found
