"""What devices say, stored: twice is once, late is not newer, and nothing they say can break a batch."""

from __future__ import annotations

import contextlib
import random
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import func, select

from covey_contract import topics
from covey_contract.drift import InputCounts, OutputCounts
from covey_contract.errors import ContractError
from covey_contract.lifecycle import State
from covey_contract.messages import BuildWindow, Captured, Hello, ModelStatus, Report, Resources, Status, Telemetry
from covey_contract.reasons import Reason
from covey_server.db.engine import Database
from covey_server.db.tables import AssignmentRow, Device, Reported, ReportRow, TelemetryRow
from covey_server.fleet.assignments import NewOrder, issue
from covey_server.fleet.directory import device_detail, telemetry_of
from covey_server.fleet.inbox import Incoming, read
from covey_server.fleet.records import Outcome, store
from covey_server.fleet.retention import prune

ONE, TWO = "1" * 64, "2" * 64


class Fleet:
    def __init__(self, database: Database, now_ms: int) -> None:
        self.database = database
        self.now_ms = now_ms

    def issue(self, device: str = "d0001", build: int = 1, **more: Any) -> str:
        with self.database.session() as session:
            return issue(session, [NewOrder(device, "digits", build, build, "rollout", **more)], self.now_ms)[0]

    def hear(self, *messages: Any, device: str = "d0001") -> Outcome:
        with self.database.session() as session:
            return store(session, [Incoming(device, message, self.now_ms) for message in messages], self.now_ms)

    def state(self, assignment: str) -> tuple[str, str]:
        with self.database.reading() as session:
            row = session.get_one(AssignmentRow, assignment)
            return row.state, row.reason

    def slots(self, device: str = "d0001") -> tuple[Any, ...] | None:
        with self.database.reading() as session:
            row = session.get(Reported, (device, "digits"))
            return None if row is None else (row.active, row.previous, row.candidate, row.state)

    def count(self, table: type[Any]) -> int:
        with self.database.reading() as session:
            return session.scalar(select(func.count()).select_from(table)) or 0


@pytest.fixture
def fleet(database: Database, now_ms: int) -> Fleet:
    return Fleet(database, now_ms)


def report(seq: int, assignment: str, state: State, counter: int = 1, build: str = ONE, **more: Any) -> Report:
    return Report(
        seq=seq,
        time_ms=1,
        assignment=assignment,
        counter=counter,
        model="digits",
        version="1.0",
        build=build,
        state=state,
        **more,
    )


def hello(**more: Any) -> Hello:
    return Hello(boot_id="b", agent_version="1", facts_digest="0" * 64, time_ms=1, **more)


LIFE = (State.ASSIGNED, State.FETCHING, State.VERIFYING, State.STAGED, State.WARMING, State.PROBATION, State.ACTIVE)


@pytest.mark.parametrize("seed", range(8))
def test_any_order_and_any_duplicates_end_the_same(fleet: Fleet, seed: int) -> None:
    assignment = fleet.issue()
    told = [report(seq, assignment, state) for seq, state in enumerate(LIFE, 1)] * 2
    shuffled = random.Random(seed)
    shuffled.shuffle(told)
    while told:
        size = shuffled.randint(1, 4)
        fleet.hear(*told[:size])
        told = told[size:]
    assert fleet.state(assignment) == ("active", "none")
    slots = fleet.slots()
    assert slots is not None
    assert slots[0] == ONE
    assert fleet.count(ReportRow) == len(LIFE)


def test_all_reports_are_acknowledged_duplicates_too(fleet: Fleet) -> None:
    one = report(1, fleet.issue(), State.FETCHING)
    assert fleet.hear(one, one).acks == {"d0001": [1]}
    again = fleet.hear(one)
    assert (again.acks, again.duplicates) == ({"d0001": [1]}, 1)


def test_an_older_assignment_does_not_speak_for_the_slots(fleet: Fleet) -> None:
    old = fleet.issue()
    new = fleet.issue(build=2)
    fleet.hear(report(5, new, State.ACTIVE, 2, TWO, previous=ONE), report(6, old, State.FAILED, 1))
    assert fleet.slots() == (TWO, ONE, None, "active")
    assert fleet.state(old) == ("superseded", "superseded")


def test_rollback_on_the_device(fleet: Fleet) -> None:
    fleet.hear(report(1, fleet.issue(), State.ACTIVE))
    second = fleet.issue(build=2)
    fleet.hear(
        report(2, second, State.PROBATION, 2, TWO, previous=ONE),
        report(3, second, State.ROLLED_BACK, 2, TWO, previous=ONE, reason=Reason.TOO_SLOW),
    )
    assert fleet.slots() == (ONE, None, None, "rolled_back")
    assert fleet.state(second) == ("rolled_back", "too_slow")


