"""What a campaign file says of devices that wait, fail, are tried again or serve nobody, on a real database."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from sqlalchemy import select

from covey_contract.conditions import Conditions
from covey_contract.reasons import Reason
from covey_server.core.engine import Action
from covey_server.core.spec import parse_moment
from covey_server.db.tables import Build, Version
from covey_server.fleet.assignments import NewOrder, issue
from tests.integration.campaigns.grammar import orders_of, text

if TYPE_CHECKING:
    from tests.integration.campaigns.conftest import Rig


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
