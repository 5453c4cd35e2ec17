"""A migrated database (SQLite, and PostgreSQL where it is installed) with some devices and a build, and a clock that stands still."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import insert

from covey_contract.facts import Facts
from covey_hil.testing.postgresql import new_database
from covey_hil.testing.rows import add_build, add_version
from covey_hil.testing.sample_office import Office
from covey_server.db.engine import Database
from covey_server.db.tables import Device, Model

NOW = 1_800_000_000_000


@pytest.fixture
def now_ms() -> int:
    return NOW


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of an empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'covey.db'}"
    return new_database(request.getfixturevalue("postgresql"))


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    """Devices d0000 … d0009, the model `digits` and `other`, builds 1 and 2 with digests of 1s and 2s."""
    made = Database(url)
    made.migrate()
    facts = Facts(architecture="x86_64")
    with made.session() as session:
        session.execute(
            insert(Device),
            [
                {
                    "id": f"d{number:04}",
                    "profile": "generic",
                    "profile_reason": "",
                    "simulated": number % 2 == 0,
                    "facts": {"architecture": "x86_64", "memory_mb": 1000 * number, "deep": {"er": number}},
                    "facts_digest": facts.digest(),
                    "labels": {"line": "ab"[number % 2]},
                    "enrolled_ms": NOW,
                    "online": True,
                    "agent_version": "",
                    "counter": 0,
                }
                for number in range(10)
            ],
        )
        for number in (1, 2):
            version = add_version(session, f"{number}.0", now_ms=NOW)
            add_build(session, version, str(number) * 64, size=1, manifest=b"{}", envelope=b"{}")
        session.add(Model(name="other", description="", created_ms=NOW))
    yield made
    made.close()


@pytest.fixture
def made(database: Database, tmp_path: Path, now_ms: int) -> Iterator[Callable[..., Office]]:
    offices = []

    def make(**limits: int) -> Office:
        office = Office(database, tmp_path, now_ms, **limits)
        office.desk.start()
        offices.append(office)
        return office

    yield make
    for office in offices:
        office.desk.stop()


@pytest.fixture
def office(made: Callable[..., Office]) -> Office:
    return made()