def test_a_replayed_order_does_no_harm(fleet: Fleet) -> None:
    assignment = fleet.issue()
    fleet.hear(report(1, assignment, State.ACTIVE))
    fleet.hear(report(2, assignment, State.REFUSED, reason=Reason.OLD_COUNTER))
    assert fleet.state(assignment) == ("active", "none")
    assert fleet.slots() == (ONE, None, None, "active")


def test_refused_for_its_age_alone_stays_to_be_issued_anew(fleet: Fleet) -> None:
    late = fleet.issue()
    fleet.hear(report(1, late, State.REFUSED, reason=Reason.OLD_COUNTER))
    assert fleet.state(late) == ("issued", "old_counter")
    expired = fleet.issue("d0002", ttl_ms=0)
    fleet.hear(report(1, expired, State.REFUSED, reason=Reason.EXPIRED), device="d0002")
    assert fleet.state(expired) == ("issued", "expired")
    fast_clock = fleet.issue("d0003")
    fleet.hear(report(1, fast_clock, State.REFUSED, reason=Reason.EXPIRED), device="d0003")
    assert fleet.state(fast_clock) == ("refused", "expired")


def test_another_devices_assignment_is_none_of_its_business(fleet: Fleet) -> None:
    assignment = fleet.issue("d0002")
    outcome = fleet.hear(report(1, assignment, State.FAILED))
    assert (outcome.foreign, outcome.acks) == (1, {"d0001": [1]})
    assert fleet.state(assignment) == ("issued", "none")
    assert fleet.count(ReportRow) == 0


def test_hello_replaces_what_was_known(fleet: Fleet, database: Database) -> None:
    assignment = fleet.issue()
    status = ModelStatus(model="digits", active=ONE, assignment=assignment, counter=1, state=State.ACTIVE)
    outcome = fleet.hear(hello(models=(status,), last_counter=7))
    assert outcome.facts_wanted == {"d0001"}
    assert fleet.state(assignment)[0] == "active"
    assert fleet.slots() == (ONE, None, None, "active")
    fleet.hear(hello())
    assert fleet.slots() is None
    with database.reading() as session:
        device = session.get_one(Device, "d0001")
        assert (device.counter, device.online, device.boot_id) == (7, True, "b")


def test_a_hello_that_a_broker_delivers_once_more_is_not_believed(fleet: Fleet) -> None:
    assignment = fleet.issue()
    status = ModelStatus(model="digits", assignment=assignment, counter=1, state=State.ASSIGNED)
    early = hello(models=(status,), last_seq=10)
    fleet.hear(early)
    assert fleet.slots() == (None, None, None, "assigned")
    fleet.hear(report(11, assignment, State.ACTIVE))
    held = (ONE, None, None, "active")
    assert fleet.slots() == held
    fleet.hear(early)
    fleet.hear(hello(last_seq=10))
    assert fleet.slots() == held
    fleet.hear(hello(last_seq=11))
    assert fleet.slots() is None


def test_a_will_of_an_earlier_start_is_ignored(fleet: Fleet, database: Database) -> None:
    def online() -> bool:
        with database.reading() as session:
            return session.get_one(Device, "d0001").online

    fleet.hear(hello())
    fleet.hear(Status(boot_id="earlier", online=False))
    assert online()
    fleet.hear(Status(boot_id="b", online=False))
    assert not online()


def test_unknown_and_revoked_devices_are_ignored(fleet: Fleet, database: Database) -> None:
    with database.session() as session:
        session.get_one(Device, "d0002").revoked_ms = 1
    assert fleet.hear(hello(), device="nobody").ignored == 1
    assert fleet.hear(hello(), device="d0002").ignored == 1


def test_numbers_and_texts_out_of_range_are_cut(fleet: Fleet, database: Database) -> None:
    huge = 1 << 300
    window = BuildWindow(model="digits", version="1.0", build=ONE, ok=huge, fallbacks=-5, errors={"a\0b": huge})
    record = Telemetry(seq=1, boot_id="b", start_ms=0, end_ms=1, windows=(window, window), resources=Resources())
    outcome = fleet.hear(
        record,
        record,
        hello(last_counter=huge),
        report(2, "x" * 256, State.FETCHING, huge, bytes_fetched=huge, progress=1e300, detail="\0"),
    )
    assert outcome.acks == {"d0001": [2, 1]}
    assert fleet.count(TelemetryRow) == 2
    with database.reading() as session:
        row = session.get_one(TelemetryRow, ("d0001", 1, 0))
        assert (row.ok, row.fallbacks, row.failed) == (1 << 53, 0, 1 << 53)


