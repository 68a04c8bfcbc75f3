"""A stand-in for object stores that speak as S3, Google's XML API and Azure do, on loopback.

A bucket is a directory, an object a file in it.

What it answers is what object_store, obstore's core, asks of S3: objects whole and by range, ``list-type=2``, deletion,
and uploads of several parts, which are kept in ``uploads`` until they are completed or aborted (Amazon's S3 API
Reference). Google's XML API is the same but for the signature; Azure has another listing, and calls parts blocks ("List
Blobs", "Put Block List"), which nobody aborts. What goes wrong is as in hub_server.py, for the server "store".
"""

import base64
import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import parse_qs
from xml.sax.saxutils import escape

from tests.hub_server import HubServer, _Handler, _Server

KEY, SECRET = "key-of-the-store", "secret-of-the-store"
MADE = "Sat, 28 Nov 2026 00:00:00 GMT"


class ObjectServer(HubServer):
    """The server; a context manager."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.uploads: dict[str, dict[int, bytes]] = {}
        self.blocks: dict[Path, dict[str, bytes]] = {}
        self.forbidden: set[str] = set()
        self._servers["store"] = _Server("store", self, _StoreHandler)
        self.address = f"http://127.0.0.1:{self._servers['store'].server_address[1]}"

    def environment(self, scheme: str = "s3") -> dict[str, str]:
        """Return the variables that lead to the server."""
        if scheme == "gs":
            return {"GOOGLE_BASE_URL": self.address, "GOOGLE_BEARER_TOKEN": SECRET, "GOOGLE_ALLOW_HTTP": "true"}
        if scheme == "az":
            key = base64.b64encode(SECRET.encode()).decode()
            keys = {"AZURE_STORAGE_ACCOUNT_NAME": KEY, "AZURE_STORAGE_ACCOUNT_KEY": key}
            return {**keys, "AZURE_STORAGE_ENDPOINT": self.address, "AZURE_ALLOW_HTTP": "true"}
        keys = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": "us-east-1"}
        return {**keys, "AWS_ENDPOINT_URL": self.address, "AWS_ALLOW_HTTP": "true"}


class _StoreHandler(_Handler):
    hub: ObjectServer

    def do_PUT(self) -> None:  # noqa: N802 - the name that the base class looks for.
        # All of it, also where the answer will be an error: else the client's connection breaks while it sends.
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.do_GET()

    do_POST = do_DELETE = do_PUT  # noqa: N815

    def _answer_hub(self, path: str, query: str) -> None:
        self.query = {name: values[0] for name, values in parse_qs(query, keep_blank_values=True).items()}
        bucket, _, key = path.partition("/")
        known = f"Credential={KEY}/", f"Bearer {SECRET}", f"SharedKey {KEY}:"
        if not any(text in self.headers.get("Authorization", "") for text in known):
            self._fails(403, "InvalidAccessKeyId")
        elif self.command in self.hub.forbidden:
            self._fails(403, "AccessDenied")
        elif not (self.hub.root / bucket).is_dir():
            self._fails(404, "NoSuchBucket")
        elif self.command in ("GET", "HEAD"):
            if key:
                self._get(self.hub.root / path)
            else:
                self._list(bucket)
        elif self.command == "DELETE" and "uploadId" not in self.query:
            (self.hub.root / path).unlink(missing_ok=True)
            self._send(204)
        else:
            self._upload(self.hub.root / path, self.body)

    def _begin(self, status: int, length: int, headers: dict[str, str]) -> None:
        super()._begin(status, length, {"Last-Modified": MADE, **headers})

    def _fails(self, status: int, code: str) -> None:
        self._send(status, f"<Error><Code>{code}</Code><Message>{SECRET}</Message></Error>".encode())

    def _get(self, path: Path) -> None:
        if not path.is_file():
            self._fails(404, "NoSuchKey")
        elif self.headers.get("If-Match", self._etag_of(path)) != self._etag_of(path):
            self._fails(412, "PreconditionFailed")
        else:
            self._send_file(path)

    def _etag_of(self, path: Path) -> str:
        status = path.stat()
        return f'"{False} {status.st_mtime_ns} {status.st_size}"'

    def _list(self, bucket: str) -> None:
        """List what is under a prefix, a page at a time, up to the delimiter."""
        root, prefix, delimiter = self.hub.root / bucket, self.query.get("prefix", ""), self.query.get("delimiter")
        keys = sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())
        found: list[str] = []
        folders = set()
        for key in keys:
            head, cut, _ = key[len(prefix) :].partition(delimiter or "\n")
            if key.startswith(prefix) and cut:
                folders.add(prefix + head + cut)
            elif key.startswith(prefix):
                found.append(key)
        if "comp" in self.query:
            self._send(200, self._azure_listing(root, found, folders).encode())
            return
        start = int(self.query.get("continuation-token", 0))
        stop = start + self.hub.page
        entries = "".join(
            f"<Contents><Key>{escape(key)}</Key><LastModified>2026-11-28T00:00:00.000Z</LastModified>"
            f"<ETag>{escape(self._etag_of(root / key))}</ETag><Size>{(root / key).stat().st_size}</Size></Contents>"
            for key in found[start:stop]
        )
        entries += "".join(f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>" for name in folders)
        more = f"<NextContinuationToken>{stop}</NextContinuationToken>" if stop < len(found) else ""
        self._send(200, f"<ListBucketResult>{entries}{more}</ListBucketResult>".encode())

    def _azure_listing(self, root: Path, keys: Iterable[str], folders: Iterable[str]) -> str:
        blobs = "".join(
            f"<Blob><Name>{escape(key)}</Name><Properties><Last-Modified>{MADE}</Last-Modified>"
            f"<Etag>{escape(self._etag_of(root / key))}</Etag><Content-Type>a</Content-Type>"
            f"<Content-Length>{(root / key).stat().st_size}</Content-Length></Properties></Blob>"
            for key in keys
        )
        blobs += "".join(f"<BlobPrefix><Name>{escape(name)}</Name></BlobPrefix>" for name in folders)
        return f"<EnumerationResults><Blobs>{blobs}</Blobs><NextMarker/></EnumerationResults>"

    def _azure_block(self, path: Path, body: bytes) -> None:
        blocks = self.hub.blocks.setdefault(path, {})
        if self.query["comp"] == "block":
            blocks[self.query["blockid"]] = body
            self._send(201)
        else:
            self._save(path, b"".join(blocks[name] for name in re.findall(r"<\w+>([\w=+/]+)</\w+>", body.decode())))

    def _upload(self, path: Path, body: bytes) -> None:
        if "comp" in self.query:
            self._azure_block(path, body)
            return
        number, name = self.query.get("partNumber"), self.query.get("uploadId", "")
        if "uploads" in self.query:
            name = f"upload-{len(self.hub.uploads)}"
            self.hub.uploads[name] = {}
            self._send(200, f"<R><UploadId>{name}</UploadId></R>".encode())
        elif name and name not in self.hub.uploads:
            self._fails(404, "NoSuchUpload")
        elif self.command == "DELETE":
            del self.hub.uploads[name]
            self._send(204)
        elif number is not None:
            self.hub.uploads[name][int(number)] = body
            self._send(200, b"", {"ETag": f'"{hashlib.md5(body).hexdigest()}"'})
        elif name:
            parts = self.hub.uploads.pop(name)
            wanted = map(int, re.findall(r"<PartNumber>(\d+)</PartNumber>", body.decode()))
            self._save(path, b"".join(parts[part] for part in wanted))
        else:
            self._save(path, body)

    def _save(self, path: Path, content: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        etag = escape(self._etag_of(path))
        self._send(200, f"<R><ETag>{etag}</ETag></R>".encode(), {"ETag": self._etag_of(path)})
