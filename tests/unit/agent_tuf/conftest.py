"""The client as its users have it, the command `covey-agent tuf`, against a web server that serves a `Repository`."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tuf.api.metadata import Metadata

from covey_agent.cli import main
from covey_agent.tuf.errors import RepositoryError
from covey_agent.tuf.folder import MetadataFolder
from covey_agent.tuf.source import HeldSource
from covey_agent.tuf.updater import Limits, Updater, initialise
from covey_contract.reasons import Reason
from tests.unit.agent_tuf.repository import Repository


class WebServer(ThreadingHTTPServer):
    """Serves `repository` under /metadata/ and /targets/; `asked` lists what it was asked for."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repository = Repository()
        self.asked: list[str] = []

    def handle_error(self, *_: object) -> None:
        """A client that hangs up is no error of ours."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and body in one packet
    server: WebServer

    def do_GET(self) -> None:
        self.server.asked.append(self.path.lstrip("/"))
        _, kind, name = self.path.split("/", 2)
        repository = self.server.repository
        data = (repository.metadata if kind == "metadata" else repository.files).get(name)
        self.send_response(404 if data is None else 200)
        self.send_header("Content-Length", str(len(data or b"")))
        self.end_headers()
        self.wfile.write(data or b"")

    def log_message(self, *_: object) -> None:
        """Silence."""


@dataclass
class Client:
    """The command, and what it leaves behind."""

    server: WebServer
    folder: Path

    @property
    def metadata(self) -> Path:
        return self.folder / "metadata"

    @property
    def downloads(self) -> Path:
        return self.folder / "targets"

    def _run(self, *words: str) -> int:
        return main(["tuf", "--metadata-dir", str(self.metadata), *words])

    def init(self, root: bytes | None = None) -> int:
        place = self.folder / "trusted.json"
        place.write_bytes(root if root is not None else self.server.repository.first_root)
        return self._run("init", str(place))

    def refresh(self) -> int:
        return self._run("--metadata-url", f"{self.server.url}/metadata", "refresh")

    def download(self, path: str) -> int:
        return self._run(
            *("--metadata-url", f"{self.server.url}/metadata"),
            *("--target-name", path, "--target-base-url", f"{self.server.url}/targets"),
            *("--target-dir", str(self.downloads), "download"),
        )

    def version(self, role: str) -> int | None:
        data = self.stored(role)
        return None if data is None else int(Metadata.from_bytes(data).signed.version)

    def stored(self, role: str) -> bytes | None:
        place = self.metadata / f"{role}.json"
        return place.read_bytes() if place.exists() else None

    def versions(self) -> dict[str, int]:
        """Of every role that is trusted, by its file's name."""
        return {
            place.stem: int(Metadata.from_bytes(place.read_bytes()).signed.version)
            for place in self.metadata.glob("*.json")
        }

    def downloaded(self) -> list[bytes]:
        return sorted(place.read_bytes() for place in self.downloads.rglob("*") if place.is_file())


@dataclass
class Device:
    """The library with a clock of its own: what the repository holds is handed over without a network."""

    repository: Repository
    folder: MetadataFolder
    embedded: bytes | None = None
    limits: Limits = field(default_factory=Limits)

    def updater(self, now: datetime | None = None) -> Updater:
        source = HeldSource(self.repository.metadata)
        return Updater(self.folder, source, now or self.repository.now, embedded=self.embedded, limits=self.limits)

    def refusal(self, now: datetime | None = None, target: str | None = None) -> Reason:
        """Refresh (and find the target), which must be refused."""
        updater = self.updater(now)
        try:
            updater.refresh()
            if target is not None:
                updater.find(target)
        except RepositoryError as error:
            return error.reason
        pytest.fail("it was not refused")


@pytest.fixture(scope="module")
def web_server() -> Iterator[WebServer]:
    server = WebServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def repository(web_server: WebServer) -> Repository:
    web_server.repository = Repository()
    web_server.asked.clear()
    return web_server.repository


@pytest.fixture
def client(web_server: WebServer, repository: Repository, tmp_path: Path) -> Client:
    del repository
    client = Client(web_server, tmp_path)
    assert client.init() == 0
    return client


@pytest.fixture
def device(tmp_path: Path) -> Device:
    repository = Repository()
    folder = MetadataFolder(tmp_path / "metadata")
    initialise(folder, repository.first_root)
    return Device(repository, folder)
