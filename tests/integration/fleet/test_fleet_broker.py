"""The broker's rules and its deaths: topics of others, revoked devices, kill -9, restarts of the server, ports, trial broker."""

from __future__ import annotations

import os
import queue
import signal
import socket
import threading
from typing import Any

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion
from sqlalchemy import func, select

from covey_contract import topics
from covey_contract.enrolment import parse_claim_token
from covey_contract.lifecycle import State
from covey_contract.messages import Status
from covey_contract.wire import encode
from covey_server.db.tables import AssignmentRow, Device, ReportRow
from covey_server.errors import Forbidden, StartError
from covey_server.fleet import enrolment


def test_a_device_reads_and_writes_only_its_own_topics(world: Any) -> None:
    press, saw = world.device("press-7"), world.device("saw-1")
    press.connect()
    saw.connect()
    overheard: queue.Queue[str] = queue.Queue()
    done = threading.Event()
    saw.client.on_subscribe = lambda *_: done.set()
    saw.client.on_message = lambda _c, _d, message: overheard.put(message.topic)
    saw.client.subscribe([("covey/press-7/#", 1), ("covey/+/down/#", 1), ("covey/#", 1), ("#", 1)])
    assert done.wait(5)

    saw.client.publish("covey/press-7/up/status", encode(Status(boot_id="forged", online=False)), 1)
    saw.client.publish("covey/press-7/down/assignment", b"forged", 1).wait_for_publish(5)
    world.order("press-7", world.build())
    press.accept()  # the true order, nothing before it
    # saw's own messages travel the same way, after the forged ones: once this is stored, those were dropped.
    saw.measure("0" * 64)
    world.until(lambda: not overheard.empty())
    heard = set()
    while not overheard.empty():
        heard.add(overheard.get())
    assert all(topic.startswith(("covey/saw-1/down/", "covey/_all/down/")) for topic in heard), heard
    assert world.row(Device, "press-7").online
    with pytest.raises(queue.Empty):
        press.accept(seconds=0.5)
    press.disconnect()
    saw.disconnect()


def test_nobody_gets_in_without_a_certificate_of_the_fleet(world: Any, tmp_path: Any) -> None:
    address = world.fleet.broker_address
    stranger = world.__class__(tmp_path / "elsewhere" / "data")
    stranger.fleet._broker = world.fleet.broker
    forged = stranger.device("press-7")
    (forged.folder / "ca.pem").write_text(world.fleet.ca_pem)
    failed = threading.Event()
    client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="press-7")
    ca, certificate, key = (str(forged.folder / name) for name in ("ca.pem", "cert.pem", "key.pem"))
    client.tls_set(ca, certificate, key)
    client.on_connect_fail = lambda *_: failed.set()
    client.on_disconnect = lambda *_: failed.set()
    connected = threading.Event()
    client.on_connect = lambda *_: connected.set()
    client.connect_async(address.host, address.port)
    client.loop_start()
    assert failed.wait(10)
    assert not connected.is_set()
    client.loop_stop()
    stranger.database.close()


def test_revoked_device_is_cut_off_at_once_and_for_good(world: Any, device: Any) -> None:
    world.until(lambda: world.row(Device, "press-7").online)
    with world.database.session() as session:
        assert enrolment.revoke(session, "press-7", world.fleet._clock())
        assert not enrolment.revoke(session, "press-7", world.fleet._clock())
    world.fleet.apply_revocations()
    other = world.device("saw-1")
    other.connect()

    def dropped() -> bool:
        """Its live session may go on, but nothing of it arrives; nor does a new session come about."""
        before = world.fleet.counters.value("covey_messages_total", kind="Telemetry")
        device.measure("0" * 64)
        other.measure("0" * 64)
        world.until(lambda: not other.unacknowledged)
        return bool(world.fleet.counters.value("covey_messages_total", kind="Telemetry") == before + 1)

    world.until(dropped)
    device.disconnect()
    refused = threading.Event()
    device.connect(wait=False)
    device.client.on_connect_fail = device.client.on_disconnect = lambda *_: refused.set()
    assert refused.wait(20)
    assert not device.connected.is_set()
    device.disconnect()

    # An operator lets it in again by a token bound to its id; nothing else does.
    with pytest.raises(Forbidden):
        world.fleet.enrol(device.request("x" * 32, "press-7"), "test")
    device.enrol(world.token("press-7"), world.fleet)
    device.unacknowledged.clear()
    device.connect()
    world.until(lambda: world.row(Device, "press-7").online)
    other.disconnect()


def test_killed_broker_comes_back_and_nothing_is_lost(world: Any, device: Any) -> None:
    build = world.build()
    world.order("press-7", build)
    assignment, _ = device.accept()
    device.report(assignment, State.FETCHING)
    pid = world.broker_pid
    os.kill(pid, signal.SIGKILL)
    for state in (State.STAGED, State.PROBATION, State.ACTIVE):
        device.report(assignment, state)
    for _ in range(20):
        device.measure(build[2])
    world.until(device.settled, 30)
    assert world.broker_pid != pid
    assert world.row(AssignmentRow, assignment.id).state == "active"
    # An order issued while the broker was away arrives, too.
    os.kill(world.broker_pid, signal.SIGKILL)
    newer = world.order("press-7", world.build("openvino-int8"))
    assert device.accept(30)[0].id == newer