def test_batches_and_what_is_captured_are_shown(fleet: Fleet, database: Database) -> None:
    window = BuildWindow(model="digits", version="1.0", build=ONE, ok=9, batches={1: 5, 4: 1})
    plain = BuildWindow(model="digits", version="1.0", build=TWO, ok=1)
    captured = Captured(share=0.01, limit_mb=200.0, samples=12, held_mb=1.5)

    def record(seq: int, capture: Captured | None) -> Telemetry:
        used = Resources(capture=capture)
        return Telemetry(seq=seq, boot_id="b", start_ms=0, end_ms=seq, windows=(window, plain), resources=used)

    fleet.hear(record(1, captured))
    with database.reading() as session:
        told = telemetry_of(session, "d0001", 0)
        shown = device_detail(session, "d0001").capture
    assert {one.build: one.batches for one in told} == {ONE: {1: 5, 4: 1}, TWO: {}}
    assert shown is not None
    assert shown.model_dump() == {
        "share": 0.01,
        "samples": 12,
        "held_mb": 1.5,
        "limit_mb": 200.0,
        "dropped": 0,
        "may_leave": False,
    }
    fleet.hear(record(2, None))  # turned off
    with database.reading() as session:
        assert device_detail(session, "d0001").capture is None
        assert device_detail(session, "d0002").capture is None


def test_older_resources_do_not_replace_newer_ones(fleet: Fleet, database: Database) -> None:
    def record(seq: int, percent: float) -> Telemetry:
        return Telemetry(seq=seq, boot_id="b", start_ms=0, end_ms=seq, resources=Resources(cpu_percent=percent))

    fleet.hear(record(5, 50.0))
    fleet.hear(record(4, 40.0))
    with database.reading() as session:
        resources = session.get_one(Device, "d0001").resources
    assert resources == {"cpu_percent": 50.0, "at_ms": 5, "seq": 5}


KINDS = st.sampled_from(list(topics.Up))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(KINDS, st.binary(max_size=300))
def test_any_bytes_give_a_message_or_a_contract_error(what: topics.Up, payload: bytes) -> None:
    _read(f"covey/press-7/up/{what}", payload)


@given(KINDS, JSON)
def test_any_json_gives_a_message_or_a_contract_error(what: topics.Up, value: Any) -> None:
    _read(f"covey/press-7/up/{what}", msgspec.json.encode(value) if _encodes(value) else b"")


@given(st.text(max_size=80))
def test_any_topic_gives_a_message_or_a_contract_error(topic: str) -> None:
    _read(topic, b"{}")


def _encodes(value: Any) -> bool:
    try:
        msgspec.json.encode(value)
    except (UnicodeEncodeError, OverflowError, ValueError):
        return False
    return True


def _read(topic: str, payload: bytes) -> None:
    with contextlib.suppress(ContractError):
        assert isinstance(read(topic, payload, 0), Incoming)


def test_what_is_too_old_is_forgotten(fleet: Fleet, database: Database, now_ms: int) -> None:
    window = BuildWindow(model="digits", version="1.0", build=ONE)
    record = Telemetry(seq=1, boot_id="b", start_ms=0, end_ms=1, windows=(window, window))
    fleet.hear(record, report(2, fleet.issue(), State.ACTIVE))
    assert prune(database, telemetry_before_ms=now_ms, reports_before_ms=now_ms) == 0
    assert prune(database, telemetry_before_ms=now_ms + 1, reports_before_ms=now_ms) == 2
    assert (fleet.count(TelemetryRow), fleet.count(ReportRow)) == (0, 1)
    assert prune(database, telemetry_before_ms=0, reports_before_ms=now_ms + 1) == 1


def test_what_inputs_and_outputs_look_like_is_kept_by_window(fleet: Fleet) -> None:
    window = BuildWindow(
        model="digits",
        version="1.0",
        build=ONE,
        outputs={"logits": OutputCounts(count=3, classes={7: 2, 1: 1})},
        inputs={"image": InputCounts(count=3, constant=1)},
    )
    fleet.hear(Telemetry(seq=1, boot_id="b", start_ms=0, end_ms=1, windows=(window,)))
    with fleet.database.reading() as session:
        row = session.get_one(TelemetryRow, ("d0001", 1, 0))
        assert msgspec.convert(row.outputs["logits"], OutputCounts, strict=False) == window.outputs["logits"]
        assert row.inputs == {"image": {"count": 3, "constant": 1}}
