"""A local server that speaks the part of the hub's API that a download needs, with faults on order.

Two HTTP servers, as in the original: the hub answers what a repository holds, and serves small files itself; large ones
(weights, Parquet) it sends on to a store of another origin, with size and SHA-256 in its own headers.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import socket
import struct
import threading
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

LARGE = (".safetensors", ".parquet", ".bin")
BLOCK = 1 << 20


@dataclass
class Repository:
    """Commits (name -> bytes each), and the branches and tags that point to them."""

    commits: dict[str, dict[str, bytes]]
    refs: dict[str, str]
    needs: str = ""  # "", "login" (it looks absent to others) or "terms" (gated)


@dataclass
class Request:
    method: str
    path: str
    range: str | None
    token: str | None
    sent: int = 0


@dataclass
class Hub:
    """What is served, the faults, and the requests that came in."""

    repositories: dict[str, Repository] = field(default_factory=dict)  # "name/of" or "datasets/name/of"
    token: str = "hf_friend"
    requests: list[Request] = field(default_factory=list)
    cut: dict[str, list[tuple[int, str]]] = field(default_factory=lambda: defaultdict(list))
    """File -> (bytes to send, "close", "reset" or "stall") of its next downloads."""
    failures: dict[str, Counter] = field(default_factory=lambda: defaultdict(Counter))
    """Part of a path -> status -> how many times it is still answered."""
    altered: set[str] = field(default_factory=set)  # files whose body is not what the headers say
    ranges: bool = True
    stalled: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Hub:
        self.servers = []
        for handler in (HubHandler, StoreHandler):
            server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (handler,), {"hub": self}))
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
            self.servers.append(server)
        self.url, self.store = (f"http://127.0.0.1:{server.server_port}" for server in self.servers)
        return self

    def __exit__(self, *_):
        for server in self.servers:
            server.shutdown()
            server.server_close()

    def downloads(self, name: str) -> list[Request]:
        """Requests that were answered with bytes of a file."""
        return [r for r in self.requests if r.method == "GET" and r.sent and unquote(r.path).endswith(f"/{name}")]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *arguments):
        pass

    def handle(self):
        with contextlib.suppress(ConnectionError):
            super().handle()

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        self.request_ = Request(self.command, self.path, self.headers.get("Range"), token)
        self.hub.requests.append(self.request_)
        for part, statuses in self.hub.failures.items():
            if part in f"{self.command} {unquote(self.path)}":
                for status in list(statuses.elements()):
                    statuses[status] -= 1
                    return self.answer(status)
        self.reply(unquote(urlsplit(self.path).path).strip("/"))

    def answer(self, status: int, body: bytes = b"", **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def send_file(self, name: str, data: bytes, **headers):
        begin = 0
        if self.hub.ranges and self.request_.range:
            begin = int(re.fullmatch(r"bytes=(\d+)-", self.request_.range).group(1))
            headers["Content_Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
        rest = data[begin:]
        if name in self.hub.altered:
            rest = bytes([rest[0] ^ 1]) + rest[1:]
        self.answer(206 if "Content_Range" in headers else 200, Content_Length=len(rest), **headers)
        if self.command == "HEAD":
            return
        stop, how = self.hub.cut[name].pop(0) if self.hub.cut[name] else (len(rest), "")
        for at in range(0, min(stop, len(rest)), BLOCK):
            self.wfile.write(block := rest[at : min(at + BLOCK, stop)])
            self.request_.sent += len(block)
        if how == "reset":  # what is on its way is lost, and the client is told
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        if how == "stall":
            self.hub.stalled.set()
            self.connection.settimeout(30)
            with contextlib.suppress(OSError):
                self.connection.recv(1)  # until the client is gone
        self.close_connection = bool(how)


class HubHandler(Handler):
    def reply(self, path: str):
        if found := re.fullmatch(r"api/(models|datasets)/(.+?/.+?)/revision/(.+)", path):
            kind, name, revision = found.groups()
            if opened := self.opened(name if kind == "models" else f"datasets/{name}", revision):
                commit, files = opened
                siblings = [{"rfilename": file} for file in files]
                body = json.dumps({"id": name, "sha": commit, "siblings": siblings, "private": False, "tags": []})
                self.answer(200, body.encode(), Content_Type="application/json")
        elif found := re.fullmatch(r"((?:datasets/)?.+?/.+?)/resolve/([^/]+)/(.+)", path):
            name, revision, file = found.groups()
            if opened := self.opened(name, revision):
                self.resolve(name, file, *opened)
        else:
            self.answer(404, X_Error_Code="RepoNotFound")

    def opened(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """Commit and files, or None when the refusal has been answered."""
        repository, friend = self.hub.repositories.get(name), self.request_.token == self.hub.token
        if self.request_.token and not friend:
            self.answer(401, X_Error_Message="Invalid credentials in Authorization header")
        elif repository is None or repository.needs == "login" and not friend:
            self.answer(404 if friend else 401, X_Error_Code="RepoNotFound")
        elif repository.needs == "terms" and not friend:
            self.answer(403, X_Error_Code="GatedRepo")
        elif (commit := repository.refs.get(revision, revision)) not in repository.commits:
            self.answer(404, X_Error_Code="RevisionNotFound")
        else:
            return commit, repository.commits[commit]
        return None

    def resolve(self, repository: str, file: str, commit: str, files: dict[str, bytes]):
        if file not in files:
            return self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        data = files[file]
        if not file.endswith(LARGE):
            etag = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            return self.send_file(file, data, ETag=f'"{etag}"', X_Repo_Commit=commit)
        digest = hashlib.sha256(data).hexdigest()
        linked = {"X_Linked_Size": len(data), "X_Linked_ETag": f'"{digest}"', "X_Xet_Hash": "0" * 64}
        location = f"{self.hub.store}/{repository}/{commit}/{file}"
        self.answer(302, Location=location, X_Repo_Commit=commit, **linked)


class StoreHandler(Handler):
    def reply(self, path: str):
        name, commit, file = re.fullmatch(r"((?:datasets/)?[^/]+/[^/]+)/([0-9a-f]{40})/(.+)", path).groups()
        self.send_file(file, self.hub.repositories[name].commits[commit][file])
