"""What a campaign file can say, on a real database: each item by devices that would do otherwise without it."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest
from sqlalchemy import select, update

from covey_contract.conditions import Conditions
from covey_contract.messages import Hello, ModelStatus
from covey_contract.reasons import Reason
from covey_server.audit import Actor
from covey_server.campaigns import commands, device_views
from covey_server.core.engine import Action
from covey_server.core.spec import parse_moment
from covey_server.db.tables import AssignmentRow, AuditEntry, Build, Device, Version
from covey_server.errors import Conflict, Forbidden, Invalid, NotFound
from covey_server.fleet.assignments import NewOrder, issue
from covey_server.fleet.inbox import Incoming
from covey_server.fleet.records import store
from tests.integration.campaigns.conftest import ANN, BOB, ODD_DIGEST

if TYPE_CHECKING:
    from tests.integration.campaigns.conftest import Rig

ROOT = Path(__file__).resolve().parents[3]
FILE = """
name: c
model: digits
version: "1.1"
stages:
  - {name: all, percent: 100}
"""


def text(*lines: str, name: str = "c", stages: str = "  - {name: all, percent: 100}", version: str = "1.1") -> str:
    head = FILE.replace("name: c\n", f"name: {name}\n").replace('"1.1"', f'"{version}"')
    return "\n".join([head.replace("  - {name: all, percent: 100}", stages), *lines, ""])


def test_the_readmes_campaign_file_runs_as_written(rig: Rig) -> None:
    lines = (
        (ROOT / "README.md")
        .read_text()
        .split("$ cat > first.yaml\n")[1]
        .split("    $ covey campaign start first.yaml")[0]
    )
    rig.add_device("lab-1", "canary").idle = True
    name = rig.make(textwrap.dedent(lines))
    view = rig.run_until(name, "done", seconds=30)
    assert rig.running()["lab-1"] == "1.0"
    assert view.waiting_for == "done: 7 of 7 devices active"


def in_flight(rig: Rig, name: str = "c") -> list[str]:
    return [device for device, part in rig.parts(name).items() if part.state == "assigned"]


def orders_of(rig: Rig, device: str) -> list[AssignmentRow]:
    with rig.database.reading() as session:
        found = session.scalars(
            select(AssignmentRow).where(AssignmentRow.device == device).order_by(AssignmentRow.counter)
        )
        return list(found.all())


# --- pace ---------------------------------------------------------------------------------------------------------


def test_pace_in_flight(rig: Rig) -> None:
    for device in rig.devices.values():
        device.stuck = True
    name = rig.make(text("pace: {in_flight: 2}"))
    rig.run(10)
    flying = in_flight(rig)
    assert len(flying) == 2
    assert "4 to be assigned (2 in flight, at most 2)" in rig.show(name).waiting_for
    rig.devices[flying[0]].stuck = False
    rig.run(4)
    assert len(in_flight(rig)) == 2
    assert flying[0] not in in_flight(rig)
    for device in rig.devices.values():
        device.stuck = False
    assert rig.run_until(name, "done").progress["served"] == 6


def test_pace_per_minute_and_growth(rig: Rig) -> None:
    name = rig.make(text("pace: {per_minute: 6, growth: {per: 2, factor: 10, at_most: 600}}"))
    rig.run_until(name, "done", seconds=25)
    times = [at_ms for at_ms, _, _, _ in rig.sent]
    pauses = [later - earlier for earlier, later in zip(times, times[1:], strict=False)]
    assert pauses[0] == 10_000  # one at once, then one each ten seconds
    assert max(pauses[2:]) <= 2000  # after two successes ten times as fast


def test_pace_bandwidth(rig: Rig) -> None:
    rig.make(text("pace: {bandwidth: 100B/s}"))  # builds are of 1000 bytes
    rig.run(40)
    times = [at_ms for at_ms, _, _, _ in rig.sent]
    assert len(times) == 5
    assert min(later - earlier for earlier, later in zip(times, times[1:], strict=False)) >= 5000


def test_pace_reaches_devices_that_are_off_when_they_come_and_also_after_the_end(rig: Rig) -> None:
    rig.power("press-5", on=False)
    name = rig.make(text("pace: {in_flight: 2}"))
    view = rig.run_until(name, "done")
    assert view.is_open
    assert view.waiting_for == "done: 5 of 6 devices active, 1 to catch up"
    assert orders_of(rig, "press-5")[-1].kind == "manual"  # no order waits for it
    rig.power("press-5", on=True)
    rig.run(6)
    assert rig.running()["press-5"] == "1.1"
    view = rig.show(name)
    assert (view.is_open, view.state, view.waiting_for) == (False, "done", "done: 6 of 6 devices active")


# --- times --------------------------------------------------------------------------------------------------------


def test_maintenance_windows_by_the_devices_own_clocks(rig: Rig) -> None:
    with rig.database.session() as session:
        session.execute(update(Device).where(Device.id == "press-1").values(timezone="Asia/Tokyo"))
        session.execute(update(Device).where(Device.id == "press-2").values(timezone="Europe/Berlin"))
    rig.now_ms = parse_moment("2027-03-01T13:30:00Z").ms  # 22:30 in Tokyo, 14:30 in Berlin
    rig.run()
    windows = 'maintenance: {windows: [{from: "22:00", to: "23:00"}]}'
    name = rig.make(text("min_reached: 1", windows))
    rig.run(5)
    assert {device for _, device, _, _ in rig.sent} == {"press-1"}
    assert "5 outside their maintenance window, the next opens 2027-03-01 21:00 UTC" in rig.show(name).waiting_for
    rig.now_ms = parse_moment("2027-03-01T21:10:00Z").ms
    rig.run(5)
    assert {device for _, device, _, _ in rig.sent} == {"press-1", "press-2"}
    rig.now_ms = parse_moment("2027-03-01T22:10:00Z").ms
    rig.run_until(name, "done")
    conditions = orders_of(rig, "press-2")[-1].conditions
    assert msgspec.convert(conditions, Conditions).windows[0].start == "22:00"  # the device looks, too


def test_maintenance_fetch_ahead_sends_the_order_with_its_window(rig: Rig) -> None:
    rig.now_ms = parse_moment("2027-03-01T13:30:00Z").ms
    rig.run()
    for device in rig.devices.values():
        device.waits_for = Reason.WAITING_FOR_WINDOW
    name = rig.make(text('maintenance: {windows: [{from: "22:00", to: "23:00"}], fetch: ahead}'))
    rig.run(3)
    assert len(rig.sent) == 6
    view = rig.show(name)
    assert (view.progress["waiting"], view.progress["in_progress"]) == (6, 0)
    assert "0 of at least 3 reached (6 waiting)" in view.waiting_for


def test_maintenance_in_a_named_zone(rig: Rig) -> None:
    rig.now_ms = parse_moment("2027-03-01T13:30:00Z").ms
    rig.run()
    name = rig.make(text('maintenance: {zone: Asia/Tokyo, windows: [{from: "22:00", to: "23:00"}]}'))
    rig.run_until(name, "done")
    assert orders_of(rig, "press-1")[-1].conditions is None


def test_a_time_zone_that_nobody_knows_is_said_in_the_plan(rig: Rig) -> None:
    with rig.database.session() as session:
        session.execute(update(Device).where(Device.id == "press-1").values(timezone="CEST"))
    rig.make(text('maintenance: {windows: [{from: "22:00", to: "23:00"}]}'), start=False)
    warnings = rig.events("c")[0].detail["warnings"]
    assert any("1 devices are in the time zone 'CEST'" in words for words in warnings)


def test_schedule_start_and_end(rig: Rig) -> None:
    from_, until = (f"2027-01-15T08:{minute:02}:00Z" for minute in (2, 4))
    stages = "  - {name: first, count: 1, soak: 1h}\n  - {name: rest, percent: 100}"
    name = rig.make(text(f"schedule: {{start: {from_}, end: {until}, at_end: rollback}}", stages=stages))
    assert rig.now_ms < parse_moment(from_).ms
    rig.run(5)
    assert rig.show(name).state == "queued"
    assert rig.show(name).waiting_for == "queued: starts 2027-01-15 08:02 UTC"
    rig.now_ms = parse_moment(from_).ms
    rig.run(3)
    assert rig.show(name).state == "running"
    assert len(rig.sent) == 1
    rig.now_ms = parse_moment(until).ms
    rig.run_until(name, "rolled_back")
    assert set(rig.running().values()) == {"1.0"}


def test_a_stage_starts_not_before(rig: Rig) -> None:
    stages = "  - {name: first, count: 1}\n  - {name: rest, percent: 100, not_before: 2027-01-15T09:00:00Z}"
    name = rig.make(text(stages=stages))
    rig.run(20)
    view = rig.show(name)
    assert (view.stage_name, view.waiting_for) == ("rest", "rest: starts 2027-01-15 09:00 UTC")
    assert [stage.state for stage in view.stages] == ["passed", "waiting"]
    assert len(rig.sent) == 1
    rig.now_ms = parse_moment("2027-01-15T09:00:00Z").ms
    rig.run_until(name, "done")


# --- devices ------------------------------------------------------------------------------------------------------


def test_conditions_travel_with_the_order_and_not_with_that_to_go_back(rig: Rig) -> None:
    later = "2027-01-15T09:00:00Z"
    name = rig.make(text(f"conditions: {{not_before: {later}, mains_power: true, idle: 30s, unlocked: true}}"))
    rig.run_until(name, "done")
    sent = orders_of(rig, "press-1")[-1].conditions
    assert msgspec.convert(sent, Conditions) == Conditions(
        not_before_ms=parse_moment(later).ms, mains_power=True, idle_s=30.0, unlocked=True
    )
    rig.act(name, Action.ROLLBACK)
    rig.run(2)
    assert orders_of(rig, "press-1")[-1].conditions is None


def test_a_device_that_waits_is_neither_in_progress_nor_too_late(rig: Rig) -> None:
    rig.devices["press-1"].waits_for = Reason.WAITING_FOR_IDLE
    name = rig.make(text("timeout: 5s", "min_reached: 1"))
    rig.run(20)
    view = rig.show(name)
    assert "5 of at least 6 reached (1 waiting)" in view.waiting_for
    assert rig.parts(name)["press-1"].progress == "waiting"
    rig.devices["press-1"].waits_for = None
    rig.run_until(name, "done")


def test_retry_and_when(rig: Rig) -> None:
    rig.devices["press-1"].refuses = {"1.1"}
    name = rig.make(text("retry: {times: 2, after: 10s, factor: 2, causes: [failed]}", "min_reached: 1"))
    rig.run(5)
    part = rig.parts(name)["press-1"]
    assert (part.state, part.attempts, rig.show(name).failed) == ("retrying", 1, 0)
    assert rig.show(name).state == "running"  # five of six are active, and none has failed yet
    rig.run(10)
    assert rig.parts(name)["press-1"].attempts == 2
    rig.devices["press-1"].refuses = set()
    view = rig.run_until(name, "done", seconds=30)
    assert rig.parts(name)["press-1"].attempts == 3
    assert view.progress["served"] == 6
    times = [at_ms for at_ms, device, _, _ in rig.sent if device == "press-1"]
    assert times[1] - times[0] >= 10_000
    assert times[2] - times[1] >= 20_000
    rig.act(name, Action.ROLLBACK)
    rig.run_until(name, "rolled_back")
    assert set(rig.running().values()) == {"1.0"}


def test_retry_of_what_is_not_named_is_none(rig: Rig) -> None:
    rig.devices["press-1"].refuses = {"1.1"}
    rig.make(text("retry: {times: 2, after: 1s, causes: [timed_out]}", "gates: {install_failures: {max_rate: 1}}"))
    rig.run(10)
    assert (rig.parts("c")["press-1"].state, rig.parts("c")["press-1"].attempts) == ("failed", 1)


def test_a_failed_device_goes_back_though_it_waits_for_its_next_try(rig: Rig) -> None:
    rig.devices["press-1"].refuses = {"1.1"}
    name = rig.make(text("retry: {times: 2, after: 1h}", "min_reached: 1"))
    rig.run(5)
    assert rig.parts(name)["press-1"].state == "retrying"
    rig.act(name, Action.ROLLBACK)
    rig.run_until(name, "rolled_back")
    assert rig.parts(name)["press-1"].state == "restored_locally"
    rig.run(3)
    assert orders_of(rig, "press-1")[-1].kind == "rollback"


def test_retry_then_a_person(rig: Rig) -> None:
    rig.devices["press-1"].refuses = {"1.1"}
    stages = "  - {name: all, percent: 100, soak: 20s}"
    name = rig.make(text("retry: {then: person}", "gates: {install_failures: {max_rate: 1}}", stages=stages))
    view = rig.run_until(name, "paused")
    assert view.waiting_for == "paused: all: 1 failed once; a person is to look at it"
    rig.devices["press-1"].refuses = set()
    rig.act(name, Action.RETRY)
    rig.act(name, Action.RESUME)
    assert rig.run_until(name, "done").progress["served"] == 6


def test_failed_devices_of_a_done_campaign_are_tried_again_when_told(rig: Rig) -> None:
    rig.devices["press-1"].refuses = {"1.1"}
    name = rig.make(text("gates: {install_failures: {max_rate: 1}}"))
    assert rig.run_until(name, "done").failed == 1
    rig.devices["press-1"].refuses = set()
    rig.act(name, Action.RETRY)
    rig.run(4)
    view = rig.show(name)
    assert (view.state, view.is_open, view.failed, view.active) == ("done", False, 0, 6)


def test_timeout(rig: Rig) -> None:
    rig.devices["press-1"].stuck = True
    name = rig.make(text("timeout: 10s", "gates: {install_failures: {max_rate: 1}}"))
    view = rig.run_until(name, "done", seconds=20)
    assert view.failed == 1
    part = rig.parts(name)["press-1"]
    assert (part.state, part.reason, part.detail) == ("failed", "timed_out", "took too long")
    rig.devices["press-1"].stuck = False  # what was given up may come through after all
    rig.run(3)
    assert rig.parts(name)["press-1"].state == "active"


def test_quarantine(rig: Rig) -> None:
    rig.devices["press-1"].refuses = {"1.1"}
    loose = "gates: {install_failures: {max_rate: 1}}"
    rig.run_until(rig.make(text(loose, name="c0")), "done")
    rig.make(text(loose, "quarantine: {failures: 2}", name="patient"), start=False)
    assert rig.parts("patient")["press-1"].state == "planned"
    back = text(loose, name="back", version="1.0")  # an order that it has no need of is no success
    rig.run_until(rig.make(back), "done")
    rig.run_until(rig.make(text(loose, name="c1")), "done")
    name = rig.make(text(loose, "quarantine: {failures: 2}", name="strict"), start=False)
    part = rig.parts(name)["press-1"]
    assert (part.state, part.stage) == ("skipped", None)
    assert part.detail == "quarantined: it failed in one campaign of the model after the other"
    assert any("1 left out: quarantined" in words for words in rig.events(name)[0].detail["warnings"])
    name = rig.make(text(loose, "quarantine: {failures: 0}", name="trusting"), start=False)
    assert rig.parts(name)["press-1"].state == "planned"
    with rig.database.session() as session:  # a person's order that succeeds lets it in again
        build = session.scalars(select(Build).join(Version).where(Version.name == "1.2")).one()
        issue(session, [NewOrder("press-1", "digits", build.version_id, build.id, "manual")], rig.now_ms)
    rig.run(2)
    name = rig.make(text(loose, "quarantine: {failures: 1}", name="again"), start=False)
    assert rig.parts(name)["press-1"].state == "planned"


def test_served_is_more_than_active(rig: Rig) -> None:
    name = rig.make(text("served: {requests: 200, within: 10s}", "min_reached: 1"))
    rig.run(2)
    view = rig.show(name)
    assert (view.active, view.progress["served"], view.progress["unserved"]) == (6, 0, 6)
    assert "6 to answer a request" in view.waiting_for
    assert rig.parts(name)["press-1"].progress == "unserved"
    rig.run_until(name, "done")
    assert rig.show(name).progress["served"] == 6


def test_served_by_devices_that_nobody_asks(rig: Rig) -> None:
    rig.run(1)
    for device in rig.devices.values():
        device.idle = True
    name = rig.make(text("served: {within: 10s}", "min_reached: 1"))
    rig.run(30)
    view = rig.show(name)
    assert view.state == "running"
    assert "0 of at least 6 reached (6 have answered no request)" in view.waiting_for
    rig.devices["press-1"].idle = False
    rig.run(2)
    assert rig.parts(name)["press-1"].progress == "served"


def test_served_asks_nothing_of_devices_that_were_idle_before_unless_told(rig: Rig) -> None:
    rig.add_device("fresh").idle = True
    only = "target: {devices: [fresh]}"
    rig.run_until(rig.make(text(only)), "done")
    assert rig.parts("c")["fresh"].progress == "served"
    name = rig.make(text(only, "served: {of: all}", "min_reached: 1", name="all", version="1.2"))
    rig.run(20)
    assert rig.show(name).state == "running"


def test_not_reached_and_unknown_are_different(rig: Rig) -> None:
    rig.power("press-1", on=False)
    rig.devices["press-2"].stuck = True
    name = rig.make(text("min_reached: 1"))
    rig.run(3)
    rig.power("press-2", on=False)
    rig.run(12)
    view = rig.show(name)
    assert (view.progress["not_reached"], view.progress["unknown"], view.progress["in_progress"]) == (1, 1, 0)
    assert "4 of at least 6 reached (1 off, 1 fell silent)" in view.waiting_for
    assert (rig.parts(name)["press-1"].progress, rig.parts(name)["press-2"].progress) == ("not_reached", "unknown")


# --- breaches and going back --------------------------------------------------------------------------------------

TWO = "  - {name: first, count: 2, soak: 5s}\n  - {name: rest, percent: 100, soak: 1h}"


def test_a_breach_may_take_back_its_stage_alone(rig: Rig) -> None:
    name = rig.make(
        text("on_breach: {action: rollback, scope: stage}", "gates: {install_failures: {max_count: 0}}", stages=TWO)
    )
    rig.run(12)
    view = rig.show(name)
    assert view.stage_name == "rest"
    last = next(device for device, part in rig.parts(name).items() if part.stage_name == "rest")
    rig.crash(last)
    view = rig.run_until(name, "halted")
    assert view.going_back == ["rest"]
    assert "roll back the rest or abort" in view.waiting_for
    versions = [rig.running()[device] for device, part in rig.parts(name).items() if part.stage_name == "first"]
    assert versions == ["1.1", "1.1"]
    rig.act(name, Action.ROLLBACK)
    rig.run_until(name, "rolled_back")
    assert set(rig.running().values()) == {"1.0"}


def test_one_stage_can_be_rolled_back_by_its_name(rig: Rig) -> None:
    name = rig.make(text(stages=TWO))
    rig.run(12)
    with pytest.raises(Invalid, match="there is no stage moon"):
        rig.act(name, Action.ROLLBACK, stage="moon")
    with pytest.raises(Invalid, match="pause is said of a whole campaign"):
        rig.act(name, Action.PAUSE, stage="first")
    rig.act(name, Action.ROLLBACK, stage="first")
    rig.act(name, Action.ROLLBACK, stage="first")
    rig.run_until(name, "halted")
    by_stage = {part.stage_name: rig.running()[device] for device, part in rig.parts(name).items()}
    assert by_stage == {"first": "1.0", "rest": "1.1"}
    rig.act(name, Action.ABORT)
    assert rig.show(name).state == "aborted"


def test_gates_of_a_stage_take_the_place_of_the_campaigns(rig: Rig) -> None:
    stages = "  - {name: first, count: 2, gates: {install_failures: {max_rate: 1}}}\n  - {name: rest, percent: 100}"
    for device in rig.devices.values():
        device.refuses = {"1.1"}
    name = rig.make(text("gates: {install_failures: {max_count: 0}}", "on_breach: halt", stages=stages))
    view = rig.run_until(name, "halted")
    assert view.verdict is not None
    assert view.verdict["stage"] == "rest"


def test_min_reached_of_a_stage(rig: Rig) -> None:
    for number in (1, 2, 3):
        rig.power(f"press-{number}", on=False)
    name = rig.make(text("min_reached: 1", stages="  - {name: all, percent: 100, min_reached: 0.5}"))
    rig.run_until(name, "done")


# --- people -------------------------------------------------------------------------------------------------------


def test_approval(rig: Rig) -> None:
    stages = "  - {name: first, count: 1}\n  - {name: rest, percent: 100, approval: true}"
    name = rig.make(text("approval: true", stages=stages))
    rig.run(5)
    view = rig.show(name)
    assert (view.state, view.approval, view.waiting_for) == (
        "queued",
        "waiting",
        "queued: waits for approval by somebody other than ann",
    )
    assert rig.sent == []
    with pytest.raises(Forbidden, match="this needs the role approver; ann has the role operator"):
        rig.act(name, Action.APPROVE)
    with pytest.raises(Forbidden, match="somebody else has to approve it"):
        rig.act(name, Action.APPROVE, Actor("ann", "admin", "test"))
    with pytest.raises(Forbidden, match="needs the role operator"):
        rig.act(name, Action.PAUSE, BOB)
    rig.act(name, Action.APPROVE, BOB)
    rig.act(name, Action.APPROVE, BOB)
    rig.run(15)
    view = rig.show(name)
    assert (view.approval, view.state, view.stage_name) == ("bob", "running", "rest")
    assert view.stages[1].approval == "waiting"
    assert len(rig.sent) == 1
    rig.act(name, Action.APPROVE, BOB)
    rig.run_until(name, "done")
    with rig.database.reading() as session:
        said = session.execute(select(AuditEntry.who, AuditEntry.action).order_by(AuditEntry.id)).all()
    assert [tuple(row) for row in said] == [
        ("ann", "campaign.create"),
        ("ann", "campaign.start"),
        ("bob", "campaign.approve"),
        ("bob", "campaign.approve"),
    ]


def test_a_stage_can_be_approved_before_its_time(rig: Rig) -> None:
    stages = "  - {name: first, count: 1}\n  - {name: rest, percent: 100, approval: true}"
    name = rig.make(text(stages=stages))
    rig.act(name, Action.APPROVE, BOB, stage="rest")
    rig.run_until(name, "done")


def test_a_queued_campaign_starts_by_itself_and_the_most_urgent_first(rig: Rig) -> None:
    first = rig.make(text(name="first", stages="  - {name: all, percent: 100, soak: 10s}"))
    slow = rig.make(text("conflict: queue", name="slow", version="1.2"))
    urgent = rig.make(text("conflict: queue", "priority: 7", name="urgent", version="1.0"))
    with pytest.raises(Conflict, match="first is under way"):
        rig.make(text(name="proud", version="1.2"))
    rig.run(3)
    assert rig.show(slow).waiting_for == "queued: waits for first to end"
    rig.run_until(first, "done")
    rig.run(1)
    assert (rig.show(urgent).state, rig.show(slow).state) == ("running", "queued")
    rig.run_until(slow, "done")
    assert set(rig.running().values()) == {"1.2"}
    order = [version for _, device, version, _ in rig.sent if device == "press-1"]
    assert order == ["1.1", "1.0", "1.2"]


def test_a_clone_has_the_same_file_under_another_name(rig: Rig) -> None:
    source = text("# nightly", name="c", stages="  - {name: all, percent: 100}  # everybody")
    rig.make(source)
    with rig.database.session() as session:
        commands.clone(session, "c", "d", "1.2", 9, ANN, rig.now_ms)
        with pytest.raises(NotFound, match="there is no campaign moon"):
            commands.clone(session, "moon", "e", None, 9, ANN, rig.now_ms)
        with pytest.raises(Conflict, match="there is a campaign named d already"):
            commands.clone(session, "c", "d", None, 9, ANN, rig.now_ms)
    view = rig.show("d")
    assert (view.version, view.state, view.seed) == ("1.2", "planned", 9)
    assert view.source == source.replace("name: c\n", 'name: "d"\n').replace('"1.1"', '"1.2"')


# --- who ----------------------------------------------------------------------------------------------------------


def test_selectors_choose_targets_exclusions_and_stages(rig: Rig) -> None:
    for number, (line, hall) in enumerate([("a", "north"), ("a", "south"), ("b", "north"), ("b", "south")]):
        rig.add_device(f"new-{number}", labels={"line": line, "hall": hall})
    stages = "  - {name: north, select: {labels.hall: north}}\n  - {name: rest, percent: 100}"
    rig.make(
        text(
            "target: {select: {labels.line: [a, b]}}",
            "exclude: {select: {labels.line: b, labels.hall: south}}",
            stages=stages,
        )
    )
    parts = rig.parts("c")
    assert {device: part.stage_name for device, part in parts.items()} == {
        "new-0": "north",
        "new-1": "rest",
        "new-2": "north",
    }


def test_at_most(rig: Rig) -> None:
    rig.make(text("target: {groups: [all], at_most: 2}"))
    parts = rig.parts("c")
    assert sum(part.state == "planned" for part in parts.values()) == 2
    assert {part.detail for part in parts.values() if part.stage is None} == {"the target takes no more"}


def test_one_stage_for_each_site_and_some_of_each(rig: Rig) -> None:
    for number in range(6):
        rig.add_device(f"new-{number}", labels={"site": "ulm" if number < 4 else "bonn"})
    stages = "  - {name: canary, each: site, count: 1}\n  - {name: site, each: site}"
    name = rig.make(text("target: {select: {labels.site: [ulm, bonn]}}", stages=stages))
    view = rig.show(name)
    assert [(stage.name, stage.who, stage.devices) for stage in view.stages] == [
        ("canary", "up to 1 devices of each site", 2),
        ("site-bonn", "site bonn", 1),
        ("site-ulm", "site ulm", 3),
    ]
    rig.run_until(name, "done")
    order = [rig.parts(name)[device].stage_name for _, device, version, _ in rig.sent if version == "1.1"]
    assert order == ["canary"] * 2 + ["site-bonn"] + ["site-ulm"] * 3


def test_a_live_campaign_takes_in_devices_that_come_to_match(rig: Rig) -> None:
    stages = "  - {name: first, count: 2, soak: 40s}\n  - {name: rest, percent: 100}"
    name = rig.make(text("target: {select: {labels.line: a}, membership: live}", "min_reached: 0", stages=stages))
    assert rig.show(name).devices == 0
    rig.run(3)
    for number in range(4):
        rig.add_device(f"new-{number}", labels={"line": "a"})
    rig.add_device("other", labels={"line": "b"})
    view = rig.run_until(name, "done", seconds=150)
    assert view.is_open
    rig.run(40)
    new = {device: version for device, version in rig.running().items() if device.startswith("new")}
    assert new == {f"new-{number}": "1.1" for number in range(4)}
    assert rig.running()["other"] is None
    rig.add_device("late", labels={"line": "a"})
    rig.run(40)
    assert rig.running()["late"] == "1.1"
    assert rig.parts(name)["late"].stage_name == "rest"
    taking_over = rig.make(text("target: {groups: [all]}", name="next", version="1.2"))
    assert not rig.show(name).is_open  # a newer campaign of the model takes over
    rig.run_until(taking_over, "done")
    rig.add_device("later", labels={"line": "a"})
    rig.run(40)
    assert rig.running()["later"] is None


def test_devices_that_leave_a_live_target_get_nothing(rig: Rig) -> None:
    for number in range(3):
        rig.add_device(f"new-{number}", labels={"line": "a"})
    stages = "  - {name: first, count: 1, soak: 100s}\n  - {name: rest, percent: 100}"
    name = rig.make(text("target: {select: {labels.line: a}, membership: live}", stages=stages))
    rig.run(3)
    waiting = [device for device, part in rig.parts(name).items() if part.stage_name == "rest"]
    with rig.database.session() as session:
        session.execute(update(Device).where(Device.id == waiting[0]).values(labels={"line": "b"}))
    rig.run(40)
    assert rig.parts(name)[waiting[0]].detail == "no longer matches the target"
    with rig.database.session() as session:
        session.execute(update(Device).where(Device.id == waiting[0]).values(labels={"line": "a"}))
    rig.run(40)
    assert rig.parts(name)[waiting[0]].state == "planned"


# --- afterwards ---------------------------------------------------------------------------------------------------


def test_drift_is_found_and_shown(rig: Rig) -> None:
    name = rig.make(text())
    rig.run_until(name, "done")
    assert rig.show(name).drifted == 0
    old = next(digest for digest, version in rig.versions.items() if version == "1.0")
    hello = Hello(
        boot_id="b",
        agent_version="1",
        facts_digest=ODD_DIGEST,
        time_ms=rig.now_ms,
        last_counter=rig.devices["press-3"].counter,
        models=(ModelStatus(model="digits", active=old),),
    )
    with rig.database.session() as session:
        store(session, [Incoming("press-3", hello, rig.now_ms)], rig.now_ms)
    rig.service.tick()
    assert rig.show(name).drifted == 1
    part = rig.parts(name)["press-3"]
    assert part.runs == old
    assert part.drifted_ms is not None
    with rig.database.reading() as session:
        found, _ = device_views.list_devices(session, name, 10, drifted=True)
    assert [each.device for each in found] == ["press-3"]
    rig.devices["press-3"].counter = 0  # it gets its order again, and follows it
    rig.run(3)
    assert rig.show(name).drifted == 0
