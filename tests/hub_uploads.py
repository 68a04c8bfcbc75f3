"""The hub of hub_server.py, which also takes files: what huggingface_hub's upload_file asks of it, without Xet.

Uploads go as the hub's documentation and Git LFS's "Batch API" have it: how each file is to go, the address for a
large one's bytes, and the commit, in lines of JSON. ``may_write`` is whether the token
gives the right to.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from tests.hub_server import HubServer, _Handler

_ASKED = re.compile(r"(?:api/models/)?([^/]+/[^/.]+)(?:/|\.git/info/)(preupload|commit|paths-info|lfs)/(.+)")


class _UploadHandler(_Handler):
    hub: "UploadHub"

    def do_PUT(self) -> None:  # noqa: N802 - the name that the base class looks for.
        # All of it, also where the answer will be an error: else the client's connection breaks while it sends.
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.do_GET()

    do_POST = do_PUT  # noqa: N815

    def _answer_cdn(self, path: str, query: dict[str, str]) -> None:
        if self.command != "PUT":
            super()._answer_cdn(path, query)
            return
        self.hub.blobs[hashlib.sha256(self.body).hexdigest()] = self.body
        self._send(200)

    def _answer_hub(self, path: str, query: str) -> None:
        if self.command != "POST":
            super()._answer_hub(path, query)
            return
        match = _ASKED.fullmatch(path)
        repo = match and self._repo(match[1], "main")
        if match is None or repo is None:
            return
        if match[2] == "paths-info":
            wanted = re.findall(r"paths=([^&]+)", self.body.decode()) or json.loads(self.body)["paths"]
            found = [(name, size) for name, (size, _) in self.hub.files(repo).items() if name in wanted]
            self._send_json([{"type": "file", "path": name, "size": size, "oid": "0" * 40} for name, size in found])
        elif not self.hub.may_write:
            self._error(403, None, "Forbidden: you don't have the right to write")
        elif match[2] == "preupload":
            files = [{"path": file["path"], "uploadMode": "lfs"} for file in json.loads(self.body)["files"]]
            self._send_json({"files": [{**file, "shouldIgnore": False} for file in files]})
        elif match[2] == "lfs":
            actions = {"upload": {"href": f"{self.hub.cdn}/put?Signature=secret", "header": {}}}
            objects = [{**of, "authenticated": True, "actions": actions} for of in json.loads(self.body)["objects"]]
            self._send_json({"transfer": "basic", "objects": objects})
        else:
            self._commit(repo, [json.loads(line) for line in self.body.splitlines()])

    def _commit(self, repo: str, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            if line["key"] == "lfsFile":
                path = self.hub.root / repo / line["value"]["path"]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(self.hub.blobs[line["value"]["oid"]])
            else:
                self.hub.messages.append(line["value"]["summary"])
        commit = self.hub.commit(repo)
        self._send_json(
            {"success": True, "commitOid": commit, "commitUrl": f"{self.hub.endpoint}/{repo}/commit/{commit}"}
        )


class UploadHub(HubServer):
    """The servers; a context manager."""

    handler = _UploadHandler
    may_write = True

    def __init__(self, root: Path, **options: Any) -> None:
        super().__init__(root, **options)
        self.blobs: dict[str, bytes] = {}
        self.messages: list[str] = []
