"""A stand-in for the Hugging Face hub, its CDN and plain web servers, on loopback, with everything that goes wrong.

ROOT/OWNER/NAME/ are model repos. ``hub.endpoint`` is what HF_ENDPOINT names; large files redirect from there to signed
addresses on a second port, small ones to the same one. ``hub.plain`` + "/OWNER/NAME/" is an ordinary web server. Each
answer is recorded in ``hub.requests``; each fault is taken by the first answers whose file and kind match.
"""

import fnmatch
import gzip
import hashlib
import json
import re
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from tests.line import FarHandler, FarServer, Line

if TYPE_CHECKING:
    from typing_extensions import Self

LARGE = (".safetensors", ".bin", ".gguf")
PIECE = 1 << 14  # How much of a body goes out at a time where a fault may be in it, and where none is.
LARGE_PIECE = 1 << 17


@dataclass
class Fault:
    """What goes wrong with ``times`` answers after ``skip`` that went well; the kinds are in ``_Handler._send_file``.

    ``status`` answers with a status and headers; ``drop`` ends the connection after so many bytes of the body, before
    the headers for 0; ``stall`` waits ``seconds`` there, ``wait`` before any answer. ``short`` is an honest answer with
    less than asked, ``shift`` one that begins earlier, ``ignore`` the whole file, ``gzip`` a compressed one, ``swap``
    another version; ``expire`` says that a signature has expired.
    """

    kind: str
    file: str = "*.safetensors"
    server: str = "cdn"
    method: str = "GET"
    times: int = 1
    skip: int = 0
    after: int = 0
    status: int = 503
    seconds: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Request:
    """An answer that was given: to what was asked when, by which server, and how many bytes of body."""

    moment: float
    server: str
    method: str
    path: str
    range: str | None
    token: str | None
    encoding: str | None
    status: int
    sent: int