def test_restart_of_the_server_loses_nothing_and_keeps_the_address(make_world: Any) -> None:
    first = make_world()
    first.start()
    device = first.device("press-7")
    device.connect()
    build = first.build()
    first.order("press-7", build)
    assignment, manifest = device.accept()
    address = first.fleet.broker_address
    first.stop()
    for state in (State.FETCHING, State.ACTIVE):
        device.report(assignment, state)
    second = make_world()
    newer = second.order("press-7", second.build("openvino-int8"))
    second.start()
    assert second.fleet.broker_address == address
    second.until(device.settled, 30)
    assert second.row(AssignmentRow, assignment.id).state in {"active", "superseded"}
    assert device.accept(30)[0].id == newer
    device.disconnect()


def test_port_in_use_is_one_clear_line(make_world: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        world = make_world(broker_port=port)
        with pytest.raises(StartError, match=f"port {port} on 127.0.0.1 is in use"):
            world.start()


def test_no_broker_is_one_clear_line(make_world: Any) -> None:
    with pytest.raises(StartError, match="no program that can be run"):
        make_world(mosquitto="/nowhere/mosquitto").start()
    with pytest.raises(StartError, match="no broker answers at 127.0.0.1:9"):
        make_world(broker_url="mqtts://127.0.0.1:9").start()
    with pytest.raises(StartError, match="is not mqtts://"):
        make_world(broker_url="http://127.0.0.1").start()


def test_broker_ends_with_its_server(world: Any) -> None:
    pid = world.broker_pid
    world.fleet.stop()
    assert world.until(lambda: not _alive(pid))


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_trial_broker_carries_the_same_story(make_world: Any, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    monkeypatch.setattr("covey_server.fleet.service.find_mosquitto", lambda _configured: None)
    world = make_world()
    caplog.set_level("WARNING")
    world.start()
    assert "TRIAL broker" in caplog.text
    assert world.fleet.broker_address.tls is False
    device = world.device("press-7")
    device.connect()
    world.order("press-7", world.build())
    assignment, manifest = device.accept()
    assert len(device.fetch(assignment.build, manifest)) == 2
    device.report(assignment, State.ACTIVE)
    world.until(lambda: not device.unacknowledged)
    assert world.row(AssignmentRow, assignment.id).state == "active"
    device.disconnect()


def test_burst_of_a_thousand_reports_and_replays(world: Any, device: Any) -> None:
    world.order("press-7", world.build())
    assignment, _ = device.accept()
    for number in range(1000):
        device.report(assignment, State.FETCHING, progress=number / 1000)
    last = device.report(assignment, State.ACTIVE)
    world.until(device.settled, 30)
    with world.database.reading() as session:
        assert session.scalar(select(func.count()).select_from(ReportRow)) == 1001
    # Every one again, in another order: nothing changes. A device that was answered late has repeated some by itself.
    repeated = world.fleet.counters.value("covey_messages_duplicate_total")
    for number in (500, 3, 1000, last.seq):
        told = last.__class__(**{**_fields(last), "seq": number, "state": State.FAILED})
        device.unacknowledged[number] = (topics.Up.REPORT, told)
        device.publish(topics.Up.REPORT, told)
    world.until(lambda: not device.unacknowledged)
    assert world.row(AssignmentRow, assignment.id).state == "active"
    # Counted after the acknowledgement has gone out.
    world.until(lambda: world.fleet.counters.value("covey_messages_duplicate_total") >= repeated + 4)


def _fields(message: Any) -> dict[str, Any]:
    return {name: getattr(message, name) for name in message.__struct_fields__}


def test_hostile_payloads_hurt_nobody(world: Any, device: Any) -> None:
    world.until(lambda: world.row(Device, "press-7").online)
    huge = b'{"seq":1' + b"0" * 200 + b"}"
    for payload in (b"", b"\x00", b"{}", b"[" * 50_000, b"\xff\xfe", huge, b'{"v":2}', b'{"v":"x"}', b"null"):
        for what in topics.Up:
            device.client.publish(f"covey/press-7/up/{what}", payload, 1)
    for unknown in ("nothing", "hello "):
        device.client.publish(f"covey/press-7/up/{unknown}", b"{}", 1)
    device.client.publish("covey/press-7/up/report", b"x" * 119_000, 1)
    record = device.measure("0" * 64)
    world.until(lambda: record.seq not in device.unacknowledged)
    assert world.fleet.counters.value("covey_messages_refused_total") >= 50
    assert world.fleet.health().ready


def test_unbound_token_takes_no_existing_device(world: Any) -> None:
    world.device("press-7")
    thief = world.device("saw-1")
    secret = parse_claim_token(world.token()).secret
    with pytest.raises(Exception, match="exists; to enrol it again"):
        world.fleet.enrol(thief.request(secret, "press-7"), "test")
