"""What a campaign file says of pace and times, on a real database, by devices that would do otherwise without it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from sqlalchemy import update

from covey_contract.conditions import Conditions
from covey_contract.reasons import Reason
from covey_server.core.spec import parse_moment
from covey_server.db.tables import Device
from tests.integration.campaigns.grammar import orders_of, text

if TYPE_CHECKING:
    from tests.integration.campaigns.conftest import Rig


# --- pace --------------------------------------------------------------------------------------------------------------


def in_flight(rig: Rig, name: str = "c") -> list[str]:
    return [device for device, part in rig.parts(name).items() if part.state == "assigned"]


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


# --- times -------------------------------------------------------------------------------------------------------------


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