class HubServer:
    """Both servers; a context manager."""

    handler: "type[_Handler] | None" = None  # What answers, where that is another than below.

    def __init__(self, root: Path, *, lifetime: float = 3600, page: int = 1000) -> None:
        self.root, self.lifetime, self.page, self.line = root, lifetime, page, Line()
        self.private: set[str] = set()
        self.gated: set[str] = set()
        self.token = "hf_secret"
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.lock = threading.Lock()
        self._servers = {name: _Server(name, self, self.handler) for name in ("hub", "cdn")}
        self.endpoint = f"http://127.0.0.1:{self._servers['hub'].server_address[1]}"
        self.cdn = f"http://localhost:{self._servers['cdn'].server_address[1]}"
        self.plain = f"{self.cdn}/plain"

    def __enter__(self) -> "Self":
        self._threads = [threading.Thread(target=s.serve_forever, args=(0.02,)) for s in self._servers.values()]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers.values():
            server.shutdown()
            server.server_close()
        for thread in self._threads:
            thread.join()

    def use_tls(self) -> None:
        for server in self._servers.values():
            server.use_tls()
        self.endpoint = self.endpoint.replace("http://127.0.0.1", "https://localhost")
        self.cdn, self.plain = (url.replace("http:", "https:") for url in (self.cdn, self.plain))

    def sent(self, file: str = "*") -> int:
        """Return how many bytes of bodies have been sent for a file."""
        return sum(r.sent for r in self.requests if fnmatch.fnmatch(urlsplit(r.path).path, f"*{file}"))

    def commit(self, repo: str) -> str:
        return hashlib.sha1(repr(sorted(self.files(repo).items())).encode()).hexdigest()

    def files(self, repo: str) -> dict[str, tuple[int, int]]:
        found = {p.relative_to(self.root / repo): p.stat() for p in (self.root / repo).rglob("*") if p.is_file()}
        return {path.as_posix(): (status.st_size, status.st_mtime_ns) for path, status in found.items()}

    def fault(self, server: str, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                is_meant = (fault.server, fault.method) == (server, method) and fnmatch.fnmatch(path, f"*{fault.file}")
                if fault.times and is_meant:
                    if fault.skip:
                        fault.skip -= 1
                        continue
                    fault.times -= 1
                    return fault
        return None

    def sign(self, path: str) -> str:
        expires = f"{time.time() + self.lifetime:.3f}"
        return f"{self.cdn}/{quote(path)}?Expires={expires}&Signature={self.signature(path, expires)}"

    def signature(self, path: str, expires: str) -> str:
        return hashlib.sha256(f"secret {path} {expires}".encode()).hexdigest()


class _Server(FarServer):
    def __init__(self, name: str, hub: HubServer, handler: "type[_Handler] | None") -> None:
        self.name, self.hub = name, hub
        super().__init__(hub.line, handler or _Handler)


class _Handler(FarHandler):
    server: _Server

    def do_GET(self) -> None:  # noqa: N802 - the name that the base class looks for.
        self.hub, self.sent, self.status = self.server.hub, 0, 0
        moment = time.monotonic()
        time.sleep(self.hub.line.latency)
        url = urlsplit(self.path)
        try:
            path = unquote(url.path).lstrip("/")
            is_there = not path.startswith("plain/") or (self.hub.root / path.removeprefix("plain/")).is_file()
            self.fault = self.hub.fault(self.server.name, self.command, path) if is_there else None
            time.sleep(self.fault.seconds if self.fault and self.fault.kind == "wait" else 0)
            if self.fault and self.fault.kind == "status":
                self._send(self.fault.status, b"no", self.fault.headers)
            elif self.fault and self.fault.kind == "drop" and not self.fault.after:
                raise ConnectionError
            elif self.server.name == "cdn":
                self._answer_cdn(path, {key: values[0] for key, values in parse_qs(url.query).items()})
            else:
                self._answer_hub(path, url.query)
        except (ConnectionError, TimeoutError):
            self.close_connection = True
        finally:
            get = self.headers.get
            asked = self.command, self.path, get("Range"), get("Authorization"), get("Accept-Encoding")
            made = Request(moment, self.server.name, *asked, self.status, self.sent)
            with self.hub.lock:
                self.hub.requests.append(made)

    do_HEAD = do_GET  # noqa: N815

    def _send(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self._begin(status, len(body), headers or {})
        if self.command != "HEAD":
            self.wfile.write(body)
            self.sent = len(body)

    def _begin(self, status: int, length: int, headers: dict[str, str]) -> None:
        self.status = status
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(length)}.items():
            self.send_header(name, value)
        self.end_headers()

    def _answer_cdn(self, path: str, query: dict[str, str]) -> None:
        if path.startswith("plain/"):
            self._send_file(self.hub.root / path.removeprefix("plain/"))
        elif self.headers.get("Authorization"):
            self._send(400, b"<Error>Only one auth mechanism allowed</Error>")
        elif query.get("Signature") != self.hub.signature(path, query["Expires"]):
            self._send(403, b"<Error>SignatureDoesNotMatch</Error>")
        elif float(query["Expires"]) < time.time() or (self.fault and self.fault.kind == "expire"):
            self._send(403, b"<Error>Request has expired</Error>")
        else:
            self._send_file(self.hub.root / path)

    def _answer_hub(self, path: str, query: str) -> None:
        if match := re.fullmatch(r"api/models/([^/]+/[^/]+)/tree/([^/]+)", path):
            if repo := self._repo(match[1], match[2]):
                self._send_tree(repo, int(parse_qs(query).get("cursor", ["0"])[0]))
        elif match := re.fullmatch(r"api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            if repo := self._repo(match[1], match[2] or "main"):
                siblings = [{"rfilename": name} for name in self.hub.files(repo)]
                self._send_json({"id": repo, "sha": self.hub.commit(repo), "siblings": siblings, "tags": []})
        elif match := re.fullmatch(r"api/resolve-cache/models/([^/]+/[^/]+)/([^/]+)/(.+)", path):
            if repo := self._repo(match[1], match[2]):
                self._send_file(self.hub.root / repo / match[3], {"X-Repo-Commit": self.hub.commit(repo)})
        elif match := re.fullmatch(r"([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            if repo := self._repo(match[1], match[2]):
                self._resolve(repo, match[3])
        else:  # huggingface_hub 2 asks for something that it can do without, and waits for the answer.
            self._error(404, None, "Not found")

    def _repo(self, repo: str, revision: str) -> str | None:
        """Return the repo, or answer with what is wrong."""
        token = self.headers.get("Authorization")
        is_known = token == f"Bearer {self.hub.token}"
        if token and not is_known:
            self._error(401, None, "Invalid credentials in Authorization header")
        elif not (self.hub.root / repo).is_dir() or (repo in self.hub.private and not is_known):
            self._error(404 if is_known else 401, "RepoNotFound", "Repository not found")
        elif repo in self.hub.gated and not is_known:
            self._error(403, "GatedRepo", f"Access to model {repo} is restricted")
        elif revision not in ("main", self.hub.commit(repo)):
            self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        else:
            return repo
        return None

    def _error(self, status: int, code: str | None, message: str) -> None:
        self._send(status, b"{}", {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})})

    def _send_json(self, value: Any, headers: dict[str, str] | None = None) -> None:
        limits = {"RateLimit": '"api";r=99;t=300', "Content-Type": "application/json"}
        self._send(200, json.dumps(value).encode(), {**limits, **(headers or {})})

    def _send_tree(self, repo: str, start: int) -> None:
        sizes = [(name, size) for name, (size, _) in sorted(self.hub.files(repo).items())]
        entries = [{"type": "file", "path": name, "size": size, "oid": "0" * 40} for name, size in sizes]
        stop = start + self.hub.page
        more = f'<{self.hub.endpoint}{urlsplit(self.path).path}?cursor={stop}&recursive=True>; rel="next"'
        self._send_json(entries[start:stop], {"Link": more} if stop < len(entries) else {})

    def _etag(self, repo: str, name: str) -> str:
        return hashlib.sha256(repr((name, self.hub.files(repo)[name])).encode()).hexdigest()

    def _resolve(self, repo: str, name: str) -> None:
        if not (self.hub.root / repo / name).is_file():
            self._error(404, "EntryNotFound", "Entry not found")
            return
        commit = self.hub.commit(repo)
        headers = {"X-Repo-Commit": commit, "Location": f"/api/resolve-cache/models/{repo}/{commit}/{quote(name)}"}
        if not name.endswith(LARGE):
            self._send(307, b"moved", headers)
            return
        linked = {"X-Linked-Etag": f'"{self._etag(repo, name)}"', "X-Linked-Size": str(self.hub.files(repo)[name][0])}
        self._send(302, b"found", {**headers, **linked, "Location": self.hub.sign(f"{repo}/{name}")})

    def _send_file(self, path: Path, about: dict[str, str] | None = None) -> None:
        """Send a file or a range of it, with what the fault does to it."""
        fault = self.fault or Fault("")
        if not path.is_file():
            self._send(404, b"not found")
            return
        status = path.stat()
        etag, size = f'"{fault.kind == "swap"} {status.st_mtime_ns} {status.st_size}"', status.st_size
        headers = {"ETag": etag, **(about or {})}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        # The hub's CDN does so with JSON and text, and then ignores ranges; with weights it does not.
        accepted = "" if path.suffix in LARGE else self.headers.get("Accept-Encoding", "")
        if fault.kind == "gzip" or "gzip" in accepted:
            self._send(200, gzip.compress(path.read_bytes(), 1), {**headers, "Content-Encoding": "gzip"})
            return
        if wanted and int(wanted[1]) >= size and fault.kind != "ignore":
            self._send(416, b"", {"Content-Range": f"bytes */{size}"})
            return
        start, end, code = 0, size, 200
        if wanted and fault.kind != "ignore":
            start, end, code = int(wanted[1]), min(size, int(wanted[2]) + 1), 206
            if fault.kind == "short":
                end = min(end, start + max(1, fault.after))
            if fault.kind == "shift":
                start, end = max(0, start - fault.after), end - min(start, fault.after)
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        self._begin(code, end - start, headers)
        with path.open("rb") as file:
            file.seek(start)
            step = PIECE if self.fault else LARGE_PIECE
            for at in range(start, end, step) if self.command == "GET" else ():
                if fault.kind in ("drop", "stall") and at - start >= fault.after:
                    if fault.kind == "drop":
                        raise ConnectionError
                    time.sleep(fault.seconds)
                piece = file.read(min(step, end - at))
                self.hub.line.take(len(piece))
                self.wfile.write(bytes(255 - b for b in piece) if fault.kind == "swap" else piece)
                self.sent += len(piece)
