"""Enrol, hello, assignment, blocks, report: the whole way, on a real broker."""

from __future__ import annotations

from typing import Any

import pytest

from covey_contract.lifecycle import State
from covey_contract.messages import Action, CommandKind
from covey_server.db.tables import AssignmentRow, Device, Reported

pytestmark = pytest.mark.parametrize("in_database", ["sqlite", "postgresql"], indirect=True)


def test_enrol_to_report(world: Any, device: Any) -> None:
    build = world.build()
    row = world.until(lambda: (row := world.row(Device, "press-7")).online and row)
    assert (row.profile, row.simulated, row.agent_version) == ("generic-x86_64", True, "0.1.0")

    assignment_id = world.order("press-7", build, why={"reason": "the only one"})
    assignment, manifest = device.accept()
    assert (assignment.id, assignment.build, assignment.counter) == (assignment_id, build[2], 1)
    files = device.fetch(assignment.build, manifest)
    assert len(files) == 2
    assert len(files[1]) == 300_000

    for state in (State.FETCHING, State.STAGED, State.PROBATION, State.ACTIVE):
        device.report(assignment, state, bytes_fetched=300_160)
    world.until(lambda: not device.unacknowledged)
    stored = world.row(AssignmentRow, assignment_id)
    assert (stored.state, stored.bytes_fetched) == ("active", 300_160)
    assert world.row(Reported, "press-7", "digits").active == build[2]
    assert world.fleet.counters.value("covey_delivery_bytes_total", build=build[2]) >= 300_160
    assert world.fleet.online_counts() == {"online": 1, "offline": 0}


def test_remove_is_said_in_the_order(world: Any, device: Any) -> None:
    world.order("press-7", world.build(), action="remove")
    assert device.accept()[0].action is Action.REMOVE


@pytest.mark.usefixtures("device")
def test_command_and_reply(world: Any) -> None:
    world.until(lambda: world.row(Device, "press-7").online)
    reply = world.fleet.ask("press-7", CommandKind.PING)
    assert reply is not None
    assert reply.text == "pong"


def test_new_facts_are_asked_for(world: Any, device: Any) -> None:
    device.facts = device.facts.__class__(architecture="aarch64", memory_mb=8000)
    device.hello()
    row = world.until(lambda: (row := world.row(Device, "press-7")).profile == "generic-aarch64" and row)
    assert row.facts["memory_mb"] == 8000
    assert row.facts_digest == device.facts.digest()


def test_will_marks_offline(world: Any, device: Any) -> None:
    world.until(lambda: world.row(Device, "press-7").online)
    device.disconnect()
    world.until(lambda: not world.row(Device, "press-7").online)


def test_silence_marks_offline(make_world: Any) -> None:
    world = make_world(heartbeat_timeout_s=1.0)
    world.start()
    device = world.device("mute")
    device.connect()
    world.until(lambda: world.row(Device, "mute").online)
    world.until(lambda: not world.row(Device, "mute").online)
    device.disconnect()
