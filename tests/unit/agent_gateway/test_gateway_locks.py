"""The device's lock as applications see it: bounded, renewed, ended by itself, kept over a restart of the gateway."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from covey_agent.gateway.activity import Activity
from covey_agent.gateway.errors import BadRequest
from covey_agent.gateway.http_messages import HttpRequest
from covey_agent.gateway.lock_door import LockDoor
from covey_agent.gateway.locks import MAX_LOCKS, Locks

HOUR = 3_600_000


class Clock:
    def __init__(self) -> None:
        self.ms = 1_000_000

    def __call__(self) -> int:
        return self.ms


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def locks(tmp_path: Path, clock: Clock) -> Locks:
    return Locks(tmp_path / "locks.json", clock)


def ask(locks: Locks, method: str, body: Any = None) -> tuple[int, Any]:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = asyncio.run(LockDoor(locks).handle(HttpRequest(method=method, body=content)))
    return answer.status, json.loads(b"".join(answer.body))


def owners(locks: Locks) -> list[str]:
    return [lock.owner for lock in locks.held()]


def test_lock_renew_and_let_go(locks: Locks, clock: Clock) -> None:
    assert ask(locks, "POST", {"owner": "vision", "ttl_s": 60}) == (
        200,
        {"owner": "vision", "expires_ms": clock.ms + 60_000, "durable": True},
    )
    clock.ms += 50_000
    ask(locks, "POST", {"owner": "vision", "ttl_s": 60})
    clock.ms += 50_000
    assert ask(locks, "GET")[1] == {"locks": [{"owner": "vision", "expires_ms": clock.ms + 10_000}]}
    assert ask(locks, "DELETE", {"owner": "vision"}) == (200, {"released": True, "durable": True})
    assert ask(locks, "DELETE", {"owner": "vision"}) == (200, {"released": False, "durable": True})
    assert owners(locks) == []


def test_a_lock_ends_by_itself(locks: Locks, clock: Clock) -> None:
    ask(locks, "POST", {"owner": "vision", "ttl_s": 60})
    ask(locks, "POST", {"owner": "press"})
    clock.ms += 60_000
    assert owners(locks) == ["press"]


def test_each_owner_has_a_lock_of_its_own(locks: Locks) -> None:
    for owner in ("vision", "press"):
        ask(locks, "POST", {"owner": owner})
    ask(locks, "DELETE", {"owner": "vision"})
    assert owners(locks) == ["press"]


def test_locks_outlive_the_gateway(tmp_path: Path, clock: Clock) -> None:
    before = Locks(tmp_path / "locks.json", clock)
    ask(before, "POST", {"owner": "vision", "ttl_s": 60})
    ask(before, "POST", {"owner": "short", "ttl_s": 1})
    clock.ms += 30_000
    after = Locks(tmp_path / "locks.json", clock)
    after.load()
    assert owners(after) == ["vision"]


def test_a_clock_that_is_set_back_does_not_lock_for_ever(tmp_path: Path, clock: Clock) -> None:
    before = Locks(tmp_path / "locks.json", clock)
    clock.ms += 10_000 * HOUR
    ask(before, "POST", {"owner": "vision", "ttl_s": 60})
    clock.ms -= 10_000 * HOUR
    after = Locks(tmp_path / "locks.json", clock)
    after.load()
    assert owners(after) == ["vision"]
    clock.ms += 24 * HOUR
    assert owners(after) == []


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"\xff", b'[{"owner":1}]', b"[" * 50_000])
def test_a_damaged_file_counts_as_none(tmp_path: Path, clock: Clock, content: bytes) -> None:
    (tmp_path / "locks.json").write_bytes(content)
    locks = Locks(tmp_path / "locks.json", clock)
    locks.load()
    assert owners(locks) == []
    assert ask(locks, "POST", {"owner": "vision"})[0] == 200


def test_a_disk_that_takes_nothing_is_said(tmp_path: Path, clock: Clock) -> None:
    locks = Locks(tmp_path / "not-there" / "locks.json", clock)
    status, answer = ask(locks, "POST", {"owner": "vision"})
    assert (status, answer["durable"]) == (200, False)
    assert owners(locks) == ["vision"]


def test_the_number_of_locks_is_bounded(locks: Locks) -> None:
    for number in range(MAX_LOCKS):
        assert ask(locks, "POST", {"owner": f"app-{number}"})[0] == 200
    status, answer = ask(locks, "POST", {"owner": "one-more"})
    assert (status, answer["error"]) == (429, f"{MAX_LOCKS} owners hold a lock already")
    assert ask(locks, "POST", {"owner": "app-0"})[0] == 200  # renewing is none more


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"owner": ""},
        {"owner": "a b"},
        {"owner": "x" * 65},
        {"owner": "a", "ttl_s": 0},
        {"owner": "a", "ttl_s": -1},
        {"owner": "a", "ttl_s": 86_401},
        {"owner": "a", "ttl": 5},
        [],
        b"",
        b"\xff",
        b" " * 5000,
        b"[" * 4000,
    ],
)
def test_requests_that_make_no_sense_are_refused(locks: Locks, body: Any) -> None:
    with pytest.raises(BadRequest):
        ask(locks, "POST", body)
    assert owners(locks) == []


def test_another_method_is_told_so(locks: Locks) -> None:
    assert ask(locks, "PUT")[0] == 405


def test_idle_is_the_time_since_the_last_answer() -> None:
    now = [100.0]
    activity = Activity(lambda: now[0])
    now[0] = 107.0
    assert activity.idle_s == 7.0
    with activity:
        now[0] = 200.0
        with activity:
            assert activity.idle_s == 0.0
        assert activity.idle_s == 0.0
    assert activity.idle_s == 0.0
    now[0] = 203.0
    assert activity.idle_s == 3.0
