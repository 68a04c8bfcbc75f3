"""Checkpoints on web servers: whatever the line does, the file is that of the local conversion, or there is none."""

import threading
import time
from collections.abc import Callable, Iterator
from http.server import HTTPServer, ThreadingHTTPServer
from pathlib import Path

import pytest

from clipgguf import CheckpointError, ClipGGUFError, Options, convert
from clipgguf.families import _open
from clipgguf.planning import make_plan
from clipgguf.sources import fetch, https, tries
from clipgguf.sources.callers import Callers
from clipgguf.sources.given import bytes_received
from clipgguf.sources.https import WebFile
from clipgguf.sources.line import LINE, Access, RefusedError, in_words
from clipgguf.sources.tries import LineError
from clipgguf.sources.web_folder import WebFolder
from clipgguf.writer import write_plan
from tests.checkpoints import write_model
from tests.hub_server import Fault, HubServer
from tests.marks import slow_but_for
from tests.test_sources import DEEP

Convert = Callable[[], bytes]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tries, "FIRST_WAIT", 0.01)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    root = tmp_path / "root"
    write_model(root / "o" / "m", DEEP, shards=3)
    with HubServer(root) as server:
        yield server


@pytest.fixture
def expected(hub: HubServer, tmp_path: Path) -> bytes:
    return convert(hub.root / "o" / "m", tmp_path / "local.gguf").path.read_bytes()


@pytest.fixture
def converted(hub: HubServer, tmp_path: Path) -> Convert:
    def run() -> bytes:
        model = _open(WebFolder(f"{hub.plain}/o/m"), Options(), None)
        write_plan(make_plan(model, "f16"), tmp_path / "out" / "web.gguf")
        return (tmp_path / "out" / "web.gguf").read_bytes()

    return run


def test_the_file_is_that_of_the_local_conversion(hub: HubServer, expected: bytes, converted: Convert) -> None:
    before = bytes_received()
    assert converted() == expected
    assert 0 < bytes_received() - before <= hub.sent()
    assert {r.encoding for r in hub.requests} == {"identity"}
    # All of it once, and a head of each file.
    size = sum(path.stat().st_size for path in (hub.root / "o" / "m").iterdir())
    assert hub.sent("*.safetensors") < size + 3 * (1 << 18)


GOOD_FAULTS = {
    "drop": Fault("drop", after=20_000, times=9),
    "drop-at-once": Fault("drop", times=3),
    "drop-later": Fault("drop", after=1, times=20, skip=3),
    "503": Fault("status", times=4),
    "503-later": Fault("status", times=3, skip=4),
    "503-head": Fault("status", "*", method="HEAD", times=4),
    "no-head": Fault("status", "*", method="HEAD", status=405, times=99),
    "500-json": Fault("status", "*.json", status=500, times=2),
    "429": Fault("status", status=429, headers={"Retry-After": "1"}, skip=3),
    "429-hub": Fault("status", status=429, headers={"RateLimit": '"resolvers";r=0;t=1'}, skip=3),
    "short": Fault("short", after=30_000, times=30, skip=3),
    "short-json": Fault("short", "*.json", after=10, times=9),
    "stall": Fault("stall", seconds=0.05, after=9, skip=3),
    "whole-json": Fault("ignore", "*.json", times=99),
}


@pytest.mark.parametrize("kind", slow_but_for(GOOD_FAULTS, "429", "short-json", "stall", "whole-json"))
def test_faults_that_pass(kind: str, hub: HubServer, expected: bytes, converted: Convert) -> None:
    hub.faults.append(Fault(**vars(GOOD_FAULTS[kind])))
    assert converted() == expected
    assert hub.faults[0].times < GOOD_FAULTS[kind].times


BAD_FAULTS = {
    "drop": (Fault("drop", times=99, skip=4), r"cannot be read: .*, 5 times"),
    "503": (Fault("status", times=99, skip=4), "the server answered 503 Service Unavailable, 5 times"),
    "429-long": (
        Fault("status", status=429, headers={"Retry-After": "301"}, skip=4),
        "answered 429 Too Many Requests, and asks to wait 301 s",
    ),
    "403": (Fault("status", status=403, skip=4), "the server answered 403 Forbidden"),
    "404": (Fault("status", status=404, skip=4), "is missing: the server answered 404"),
    "416": (Fault("status", status=416, skip=4), "it has changed: it had"),
    "416-first": (Fault("status", status=416), "answered 416 to a range from its first byte"),
    "ignore": (Fault("ignore", skip=4, times=99), "ignores ranges, and sends the whole file"),
    "gzip": (Fault("gzip", skip=4, times=99), "the server "),
    "gzip-json": (Fault("gzip", "*.json", times=99), "the server compresses it"),
    "shift": (Fault("shift", after=7, skip=4), "were asked for, the server answered"),
    "swap": (Fault("swap", skip=4), "has changed: the server answers with another version"),
    "206": (Fault("status", status=206, skip=4), "the server answered 206 without a Content-Range"),
    "head-418": (Fault("status", "*", method="HEAD", status=418, times=9), "the server answered 418"),
    "head-dropped": (Fault("drop", "*", method="HEAD", times=99), "cannot be read: .*, 5 times"),
    "204": (Fault("status", status=204, skip=4), "the server answered 204"),
}


