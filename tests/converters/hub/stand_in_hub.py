"""A server that answers the Hub's requests that huggingface_hub makes for downloads.

Paths, headers and error codes: huggingface_hub/{hf_api,file_download}.py and utils/_http.py.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


@dataclass
class Repository:
    """The files of a repository by revision.

    Attributes:
        revisions: branch or tag → id of the commit.
        commits: id of a commit → files by name.
        gated: whether downloads of files are refused.
    """

    revisions: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: bool = False

    def commit(self, files: dict[str, bytes], revision: str = "main") -> str:
        """Commit these files to a branch, and return the id of the commit."""
        sha = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        self.commits[sha] = files
        self.revisions[revision] = sha
        return sha

    def commit_folder(self, folder: Path, revision: str = "main") -> str:
        """Commit the files of a folder, and return the id of the commit."""
        files = {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file()
        }
        return self.commit(files, revision)

    def found(self, revision: str) -> str | None:
        """Return the id of the commit that a branch, tag or id names."""
        return self.revisions.get(revision, revision if revision in self.commits else None)


@dataclass
class Hub:
    """The repositories of the server, and the requests that it received.

    Attributes:
        url: address of the server.
        repositories: repositories by ``owner/name``.
        fetched: names of files that were sent, in order.
        status: if not None, the HTTP status of every answer.
    """

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    fetched: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    status: int | None = None

    def add(self, name: str) -> Repository:
        return self.repositories.setdefault(name, Repository())


@contextlib.contextmanager
def serving() -> Iterator[Hub]:
    """Run a hub on a free local port."""
    hub = Hub()

    class Handler(_Handler):
        state = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


_API = re.compile(r"/api/models/([^/]+/[^/]+?)(?:/(revision|tree)/([^/]+)(?:/.*)?)?")
_FILE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


class _Handler(BaseHTTPRequestHandler):
    state: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self) -> None:
        path = urlsplit(self.path).path
        self.state.asked.append(unquote(path))
        if self.state.status is not None:
            self._send(self.state.status)
        elif match := _API.fullmatch(path):
            self._describe(*match.groups())
        elif match := _FILE.fullmatch(path):
            self._file(*match.groups())
        else:
            self._send(404)

    def _describe(self, name: str, what: str | None, revision: str | None) -> None:
        sha, files = self._commit(name, revision or "main")
        if sha and what == "tree":
            entries = [
                {"type": "file", "path": path, "size": len(data), "oid": _oid(data)}
                for path, data in files.items()
            ]
            self._send_json(entries)
        elif sha:
            siblings = [{"rfilename": path} for path in files]
            self._send_json({"id": name, "sha": sha, "siblings": siblings})

    def _file(self, name: str, revision: str, path: str) -> None:
        sha, files = self._commit(name, revision)
        data = files.get(unquote(path))
        if not sha:
            return
        if self.state.repositories[name].gated:
            self._send(403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "gated"})
        elif data is None:
            self._send(404, {"X-Error-Code": "EntryNotFound"})
        else:
            if self.command == "GET":
                self.state.fetched.append(unquote(path))
            self._send(200, {"X-Repo-Commit": sha, "ETag": f'"{_oid(data)}"'}, data)

    def _commit(self, name: str, revision: str) -> tuple[str, dict[str, bytes]]:
        """Return the commit and its files. If there are none, send the error and return empty
        values."""
        repository = self.state.repositories.get(name)
        sha = repository.found(unquote(revision)) if repository else None
        if repository and sha:
            return sha, repository.commits[sha]
        if repository:
            self._send(404, {"X-Error-Code": "RevisionNotFound"})
        else:  # the Hub's answer without login, since it may be private
            self._send(401, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "not found"})
        return "", {}

    def _send_json(self, value: object) -> None:
        self._send(200, {"Content-Type": "application/json"}, json.dumps(value).encode())

    def _send(self, status: int, headers: dict[str, str] | None = None, data: bytes = b"") -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)


def _oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
