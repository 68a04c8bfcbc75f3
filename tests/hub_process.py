"""The hub of hub_server.py in a process of its own, behind a line; ``python -m tests.hub_process DIR`` serves DIR.

It prints one line of JSON, the addresses ``endpoint`` and ``plain``, and ends when its standard input does.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.hub_server import HubServer
from tests.line import CERTIFICATE, Line
from tests.processes import uncovered


@contextmanager
def hub_process(root: Path, line: Line, home: Path, *, tls: bool = False) -> Iterator[dict[str, str]]:
    """Serve a directory; give the environment in which huggingface_hub asks there and nowhere else, without a token.

    ``home`` is for what it keeps, and ``PLAIN_WEB`` the address of the same files on a plain web server.
    """
    words = [sys.executable, "-m", "tests.hub_process", str(root.absolute()), "--tls" if tls else "--no-tls"]
    words += ["--latency", str(line.latency), "--bandwidth", str(line.bandwidth)]
    project, pipe = Path(__file__).parent.parent, subprocess.PIPE
    with subprocess.Popen(words, cwd=project, env=uncovered(), stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            told = json.loads(process.stdout.readline())
            without = dict.fromkeys(("DISABLE_XET", "DISABLE_IMPLICIT_TOKEN", "DISABLE_UPDATE_CHECK"), "1")
            yield {
                **{f"HF_HUB_{name}": value for name, value in without.items()},
                **{"HF_ENDPOINT": told["endpoint"], "PLAIN_WEB": told["plain"], "HF_HOME": str(home)},
                **({"SSL_CERT_FILE": str(CERTIFICATE)} if tls else {}),
                "NO_PROXY": "localhost,127.0.0.1",
            }
        finally:
            process.stdin.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.hub_process")
    parser.add_argument("root", type=Path)
    parser.add_argument("--latency", type=float, default=0, help="seconds of a round trip")
    parser.add_argument("--bandwidth", type=float, default=0, help="bytes a second")
    parser.add_argument("--tls", action=argparse.BooleanOptionalAction, default=False)
    options = parser.parse_args()
    with HubServer(options.root) as hub:
        hub.line.latency, hub.line.bandwidth = options.latency, options.bandwidth
        if options.tls:
            hub.use_tls()
        sys.stdout.write(json.dumps({"endpoint": hub.endpoint, "plain": hub.plain}) + "\n")
        sys.stdout.flush()
        sys.stdin.read()


if __name__ == "__main__":
    main()
