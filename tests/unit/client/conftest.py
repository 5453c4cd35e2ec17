"""A small HTTP server that answers what a test tells it to, on a real socket."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest


@dataclass(frozen=True)
class Asked:
    """A request as it came."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Answer:
    status: int = 200
    body: bytes = b""
    kind: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)


class FakeServer:
    """Answers by "METHOD /path"; of several answers to one route the last stays."""

    def __init__(self) -> None:
        self.routes: dict[str, list[Answer | Callable[[Asked], object]]] = {}
        self.asked: list[Asked] = []
        self.url = ""

    def on(self, route: str, *documents: object, status: int = 200) -> None:
        """Answer with JSON; a function is asked for it."""
        self.routes[route] = [
            document if callable(document) else Answer(status, json.dumps(document).encode()) for document in documents
        ]

    def raw(self, route: str, body: bytes, status: int = 200, **headers: str) -> None:
        self.routes[route] = [Answer(status, body, "application/octet-stream", headers)]

    def refuse(self, route: str, status: int, detail: str, **extra: object) -> None:
        document = {"type": "urn:covey:problem:x", "title": "No", "status": status, "detail": detail, "code": "x"}
        self.routes[route] = [Answer(status, json.dumps({**document, **extra}).encode(), "application/problem+json")]

    def answer(self, asked: Asked) -> Answer:
        self.asked.append(asked)
        replies = self.routes.get(f"{asked.method} {asked.path}")
        if replies is None:
            self.refuse("-", 404, f"there is nothing at {asked.path}")
            replies = self.routes["-"]
        reply = replies.pop(0) if len(replies) > 1 else replies[0]
        return reply if isinstance(reply, Answer) else Answer(body=json.dumps(reply(asked)).encode())


@pytest.fixture
def server() -> Iterator[FakeServer]:
    fake = FakeServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            parts = urlsplit(self.path)
            if self.headers.get("Transfer-Encoding") == "chunked":
                body = self._chunks()
            else:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            reply = fake.answer(Asked(self.command, parts.path, parse_qs(parts.query), headers, body))
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            if reply.status != 204:
                self.send_header("Content-Type", reply.kind)
                self.send_header("Content-Length", str(len(reply.body)))
            self.end_headers()
            self.wfile.write(reply.body)

        def _chunks(self) -> bytes:
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        http.daemon_threads = True
        fake.url = f"http://127.0.0.1:{http.server_address[1]}"
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield fake
        http.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nobody's login and nobody's variables."""
    for name in ("COVEY_SERVER", "COVEY_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COVEY_CONFIG", str(tmp_path_factory.mktemp("config")))
