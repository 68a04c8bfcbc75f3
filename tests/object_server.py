"""A stand-in for an object store that speaks S3, on loopback: a bucket is a directory, an object a file in it.

What it answers is what object_store, obstore's core, asks of S3: objects whole and by range, ``list-type=2``, deletion,
and uploads of several parts, which are kept in ``uploads`` until they are completed or aborted (Amazon's S3 API
Reference). What goes wrong is as in hub_server.py, for the server "store".
"""

import hashlib
import re
from pathlib import Path
from urllib.parse import parse_qs
from xml.sax.saxutils import escape

from tests.hub_server import HubServer, _Handler, _Server

KEY, SECRET = "key-of-the-store", "secret-of-the-store"


class ObjectServer(HubServer):
    """The server; a context manager."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.uploads: dict[str, dict[int, bytes]] = {}
        self.forbidden: set[str] = set()
        self._servers["store"] = _Server("store", self, _StoreHandler)
        self.address = f"http://127.0.0.1:{self._servers['store'].server_address[1]}"

    def environment(self) -> dict[str, str]:
        """Return the variables that lead to the server."""
        keys = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": "us-east-1"}
        return {**keys, "AWS_ENDPOINT_URL": self.address, "AWS_ALLOW_HTTP": "true"}


class _StoreHandler(_Handler):
    do_PUT = do_POST = do_DELETE = _Handler.do_GET  # noqa: N815

    hub: ObjectServer

    def _answer_hub(self, path: str, query: str) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.query = {name: values[0] for name, values in parse_qs(query, keep_blank_values=True).items()}
        bucket, _, key = path.partition("/")
        if f"Credential={KEY}/" not in self.headers.get("Authorization", ""):
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
            self._upload(self.hub.root / path, body)

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
        found, folders = [], set()
        for key in keys:
            head, cut, _ = key[len(prefix) :].partition(delimiter or "\n")
            if key.startswith(prefix) and cut:
                folders.add(prefix + head + cut)
            elif key.startswith(prefix):
                found.append(key)
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

    def _upload(self, path: Path, body: bytes) -> None:
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
