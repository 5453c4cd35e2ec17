"""Orders until they are heard of, blocks for those who may have them and no faster than allowed."""

from __future__ import annotations

import time
from typing import Any

import pytest
from sqlalchemy import update

from covey_contract import topics
from covey_contract.lifecycle import State
from covey_contract.messages import BlockRequest
from covey_contract.reasons import Reason
from covey_server.db.tables import AssignmentRow, Desired, Device
from covey_server.fleet import reconcile

pytestmark = pytest.mark.parametrize("in_database", ["sqlite", "postgresql"], indirect=True)


def test_only_assigned_builds_and_blocks_that_exist(world: Any, device: Any) -> None:
    mine, foreign = world.build(), world.build("openvino-int8")
    world.order("press-7", mine)
    device.accept()

    def ask(build: str, **more: Any) -> None:
        request = BlockRequest(build=build, **{"file": 1, "base": 0, "bitmap": 1, **more})
        device.publish(topics.Up.BLOCK_REQUEST, request)

    refused = "covey_delivery_refused_total"
    for build, more, reason in (
        (foreign[2], {}, "not_assigned"),
        ("0" * 64, {}, "not_assigned"),
        (mine[2], {"file": 9}, "no_such_file"),
        (mine[2], {"base": 1 << 30}, "no_such_block"),
    ):
        ask(build, **more)
        world.until(lambda reason=reason: world.fleet.counters.value(refused, reason=reason))
    assert device.inbox["blk"].empty()
    ask(mine[2])
    assert len(device.inbox["blk"].get(timeout=5)) == 16 + 64 * 1024


def test_a_missing_blob_is_counted_and_others_still_flow(world: Any, device: Any) -> None:
    build = world.build()
    world.order("press-7", build)
    assignment, manifest = device.accept()
    path = world.blobs.path(manifest.files[0].sha256)
    held = path.read_bytes()
    path.unlink()
    device.publish(topics.Up.BLOCK_REQUEST, BlockRequest(build=build[2], file=1, base=0, bitmap=1))
    world.until(lambda: world.fleet.counters.value("covey_delivery_refused_total", reason="unreadable"))
    path.write_bytes(held)
    assert len(device.fetch(assignment.build, manifest)) == 2


def test_delivery_keeps_its_rate(make_world: Any) -> None:
    world = make_world(block_device_bytes_per_s=400_000, block_outstanding=16)
    world.start()
    device = world.device("slow")
    device.connect()
    world.order("slow", world.build(size=600_000))
    assignment, manifest = device.accept()
    began = time.monotonic()
    device.fetch(assignment.build, manifest)
    assert time.monotonic() - began > 0.8  # 600 kB, of which a quarter of a second's worth may burst
    device.disconnect()


def test_an_order_is_sent_again_until_a_report_answers(world: Any, device: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(reconcile, "RESEND_MIN_MS", 200)
    assignment_id = world.order("press-7", world.build())
    first, _ = device.accept()
    noted = world.until(lambda: (row := world.row(AssignmentRow, assignment_id)).sent_ms and row)
    assert noted.due_ms - noted.sent_ms >= 200
    device.counter = 0
    again, _ = device.accept()
    assert first.id == again.id == assignment_id
    device.report(again, State.FETCHING)
    world.until(lambda: not device.unacknowledged)
    sent = world.row(AssignmentRow, assignment_id).sent_ms
    world.fleet.wake()
    device.hello()
    world.order("press-7", world.build("openvino-int8"))
    world.until(lambda: not device.inbox["assignment"].empty())
    assert world.row(AssignmentRow, assignment_id).sent_ms == sent


def test_expired_orders_of_devices_that_were_away_are_issued_anew(world: Any) -> None:
    device = world.device("press-7")
    old = world.order("press-7", world.build(), ttl_ms=1, why={"reason": "then"})
    device.connect()
    assignment, _ = device.accept()
    assert assignment.id != old
    assert assignment.counter == 2
    assert world.row(AssignmentRow, old).state == "superseded"
    assert world.row(AssignmentRow, assignment.id).why["reason"] == "then"
    assert world.row(Desired, "press-7", "digits").assignment == assignment.id
    device.disconnect()


def test_a_server_restored_from_a_backup_catches_up_with_counters(world: Any, device: Any) -> None:
    world.until(lambda: world.row(Device, "press-7").online)
    device.counter = 41
    device.hello()
    world.until(lambda: world.row(Device, "press-7").counter == 41)
    world.order("press-7", world.build())
    assert device.accept()[0].counter == 42


def test_an_order_refused_as_old_is_issued_anew(world: Any, device: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(reconcile, "RENEW_MS", 100)
    world.order("press-7", world.build())
    assignment, _ = device.accept()
    device.report(assignment, State.REFUSED, Reason.OLD_COUNTER)
    assert device.accept()[0].counter == 2


def test_a_device_that_lost_everything_gets_its_orders_again(world: Any, device: Any) -> None:
    world.order("press-7", world.build())
    assignment, _ = device.accept()
    device.report(assignment, State.ACTIVE)
    world.until(lambda: world.row(AssignmentRow, assignment.id).state == "active")
    device.counter, device.models = 0, ()
    device.hello()
    assert device.accept()[0].id == assignment.id


def test_revoked_devices_are_not_sent_to(world: Any, device: Any) -> None:
    build = world.build()
    with world.database.session() as session:
        session.execute(update(Device).values(revoked_ms=1))
    world.order("press-7", build)
    other = world.device("saw-1")
    other.connect()
    world.order("saw-1", build)
    other.accept()
    assert device.inbox["assignment"].empty()
    other.disconnect()