@pytest.mark.parametrize("kind", slow_but_for(BAD_FAULTS, "429-long", "404", "gzip", "shift", "swap"))
def test_faults_that_do_not_pass(kind: str, hub: HubServer, converted: Convert, tmp_path: Path) -> None:
    fault, words = BAD_FAULTS[kind]
    hub.faults.append(Fault(**vars(fault)))
    with pytest.raises(Exception, match=words) as caught:
        converted()
    assert str(caught.value).startswith(hub.plain)
    assert not (tmp_path / "out").exists()


def test_a_file_that_changes_in_between(hub: HubServer) -> None:
    folder = WebFolder(f"{hub.plain}/o/m")
    name = next(path.name for path in (hub.root / "o" / "m").glob("*.safetensors"))
    path, file = hub.root / "o" / "m" / name, folder.open(name)
    file.close()
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(CheckpointError, match=r"it has changed: the server answers with another version"):
        file.read(0, memoryview(bytearray(9)))
    path.write_bytes(path.read_bytes() + b"?")
    with pytest.raises(CheckpointError, match=r"it has changed: it had [0-9,]+ bytes, and now [0-9,]+"):
        file.read(0, memoryview(bytearray(9)))


@pytest.mark.slow
def test_the_whole_wait_is_told(
    hub: HubServer, expected: bytes, converted: Convert, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "clipgguf")
    hub.faults.append(Fault(**vars(GOOD_FAULTS["429"])))
    started = time.monotonic()
    assert converted() == expected
    assert time.monotonic() - started >= 1
    (line,) = caplog.messages
    assert line.endswith("the server answered 429 Too Many Requests, and asks to wait 1 s")


def test_what_is_no_file(hub: HubServer) -> None:
    folder = WebFolder(f"{hub.plain}/o/m")
    assert "nothing" not in folder
    with pytest.raises(
        CheckpointError, match=r"^http://.*/o/m/nothing: is missing: the server answered 404 Not Found$"
    ):
        folder.open("nothing")
    (hub.root / "o" / "m" / "page.bin").write_text("<!DOCTYPE html>")
    with pytest.raises(CheckpointError, match="is a web page"):
        folder.open("page.bin")
    (hub.root / "o" / "m" / "empty").write_bytes(b"")
    assert folder.open("empty").size == 0
    assert folder.title == "m"
    assert folder.folder("../n").name == f"{hub.plain}/o/n/"
    assert WebFolder("http://localhost").title == "localhost"


def forbidden(name: str) -> list[Fault]:
    """Return what answers as object stores do where a file is not there, and they may not be listed."""
    return [Fault("status", f"*/{name}", method=way, status=403, times=999) for way in ("GET", "HEAD")]


def test_what_is_forbidden_counts_as_missing(hub: HubServer, expected: bytes, tmp_path: Path) -> None:
    for name in ("open_clip_config.json", "README.md"):
        (hub.root / "o" / "m" / name).write_text("{}")
        hub.faults += forbidden(name)
    made = convert(f"{hub.plain}/o/m", tmp_path / "b.gguf")
    assert made.path.read_bytes() == expected
    told = "the server answered 403 Forbidden to open_clip_config.json, which counts as missing"
    assert made.notes == (f"{hub.plain}/o/m/: {told}",)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("config.json", r"^[^\n]*/config\.json: cannot be read: the server answered 403 Forbidden$"),
        (
            "vocab.json",
            r"no vocab\.json .*\n.*: the server answered 403 Forbidden to vocab\.json, which counts as missing$",
        ),
        (
            "model*",
            r"has no weights, .*\n.*/m/: the server answered 403 Forbidden to model\.safetensors\.index\.json, which ",
        ),
    ],
)
def test_what_is_forbidden_and_needed_is_told(name: str, words: str, hub: HubServer, tmp_path: Path) -> None:
    hub.faults += forbidden(name)
    with pytest.raises(ClipGGUFError, match=words):
        convert(f"{hub.plain}/o/m", tmp_path / "out" / "x.gguf")
    assert not (tmp_path / "out").exists()
    # Of a file that is given, nothing else is asked for.
    hub.faults[:] = forbidden("a.safetensors")
    (hub.root / "o" / "m" / "a.safetensors").write_bytes(b"")
    with pytest.raises(
        ClipGGUFError, match=r"a\.safetensors: is missing, .*\n.* answered 403 Forbidden to a\.safetensors"
    ):
        convert(f"{hub.plain}/o/m/a.safetensors", tmp_path / "out" / "x.gguf")


