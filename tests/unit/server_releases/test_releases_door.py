"""The repository over HTTP: read-only, cached, without a login; how its keys stand: for people who are logged in."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import pytest
from fastapi import FastAPI

from covey_client.commands import keys as keys_command
from covey_server.app import build_services
from covey_server.routes import application
from covey_server.services import Services
from covey_server.settings import Settings
from tests.unit.server_releases.conftest import release_of


@dataclass
class Http:
    """The application, asked without a socket."""

    services: Services
    app: FastAPI

    def ask(self, method: str, url: str, headers: dict[str, str] | None = None) -> httpx.Response:
        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
                return await client.request(method, url, headers=headers)

        return asyncio.run(send())

    def get(self, url: str, headers: dict[str, str] | None = None) -> httpx.Response:
        return self.ask("GET", url, headers)


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Http]:
    services = build_services(Settings(data=tmp_path_factory.mktemp("data")))
    app = application()
    app.state.services = services
    assert services.releases is not None
    services.releases.release([release_of()])
    yield Http(services, app)
    services.database.close()


def test_metadata_and_targets_are_served_with_how_long_they_last(http: Http) -> None:
    timestamp = http.get("/tuf/metadata/timestamp.json")
    assert timestamp.status_code == 200
    assert "max-age=0" in timestamp.headers["cache-control"]
    again = http.get("/tuf/metadata/timestamp.json", headers={"If-None-Match": timestamp.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    root = http.get("/tuf/metadata/1.root.json")
    assert "immutable" in root.headers["cache-control"]
    role = http.get("/tuf/metadata/1.models~digits.json").json()["signed"]
    (path, target), *_ = role["targets"].items()
    folder, _, name = path.rpartition("/")
    file = http.get(f"/tuf/targets/{folder}/{target['hashes']['sha256']}.{name}")
    assert file.content == release_of().manifest
    for missing in (
        "metadata/2.root.json",
        "metadata/..%2f..%2fkeys%2fkeyring.json",
        "targets/models/x",
        "metadata/keyring.json",
    ):
        answer = http.get(f"/tuf/{missing}")
        assert answer.status_code == 404, missing
    assert http.ask("POST", "/tuf/metadata/timestamp.json").status_code == 405


def test_the_state_of_the_keys_needs_a_login(http: Http) -> None:
    assert http.get("/api/v1/keys").status_code == 401
    token = (http.services.settings.data / "admin-token").read_text().strip()
    told = http.get("/api/v1/keys", headers={"Authorization": f"Bearer {token}"}).json()
    roles = {role["role"]: role for role in told["roles"]}
    assert set(roles) == {"root", "targets", "models~digits", "snapshot", "timestamp"}
    assert roles["root"]["threshold"] == 2
    assert all(key["development"] and key["at_hand"] for role in told["roles"] for key in role["keys"])
    assert [key["name"] for key in told["director"]] == ["director"]
    assert "private" not in json.dumps(told)
    assert keys_command._names(roles["snapshot"]["keys"]) == "snapshot (DEVELOPMENT)"
