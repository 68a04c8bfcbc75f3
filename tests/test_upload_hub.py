"""Files that are uploaded to the hub when they are complete: the local conversion's bytes, or one clear error."""

import shutil
import sys
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from clipgguf import Options, OutputError, convert
from tests.conftest import Run
from tests.hub_models import local, served
from tests.hub_server import Fault
from tests.hub_uploads import UploadHub

# tests.hub_models skips all of it where it is not installed.
from huggingface_hub import constants  # isort: skip

TOKEN = "hf_secret"
# What huggingface_hub 2.4 calls in httpx2 for an upload without Xet.
pytestmark = [pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning"), pytest.mark.slow]


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, _no_hub: None) -> Iterator[UploadHub]:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with served(tmp_path, monkeypatch, UploadHub) as server:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("TMPDIR", str(tmp_path))
        yield cast(UploadHub, server)


@pytest.mark.slow
def test_an_upload_is_the_local_file(hub: UploadHub, model: Path, tmp_path: Path, run: Run) -> None:
    expected = convert(model, tmp_path / "a.gguf").path.read_bytes()
    result = run(model, "-o", "hf://o/tiny-clip")
    assert (result.returncode, result.stdout) == (0, "hf://o/tiny-clip/model-f16.gguf\n"), result.stderr
    assert (hub.root / "o" / "tiny-clip" / "model-f16.gguf").read_bytes() == expected
    assert hub.messages == ["Upload model-f16.gguf with clipgguf"]
    assert f"hf://o/tiny-clip/model-f16.gguf: {len(expected):,} bytes are uploaded" in result.stderr
    assert run(model, "-o", "hf://o/tiny-clip@main/a/{name}.gguf", "-q").stderr == ""
    assert (hub.root / "o" / "tiny-clip" / "a" / "tiny-clip.gguf").read_bytes() == expected
    assert list(tmp_path.glob("clipgguf-*")) == []


def test_from_the_hub_to_the_hub(hub: UploadHub, tmp_path: Path) -> None:
    expected = local(hub, tmp_path)
    made = convert("hf://o/tiny-clip", "hf://o/tiny-clip/gguf", Options())
    assert made.path == "hf://o/tiny-clip/gguf/model-f16.gguf"
    assert (hub.root / "o/tiny-clip/gguf/model-f16.gguf").read_bytes() == expected


def test_dry_run(hub: UploadHub, model: Path, run: Run) -> None:
    (hub.root / "o" / "tiny-clip" / "x.gguf").write_bytes(bytes(1234))
    result = run(model, "-o", "hf://o/tiny-clip/x.gguf", "--dry-run")
    assert "hf://o/tiny-clip/x.gguf: would be written, and replace a file of 1,234 bytes" in result.stdout
    result = run(model, "-o", "hf://o/nothing", "--dry-run")
    assert (result.returncode, "hf://o/nothing/model-f16.gguf: could not be written" in result.stdout) == (1, True)
    assert hub.blobs == {}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("hf://o/nothing", "hf://o/nothing/.*: cannot be written: does not exist on the hub, or is private"),
        ("hf://o/tiny-clip@v9", "hf://o/tiny-clip@v9/.*: cannot be written: the model has no revision v9"),
        ("hf://o/a--b", "is no model's name on the hub"),
    ],
)
def test_where_nothing_can_be_written(given: str, words: str, model: Path) -> None:
    with pytest.raises(OutputError, match=words):
        convert(model, given)


def test_who_may_write(hub: UploadHub, model: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.may_write = False
    result = run(model, "-o", "hf://o/tiny-clip", "-q")
    words = "hf://o/tiny-clip/model-f16.gguf: cannot be written: the token gives no right to write there"
    assert (result.returncode, result.stderr) == (1, f"clipgguf: error: {words}\n")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    result = run(model, "-o", "hf://o/tiny-clip", "-q")
    assert "the hub does not accept the token; `hf auth login` renews it" in result.stderr
    assert "hf_wrong" not in result.stderr
    monkeypatch.delenv("HF_TOKEN")
    result = run(model, "-o", "hf://o/tiny-clip", "-q")
    assert "cannot be written: there is no token for the hub; `hf auth login` gets one" in result.stderr
    assert hub.blobs == {}


def test_an_upload_that_breaks_off(hub: UploadHub, model: Path, tmp_path: Path) -> None:
    hub.faults.append(Fault("status", "put", method="PUT", status=400, times=99))
    with pytest.raises(OutputError, match=r"^hf://.*: cannot be written: the hub answered 400$") as caught:
        convert(model, "hf://o/tiny-clip")
    assert not any(hidden in str(caught.value) for hidden in (TOKEN, "Signature", "http"))
    assert not (hub.root / "o" / "tiny-clip" / "model-f16.gguf").exists()
    assert list(tmp_path.glob("clipgguf-*")) == []


def test_a_disk_without_room(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", ["total", "used", "free"])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(100, 90, 10))
    with pytest.raises(OutputError, match=r"needs [0-9,]+ bytes, its disk has 10 free"):
        convert(model, "hf://o/tiny-clip")


def test_offline_and_without_the_extra(model: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE keeps clipgguf from the hub" in run(model, "-o", "hf://o/tiny-clip").stderr
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    result = run(model, "-o", "hf://o/tiny-clip")
    words = "hf://o/tiny-clip: cannot be written: `pip install 'clipgguf[hub]'` lets clipgguf write there"
    assert (result.returncode, result.stderr) == (1, f"clipgguf: error: {words}\n")