def test_nobody_answers() -> None:
    with pytest.raises(CheckpointError, match=r"^x: cannot be read: (?!.*(secret|127)).*[Rr]efused, 5 times$"):
        WebFile("x", "http://127.0.0.1:9/x?secret")


def test_small_reads_share_requests(hub: HubServer) -> None:
    data = bytes(range(256)) * (1 << 13)
    (hub.root / "o" / "m" / "a.bin").write_bytes(data)
    file = WebFolder(f"{hub.plain}/o/m").open("a.bin")
    for at in range(0, len(data), 1000):
        target = bytearray(min(1000, len(data) - at))
        file.read(at, memoryview(target))
        assert target == data[at : at + 1000]
    assert len([r for r in hub.requests if r.path.endswith("a.bin")]) < 6
    target = bytearray(len(data))
    file.read(0, memoryview(target))
    assert target == data
    with pytest.raises(CheckpointError, match="cannot be read: the file has 2,097,152"):
        file.read(len(data) - 1, memoryview(bytearray(2)))


def test_access_goes_to_one_origin_and_no_message() -> None:
    access = Access("https://h.example/a", {"Authorization": "Bearer secret"})
    assert access.headers_for("https://h.example:443/b?c") == {"Authorization": "Bearer secret"}
    for other in (
        "http://h.example/a",
        "https://h.example:444/a",
        "https://h.example.org/a",
        "https://x@evil/h.example",
    ):
        assert access.headers_for(other) == {}
    assert "secret" not in repr(access)


def test_words_have_no_address() -> None:
    assert in_words(OSError("no https://h.example/a?Signature=1 there")) == "no https://h.example/a there"
    assert in_words(TimeoutError()) == "the server does not answer"


class Redirecting:
    """A pool whose every answer is a redirect."""

    def __init__(self, location: str) -> None:
        self.location = location
        self.status, self.headers = 302, {"Location": location}

    def request(self, *_: object, **__: object) -> "Redirecting":
        """Answer."""
        return self

    def read(self, *_: object, **__: object) -> bytes:
        """Return nothing."""
        return b""

    def close(self) -> None:
        """Do nothing."""


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("http://h.example/b", "from https to http, which is refused"),
        ("ftp://h.example/b", "from https to ftp, which is refused"),
        ("/c", "more than 5 times"),
    ],
)
def test_redirects_that_are_refused(location: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LINE, "_pool", lambda url: Redirecting(location))
    with pytest.raises(RefusedError, match=words):
        LINE.ask("GET", "https://h.example/a", {}, Access())


def test_proxies_are_the_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "all_proxy", "no_proxy", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("https_proxy", "http://user:pass@127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "inside.example")
    pool = LINE._pool("https://h.example/a")
    assert (pool.proxy.host, pool.proxy.port) == ("127.0.0.1", 9)  # type: ignore[union-attr]
    assert LINE._pool("https://inside.example/a").proxy is None
    assert LINE._pool("http://h.example/a").proxy is None
    with pytest.raises(LineError) as caught:
        LINE.ask("GET", "https://h.example/a", {}, Access())
    assert "pass" not in str(caught.value)


def test_a_large_file_of_a_server_without_ranges(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(https, "LARGEST_WHOLE", 400_000)
    for size, is_taken in ((300_000, True), (400_001, False)):
        data = bytes(range(250)) * (size // 250) + bytes(size % 250)
        (hub.root / "o" / "m" / "a.bin").write_bytes(data)
        hub.faults[:] = [Fault("ignore", "*.bin", times=9)]
        if is_taken:
            file = WebFolder(f"{hub.plain}/o/m").open("a.bin")
            file.close()
            target = bytearray(size)
            file.read(0, memoryview(target))
            assert target == data
        else:
            with pytest.raises(CheckpointError, match="the server ignores ranges, and sends the whole file"):
                WebFolder(f"{hub.plain}/o/m").open("a.bin")


def test_without_threads(hub: HubServer, expected: bytes, converted: Convert, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(fetch, "CALLERS", Callers())
    monkeypatch.setattr(threading.Thread, "start", refuse)
    # The server needs threads of its own.
    monkeypatch.setattr(ThreadingHTTPServer, "process_request", HTTPServer.process_request)
    for server in hub._servers.values():
        monkeypatch.setattr(server.RequestHandlerClass, "protocol_version", "HTTP/1.0")
    assert converted() == expected
