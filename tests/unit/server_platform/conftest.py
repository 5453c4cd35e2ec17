"""A server of real parts on an empty folder, without broker and background threads, and people with every role."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from covey_hil.testing.postgresql import new_database
from covey_hil.testing.serving import served
from covey_server import tokens
from covey_server.app import create_app
from covey_server.bus import Bus
from covey_server.db.engine import Database
from covey_server.people.roles import ROLES
from covey_server.registry.blobs import BlobStore
from covey_server.registry.keys import SigningKeys
from covey_server.registry.workers import Workers
from covey_server.services import Services
from covey_server.settings import Settings
from covey_server.tracing.spans import OFF, Tracing
from tests.unit.server_platform.notified import Desk, Receiver, desk_of, receiver_at

START_MS = 1_800_000_000_000


@dataclass
class FakeClock:
    """Time that passes when told to."""

    now_ms: int = START_MS

    def __call__(self) -> int:
        return self.now_ms

    def pass_s(self, seconds: float) -> None:
        self.now_ms += round(seconds * 1000)


@dataclass
class Site:
    """A server and its people."""

    services: Services
    clock: FakeClock
    client: httpx.Client
    secrets: dict[str, str]

    def as_(self, role: str) -> dict[str, str]:
        """The headers of somebody with this role."""
        return {"Authorization": f"Bearer {self.secrets[role]}"}

    def push(self, model: str = "digits", version: str = "1.0", **fields: Any) -> Any:
        files = fields.pop("files", {"source": ("digits.onnx", b"the graph")})
        role = fields.pop("role", "operator")
        data = {"version": version, "targets": ["onnxruntime-fp32"], **fields}
        return self.client.post(f"/api/v1/models/{model}/versions", data=data, files=files, headers=self.as_(role))

    def lease(self, *targets: str, seconds: int = 60, worker: str = "w") -> Any:
        body = {"worker": worker, "targets": targets or ("*",), "seconds": seconds}
        return self.client.post("/api/v1/jobs/lease", json=body, headers=self.as_("worker"))


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty SQLite database, migrated once; to be copied, since migrating takes a while."""
    path = tmp_path_factory.mktemp("migrated") / "covey.db"
    made = Database(f"sqlite:///{path}")
    made.migrate()
    with made.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    made.close()
    return path


@pytest.fixture
def database(tmp_path: Path, migrated: Path) -> Iterator[Database]:
    shutil.copyfile(migrated, tmp_path / "covey.db")
    made = Database(f"sqlite:///{tmp_path / 'covey.db'}")
    yield made
    made.close()


@pytest.fixture
def tracing() -> Tracing:
    """Where spans go; nowhere, unless a module says otherwise."""
    return OFF


@pytest.fixture
def site(tmp_path: Path, clock: FakeClock, database: Database, tracing: Tracing) -> Iterator[Site]:
    settings = Settings(data=tmp_path, body_max_bytes=64 * 1024, upload_max_bytes=256 * 1024)
    services = Services(
        settings,
        clock,
        database,
        Bus(),
        BlobStore(tmp_path / "blobs"),
        SigningKeys.load_or_create(tmp_path / "keys"),
        workers=Workers(["onnxruntime-*", "openvino-*"]),
        tracing=tracing,
    )
    with database.session() as session:
        secrets: dict[str, str] = {role: tokens.create(session, f"a-{role}", role, clock(), None)[1] for role in ROLES}
    with served(create_app(services)) as url, httpx.Client(base_url=url, timeout=60) as client:
        yield Site(services, clock, client, secrets)


@pytest.fixture(params=["sqlite", "postgresql"])
def any_database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """An empty, migrated database of each kind."""
    sqlite = f"sqlite:///{tmp_path / 'any.db'}"
    url = sqlite if request.param == "sqlite" else new_database(request.getfixturevalue("postgresql"))
    made = Database(url)
    made.migrate()
    yield made
    made.close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiver_at() as made:
        yield made


@pytest.fixture
def desk(site: Site, tmp_path: Path) -> Desk:
    return desk_of(site, Settings(data=tmp_path, webhook_private=True, webhook_timeout_s=10))
