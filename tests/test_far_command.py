"""The command line while it reads over a line: Ctrl-C, the progress, and what it waits for."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from clipgguf import convert
from tests.checkpoints import write_model
from tests.conftest import Run
from tests.hub_server import Fault, HubServer
from tests.line import CERTIFICATE
from tests.marks import slow_but_for
from tests.processes import command, interrupted, read_terminal, uncovered, without_colours
from tests.test_sources import DEEP

WAIT = Fault("status", status=429, headers={"Retry-After": "1"}, skip=3)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    write_model(tmp_path / "root" / "o" / "m", DEEP, shards=3)
    with HubServer(tmp_path / "root") as server:
        yield server


STALLS = {
    "opening": Fault("wait", "*config.json", seconds=60),
    "headers": Fault("wait", seconds=60, times=99, skip=3),
    "body": Fault("stall", seconds=60, times=99, skip=3),
    "429": Fault("status", status=429, headers={"Retry-After": "200"}, times=99, skip=3),
    "tries": Fault("status", times=99, skip=3),
}


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT to send to one process")
@pytest.mark.parametrize("kind", slow_but_for(STALLS, "body"))
def test_ctrl_c_ends_at_once(kind: str, hub: HubServer, tmp_path: Path) -> None:
    hub.faults.append(Fault(**vars(STALLS[kind])))
    words = command(f"{hub.plain}/o/m", "-o", tmp_path / "out", "--threads", 3)
    process = subprocess.Popen(words, env=uncovered(), stderr=subprocess.PIPE, text=True)
    while hub.faults[0].times == STALLS[kind].times:
        assert process.poll() is None, "ended before it could be interrupted"
        time.sleep(0.01)
    time.sleep(0.3)
    interrupted(process)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals are POSIX")
@pytest.mark.slow
def test_progress_shows_what_comes_over_the_line(hub: HubServer, tmp_path: Path) -> None:
    import pty

    controller, terminal = pty.openpty()
    hub.faults.append(Fault("stall", seconds=0.3, skip=3))
    words = command(f"{hub.plain}/o/m", "-o", tmp_path / "out")
    environment = {**uncovered(), "TERM": "xterm", "COLUMNS": "160"}
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=terminal, env=environment)
    os.close(terminal)
    shown = read_terminal(controller)
    assert process.wait(timeout=60) == 0
    assert re.search(r"[0-9.]+ [kM]B over the line, [0-9.]+ [kM]?B/s", without_colours(shown))


def test_a_proxy_is_the_environments(hub: HubServer, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "ALL_PROXY", "NO_PROXY", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", hub.cdn)  # It is its own proxy: it looks at the path of an address alone.
    address = "http://nowhere.invalid/plain/o/m"
    result = run(address, "-o", "out")
    assert result.returncode == 0, result.stderr
    assert all(request.path.startswith(f"{address}/") for request in hub.requests)


@pytest.mark.slow
def test_waits_are_told_on_the_command_line(hub: HubServer, run: Run) -> None:
    hub.faults.append(Fault(**vars(WAIT)))
    result = run(f"{hub.plain}/o/m", "-o", "out")
    assert result.returncode == 0
    assert "answered 429 Too Many Requests, and asks to wait 1 s" in result.stderr
    hub.faults.append(Fault(**vars(WAIT)))
    assert run(f"{hub.plain}/o/m", "-o", "out", "-q").stderr == ""
    assert hub.faults[-1].times == 0


@pytest.mark.slow
def test_https_is_trusted_as_the_system_says(hub: HubServer, run_alone: Run, tmp_path: Path) -> None:
    hub.use_tls()
    address = f"{hub.plain}/o/m"
    result = run_alone(address, "-o", "out")
    assert result.returncode == 1
    assert result.stderr.startswith(f"clipgguf: error: {address}/config.json: cannot be read: the server's certificate")
    result = run_alone(address, "-o", "out", env={**uncovered(), "SSL_CERT_FILE": str(CERTIFICATE)})
    assert result.returncode == 0, result.stderr
    expected = convert(hub.root / "o" / "m", tmp_path / "a.gguf").path.read_bytes()
    assert (tmp_path / "work" / "out" / "model-f16.gguf").read_bytes() == expected
