"""The Hub's API as a server of this machine, as far as a push asks it: names, repositories, commits of small files."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_a_token_that_may_write"


class HubStub(ThreadingHTTPServer):
    """Hold what the Hub would.

    Attributes:
        repositories: By name ``{"private": bool, "files": {name: bytes}, "commits": [message, ...]}``.
        created: What was asked for at ``/api/repos/create``.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, Any]] = {}
        self.created: list[dict[str, Any]] = []

    @property
    def address(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.server_port}"

    def add(self, name: str, *, private: bool, **files: bytes) -> dict[str, Any]:
        """Have a repository that was there before."""
        self.repositories[name] = {"private": private, "files": dict(files), "commits": []}
        return self.repositories[name]


@contextmanager
def hub_stub() -> Iterator[HubStub]:
    """Serve until the block ends."""
    server = HubStub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: HubStub

    def do_GET(self) -> None:
        if not self._may():
            return None
        path = self.path.partition("?")[0]
        if path == "/api/whoami-v2":
            return self._answer({"name": "me", "type": "user", "orgs": []})
        name, _, rest = path.removeprefix("/api/models/").partition("/tree")
        name = "/".join(name.split("/")[:2])
        if name not in self.server.repositories:
            return self._answer({"error": "Repository not found"}, 404)
        found = self.server.repositories[name]
        if rest:
            files = found["files"].items()
            return self._answer([{"type": "file", "path": n, "size": len(c), "oid": "0" * 40} for n, c in files])
        siblings = [{"rfilename": n} for n in found["files"]]
        return self._answer({"id": name, "private": found["private"], "sha": "1" * 40, "siblings": siblings})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if not self._may():
            return None
        path = self.path.partition("?")[0]
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return self._answer({"errors": [], "warnings": []})
        name = "/".join(path.removeprefix("/api/models/").split("/")[:2])
        if "/preupload/" in path:
            given = [file["path"] for file in json.loads(body)["files"]]
            answers = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in given]
            return self._answer({"files": answers})
        return self._commit(name, [json.loads(line) for line in body.splitlines()])

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing of each request."""

    def _create(self, asked: dict[str, Any]) -> None:
        self.server.created.append(asked)
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        url = {"url": f"{self.server.address}/{name}"}
        if not name.startswith("me/"):
            return self._answer({"error": "You don't have the rights to create a model under this namespace"}, 403)
        if name in self.server.repositories:
            return self._answer({"error": "You already created this model repo", **url}, 409)
        self.server.add(name, private=asked.get("visibility") == "private" or bool(asked.get("private")))
        return self._answer(url)

    def _commit(self, name: str, lines: list[dict[str, Any]]) -> None:
        found = self.server.repositories[name]
        for line in lines:
            key, value = line["key"], line["value"]
            if key == "header":
                found["commits"].append(value["summary"])
            elif key == "file":
                found["files"][value["path"]] = base64.b64decode(value["content"])
            elif key == "deletedFile":
                del found["files"][value["path"]]
        self._answer({"commitUrl": f"{self.server.address}/{name}/commit/{'2' * 40}", "commitOid": "2" * 40})

    def _may(self) -> bool:
        if self.headers.get("Authorization") == f"Bearer {TOKEN}":
            return True
        self._answer({"error": "Invalid credentials"}, 401)
        return False

    def _answer(self, content: Any, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
