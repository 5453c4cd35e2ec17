"""Small pure things: answers to hellos, pacing, counters, access list, groups."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from covey_contract.lifecycle import State
from covey_contract.messages import ModelStatus
from covey_server.db.engine import Database
from covey_server.db.tables import Device
from covey_server.errors import Conflict, Invalid, NotFound
from covey_server.fleet import groups
from covey_server.fleet.ca import KeyPair
from covey_server.fleet.counters import Counters
from covey_server.fleet.mosquitto_config import Layout, acl_text, config_text
from covey_server.fleet.pacing import Gate, TokenBucket
from covey_server.fleet.progress import Answer, answer_hello

HELD = ModelStatus(model="digits", assignment="a", counter=5, state=State.FETCHING)
OTHER = ModelStatus(model="digits", assignment="older", counter=3, state=State.ACTIVE)


@pytest.mark.parametrize(
    ("state", "status", "last_counter", "answer"),
    [
        ("issued", HELD, 5, Answer.NOTHING),
        ("failed", HELD, 5, Answer.NOTHING),
        ("issued", OTHER, 3, Answer.SEND),
        ("issued", None, 0, Answer.SEND),
        ("active", None, 0, Answer.SEND),  # the device has lost everything
        ("issued", OTHER, 6, Answer.RENEW),  # it went past this order without having it
        ("issued", None, 5, Answer.RENEW),
        ("active", None, 9, Answer.RENEW),
        ("refused", OTHER, 9, Answer.NOTHING),
        ("rolled_back", None, 9, Answer.NOTHING),
    ],
)
def test_what_a_hello_calls_for(state: str, status: ModelStatus | None, last_counter: int, answer: Answer) -> None:
    found = answer_hello(assignment="a", counter=5, state=state, status=status, last_counter=last_counter)
    assert found is answer


def test_a_bucket_keeps_the_rate() -> None:
    bucket = TokenBucket(rate=1000.0, burst=500.0)
    now, taken = 0.0, 0
    while now < 10.0:
        now += bucket.pause(now) + 1e-9
        bucket.take(100.0, now)
        taken += 100
    assert 10_000 <= taken <= 10_700


def test_a_gate_lets_a_minutes_worth_through() -> None:
    gate = Gate(10, keys=2)
    assert sum(gate.passes("a", 0.0) for _ in range(50)) in (10, 11)
    assert gate.passes("b", 0.0)
    assert gate.passes("a", 60.0)
    gate.passes("c", 60.0)
    gate.passes("d", 60.0)
    assert len(gate._buckets) == 2


def test_counters() -> None:
    counters = Counters()
    counters.add("covey_delivery_bytes_total", 5, build="a")
    counters.add("covey_delivery_bytes_total", 7, build="b")
    assert counters.value("covey_delivery_bytes_total") == 12
    assert counters.value("covey_delivery_bytes_total", build="b") == 7
    assert [sample.value for sample in counters.snapshot()] == [5, 7]
    with pytest.raises(KeyError):
        counters.add("unknown")


def test_the_generated_configuration_is_closed_by_default() -> None:
    here = Path("/data/broker")
    layout = Layout(here, Path("/data/ca/root.pem"), KeyPair(Path("/c"), Path("/k")))
    lines = config_text(layout, "127.0.0.1", 8883, None).splitlines()
    for line in (
        "require_certificate true",
        "use_identity_as_username true",
        "use_username_as_clientid true",
        "allow_anonymous false",
        "crlfile /data/broker/crl.pem",
        "acl_file /data/broker/acl",
    ):
        assert line in lines
    text = acl_text({"saw-1"})
    assert "user saw-1\ntopic deny covey/#" in text
    assert text.index("user saw-1") < text.index("pattern write covey/%u/up/#")


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ({"labels.line": "a"}, 5),
        ({"labels.line": ["a", "b"]}, 10),
        ({"labels.line": "a", "simulated": True}, 5),
        ({"labels.line": "b", "simulated": True}, 0),
        ({"profile": "generic"}, 10),
        ({"facts.architecture": "aarch64"}, 0),
        ({"facts.memory_mb": [1000, 2000]}, 2),
        ({"facts.deep.er": 3}, 1),
        ({"labels.nothing": "a"}, 0),
    ],
)
def test_selectors(database: Database, now_ms: int, selector: dict[str, Any], expected: int) -> None:
    with database.session() as session:
        groups.put_group(session, "g", description="", devices=None, selector=selector, now_ms=now_ms)
        assert groups.describe(session, "g")["count"] == expected


def test_revoked_devices_are_in_no_group(database: Database, now_ms: int) -> None:
    with database.session() as session:
        groups.put_group(session, "two", description="", devices=["d0001", "d0002"], selector=None, now_ms=now_ms)
        session.get_one(Device, "d0001").revoked_ms = now_ms
        session.flush()
        assert list(session.scalars(groups.members_query(session, "two"))) == ["d0002"]
        assert groups.describe(session, "all")["count"] == 9
        assert groups.groups_of(session, "d0002") == ["all", "two"]
        with pytest.raises(NotFound):
            groups.members_query(session, "nobody")
        with pytest.raises(Conflict):
            groups.delete_group(session, "all")
        with pytest.raises(Invalid):
            groups.put_group(session, "g", description="", devices=["x"], selector=None, now_ms=now_ms)
