"""What names something on the hub or the web, wherever a path may stand."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from clipgguf import CheckpointError, Options, convert, inspect, plan, verify
from clipgguf.sources.address import HubAddress
from tests.checkpoints import write_model
from tests.clip_checkpoints import write_pipeline
from tests.conftest import Run
from tests.hub_models import local, served
from tests.hub_server import HubServer
from tests.llava_checkpoints import Llava, write_original
from tests.test_sources import DEEP


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, _no_hub: None) -> Iterator[HubServer]:
    with served(tmp_path, monkeypatch) as server:
        yield server


@pytest.mark.parametrize(
    ("given", "words"),
    [
        pytest.param(
            "hf://o/nothing",
            r"^hf://o/nothing: does not exist on the hub, or is private",
            marks=pytest.mark.slow,  # huggingface_hub asks again.
        ),
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


def test_a_bare_name_is_the_hubs_where_it_is_no_path(hub: HubServer, work: Path, run: Run) -> None:
    result = run("o/tiny-clip", "-o", "x.gguf")
    assert result.returncode == 0, result.stderr
    assert "hf://" not in result.stdout
    write_model(work / "o" / "tiny-clip")
    hub.requests.clear()
    assert run("o/tiny-clip", "-o", "y.gguf").returncode == 0
    assert run("o/other", "-o", "y.gguf").stderr.startswith("clipgguf: error: o/other: is missing, ")
    assert hub.requests == []


@pytest.mark.slow
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


def test_the_tower_that_a_checkpoint_names_is_fetched_when_asked_for(hub: HubServer, tmp_path: Path, run: Run) -> None:
    tower = write_model(hub.root / "o" / "tower", Llava().clip)
    model = write_original(tmp_path / "llava", Llava(), vision_tower="o/tower")
    expected = convert(model, tmp_path / "a.gguf", Options(vision_tower=tower)).path.read_bytes()
    with pytest.raises(
        CheckpointError, match="asks for 'o/tower'; --fetch-tower gets it from the Hugging Face hub, --v"
    ):
        convert(model, tmp_path / "b.gguf")
    assert hub.requests == []
    made = convert(model, tmp_path / "b.gguf", Options(fetch_tower=True))
    assert made.path.read_bytes() == expected
    assert made.notes[-1].startswith("the vision tower is that of hf://o/tower, which ")
    assert run("verify", made.path, model, "--fetch-tower").returncode == 0
    # A checkpoint that has its tower has no need of another's.
    hub.requests.clear()
    whole = write_original(tmp_path / "whole", Llava(), tower="folder")
    assert convert(whole, tmp_path / "c.gguf", Options(fetch_tower=True)).path.exists()
    assert hub.requests == []
    for name, words in (
        ("o/none", "hf://o/none: does not exist on the hub"),
        ("datasets/x", "is no model of the hub"),
        ("/o/tower", "asks for '/o/tower'; --vision-tower takes"),
        ("../o/tower", "asks for '../o/tower'; --vision-tower takes"),
    ):
        write_original(model, Llava(), vision_tower=name)
        result = run(model, "--fetch-tower", "-o", "d.gguf")
        assert (result.returncode, words in result.stderr) == (1, True), result.stderr


def test_a_file_from_the_hub(hub: HubServer, tmp_path: Path) -> None:
    model = write_original(tmp_path / "llava", Llava())
    tower = write_model(hub.root / "o" / "tower", Llava().clip)
    shutil.copytree(tower, tmp_path / "tower")
    (tmp_path / "tower" / "config.json").unlink()
    options = Options(vision_tower=tmp_path / "tower", vision_config=tower / "config.json")
    expected = convert(model, tmp_path / "a.gguf", options)
    for given in ("hf://o/tower/config.json", f"{hub.plain}/o/tower/config.json"):
        made = convert(model, tmp_path / "b.gguf", replace(options, vision_config=given))
        assert made.path.read_bytes() == expected.path.read_bytes()
    with pytest.raises(CheckpointError, match=r"^hf://o/tower: is a folder, should be a file$"):
        convert(model, tmp_path / "c.gguf", replace(options, vision_config="hf://o/tower"))


def test_a_folder_of_a_model(hub: HubServer, tmp_path: Path) -> None:
    write_pipeline(hub.root / "o" / "sd", DEEP)
    expected = local(hub, tmp_path, "o/sd/text_encoder")
    assert convert("hf://o/sd/text_encoder", tmp_path / "a.gguf").path.read_bytes() == expected
    for whole in ("hf://o/sd", f"{hub.plain}/o/sd"):
        what = f"^{whole}/?: is a diffusers pipeline of several models, .* by itself: {whole}/text_encoder or {whole}/"
        with pytest.raises(CheckpointError, match=what):
            convert(whole)
    address = f"{hub.plain}/o/sd/text_encoder"
    assert convert(address, tmp_path / "b.gguf").path.read_bytes() == expected


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    result = run("hf://o/tiny-clip")
    assert (result.returncode, len(result.stderr.splitlines())) == (1, 1)
    assert "`pip install 'clipgguf[hub]'` lets clipgguf read from there" in result.stderr
    assert "with `pip install 'clipgguf[hub]'` clipgguf reads" in run("o/tiny-clip").stderr


FAR = ("huggingface_hub", "obstore", "urllib3", "ssl", "clipgguf.sources.callers", "clipgguf.uploads")
IMPORTED = """
import sys
from clipgguf import convert
convert({model!r}, {out!r})
print(*(name for name in sys.modules if name in {far}))
"""


def test_local_work_imports_nothing_of_it(hub: HubServer, tmp_path: Path, run_alone: Callable[..., Any]) -> None:
    import subprocess

    code = IMPORTED.format(model=str(hub.root / "o" / "tiny-clip"), out=str(tmp_path / "a.gguf"), far=FAR)
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
