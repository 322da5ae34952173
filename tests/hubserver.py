"""A hub on this computer: the few endpoints of huggingface.co that reading and pushing a model need, over
real HTTP."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

TOKEN = "hf_tokenOfTheTest"


class Repository:
    """Files by revision; "main" is the newest."""

    def __init__(self, files: dict[str, bytes] | None = None, **facts: Any) -> None:
        self.revisions = {"main": dict(files or {})}
        self.facts = {"private": False, "gated": False, **facts}
        self.messages: list[str] = []

    def find(self, revision: str) -> dict[str, bytes] | None:
        """Files of a branch, tag or commit."""
        return next(
            (files for name, files in self.revisions.items() if revision in (name, commit_of(files))), None
        )


def commit_of(files: dict[str, bytes]) -> str:
    """Name of a commit with these files."""
    digest = hashlib.sha1()
    for name in sorted(files):
        digest.update(name.encode() + hashlib.sha1(files[name]).digest())
    return digest.hexdigest()


class Hub(ThreadingHTTPServer):
    """The server: its repositories, and what was asked of it."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, Repository] = {}
        self.requests: list[str] = []
        self.sent = 0

    @property
    def address(self) -> str:
        """Address as HF_ENDPOINT wants it."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def asked(self, method: str, part: str) -> list[str]:
        """Requests of a method whose path contains a text."""
        return [line for line in self.requests if line.startswith(method + " ") and part in line]


class Handler(BaseHTTPRequestHandler):
    """Answers as the hub does, as far as its client looks."""

    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on the screen."""

    def do_GET(self) -> None:
        """Listings and files."""
        self.answer()

    def do_HEAD(self) -> None:
        """Facts of files."""
        self.answer()

    def do_POST(self) -> None:
        """Repositories made and files put into them."""
        self.answer()

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"{self.command} {path}")
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "validate-yaml"]:
            return self.send(200, {"errors": [], "warnings": []})
        if self.command == "POST" and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.fail(401, "", "Invalid credentials in Authorization header")
        if parts[:3] == ["api", "repos", "create"]:
            return self.create(json.loads(body))
        name, rest = (
            ("/".join(parts[2:4]), parts[4:])
            if parts[:2] == ["api", "models"]
            else ("/".join(parts[:2]), parts[2:])
        )
        repository = self.server.repositories.get(name)
        if repository is None:
            return self.fail(404, "RepoNotFound")
        if rest[:1] == ["preupload"]:
            named = [
                {"path": each["path"], "uploadMode": "regular", "shouldIgnore": False}
                for each in json.loads(body)["files"]
            ]
            return self.send(200, {"files": named})
        if rest[:1] == ["commit"]:
            return self.commit(name, repository, body)
        files = repository.find(rest[1] if len(rest) > 1 else "main")
        if files is None:
            return self.fail(404, "RevisionNotFound")
        if rest[:1] == ["resolve"]:
            return self.resolve(repository, files, "/".join(rest[2:]))
        siblings = [
            {"rfilename": name, "size": len(content), "blobId": "0" * 40} for name, content in files.items()
        ]
        return self.send(200, {"id": name, "sha": commit_of(files), "siblings": siblings, **repository.facts})

    def resolve(self, repository: Repository, files: dict[str, bytes], name: str) -> None:
        if repository.facts["gated"]:
            return self.fail(403, "GatedRepo")
        if name not in files:
            return self.fail(404, "EntryNotFound")
        content = files[name]
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": commit_of(files)}
        if (wanted := self.headers.get("Range")) and self.command == "GET":
            first, last = (int(each or len(content) - 1) for each in wanted.removeprefix("bytes=").split("-"))
            headers["Content-Range"] = f"bytes {first}-{min(last, len(content) - 1)}/{len(content)}"
            return self.send(206, content[first : last + 1], headers)
        self.send(200, content, headers)

    def create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.server.repositories:
            return self.fail(409, "", "You already created this model repo")
        private = bool(asked.get("private")) or asked.get("visibility") == "private"
        self.server.repositories[name] = Repository(private=private)
        self.send(200, {"url": f"{self.server.address}/{name}", "id": name, "name": name})

    def commit(self, name: str, repository: Repository, body: bytes) -> None:
        files = dict(repository.revisions["main"])
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "header":
                repository.messages.append(line["value"]["summary"])
            elif line["key"] == "file":
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        repository.revisions["main"] = files
        told = {
            "success": True,
            "commitOid": commit_of(files),
            "commitUrl": f"{self.server.address}/{name}/commit/main",
        }
        self.send(200, told)

    def fail(self, status: int, code: str, message: str = "") -> None:
        self.send(
            status, {"error": message or code}, {"X-Error-Code": code, "X-Error-Message": message or code}
        )

    def send(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.server.sent += len(body)
            self.wfile.write(body)


@contextmanager
def running(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[Hub]:
    """A hub in its own thread, with the hub's client pointed to it and to an empty cache."""
    from huggingface_hub import constants

    hub = Hub()
    threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    settings = {
        "ENDPOINT": hub.address,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.address + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(cache),
        "HF_TOKEN_PATH": str(cache / "token"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
    }
    for name, value in settings.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
