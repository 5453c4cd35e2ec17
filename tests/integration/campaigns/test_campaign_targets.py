"""Whom a campaign file is about, on a real database: selectors, sites, devices that come and go, and those that drift afterwards."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import update

from covey_contract.messages import Hello, ModelStatus
from covey_server.campaigns import device_views
from covey_server.db.tables import Device
from covey_server.fleet.inbox import Incoming
from covey_server.fleet.records import store
from tests.integration.campaigns.conftest import ODD_DIGEST
from tests.integration.campaigns.grammar import text

if TYPE_CHECKING:
    from tests.integration.campaigns.conftest import Rig


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


# --- afterwards --------------------------------------------------------------------------------------------------------


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
