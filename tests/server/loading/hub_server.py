"""A Hub on the loopback: just enough of its HTTP API for huggingface_hub to take snapshots."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

_COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """Repositories are folders; what goes wrong is set by the tests while it runs."""

    repositories: dict[str, Path] = field(default_factory=dict)
    gated: dict[str, str] = field(default_factory=dict)  # id -> the token that opens it
    answer_all_with: int | None = None  # e.g. 503
    cut_after_bytes: int | None = None  # the next download of a larger file ends there, once
    hold_after_bytes: int | None = None  # a download of a larger file goes on when `go_on` is set
    xet: bool = False  # the larger files are in Xet storage, as the real Hub's are
    go_on: threading.Event = field(default_factory=threading.Event)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)  # method, path, range
    url: str = ""

    def downloads(self, name: str) -> list[str | None]:
        """Range header of each GET of that file."""
        return [
            part for method, path, part in self.requests if method == "GET" and path.endswith(name)
        ]


@contextmanager
def running_hub(host: str = "127.0.0.1") -> Iterator[Hub]:
    hub = Hub()

    class Handler(_Handler):
        shared = hub

    server = ThreadingHTTPServer((host, 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://{host}:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    shared: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self, *, body: bool) -> None:
        hub = self.shared
        path = unquote(urlsplit(self.path).path)
        hub.requests.append((self.command, path, self.headers.get("Range")))
        if hub.answer_all_with is not None:
            return self._send(hub.answer_all_with, b"{}")
        if path == "/xet":
            return self._send(200, b"{}")  # and the headers it should have are missing
        api = path.startswith("/api/models/")
        parts = path.removeprefix("/api/models/").strip("/").split("/")
        repository, rest = "/".join(parts[:2]), parts[2:]
        folder = hub.repositories.get(repository)
        if folder is None:
            return self._refuse(401, "RepoNotFound", "Repository not found")
        if api and rest[:1] == ["revision"]:
            return self._info(repository, folder, rest[1])
        if api and rest[:1] == ["tree"]:
            return self._tree(folder)
        token = hub.gated.get(repository)
        if token is not None and self.headers.get("Authorization") != f"Bearer {token}":
            return self._refuse(401, "GatedRepo", f"Access to model {repository} is restricted")
        return self._file(folder / "/".join(rest[2:]), body)

    def _info(self, repository: str, folder: Path, revision: str) -> None:
        if revision not in ("main", _COMMIT):
            return self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        siblings = [{"rfilename": path.name} for path in sorted(folder.iterdir())]
        found = {"id": repository, "modelId": repository, "sha": _COMMIT, "siblings": siblings}
        return self._send(200, json.dumps(found | {"private": False, "tags": []}).encode())

    def _tree(self, folder: Path) -> None:
        entries = []
        for path in sorted(folder.iterdir()):
            entry = {
                "type": "file",
                "path": path.name,
                "size": path.stat().st_size,
                "oid": _oid(path),
            }
            entries.append(entry)
        return self._send(200, json.dumps(entries).encode())

    def _file(self, path: Path, body: bool) -> None:
        if not path.is_file():
            return self._refuse(404, "EntryNotFound", "Entry not found")
        content = path.read_bytes()
        start = 0
        wanted = self.headers.get("Range")
        if wanted:
            start = int(wanted.removeprefix("bytes=").split("-")[0])
        headers = {"X-Repo-Commit": _COMMIT, "ETag": f'"{_oid(path)}"', "Accept-Ranges": "bytes"}
        if self.shared.xet and path.suffix == ".safetensors":
            headers |= {"X-Xet-Hash": "ab" * 32, "X-Xet-Refresh-Route": f"{self.shared.url}/xet"}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        cut = self.shared.cut_after_bytes
        if body and cut is not None and len(content) > cut:
            self.shared.cut_after_bytes = None
            self._head(200, headers, len(content))
            self.wfile.write(content[:cut])
            self.wfile.flush()
            self.close_connection = True
            return None
        hold = self.shared.hold_after_bytes
        if body and hold is not None and len(content) > hold:
            self._head(206 if start else 200, headers, len(content) - start)
            self.wfile.write(content[start:hold])
            self.wfile.flush()
            self.shared.go_on.wait(60)
            with suppress(OSError):  # the client has given up waiting
                self.wfile.write(content[max(start, hold) :])
            return None
        return self._send(206 if start else 200, content[start:], headers)

    def _refuse(self, status: int, code: str, message: str) -> None:
        self._send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": message})

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self._head(status, headers or {}, len(body))
        if self.command != "HEAD":
            self.wfile.write(body)

    def _head(self, status: int, headers: dict[str, str], length: int) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()


def _oid(path: Path) -> str:
    return hashlib.sha1(path.read_bytes(), usedforsecurity=False).hexdigest()
