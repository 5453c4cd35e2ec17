"""What a device may ask of the server over its own session: the time, and the repository's metadata. A real broker between them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from covey_contract import topics
from covey_contract.envelope import decode_envelope
from covey_contract.messages import TIME_TYPE, MetadataPart, MetadataRequest, TimeReply, TimeRequest
from covey_contract.metadata import unpack_metadata
from covey_contract.signing import open_envelope
from covey_contract.wire import decode
from covey_server.clock import system_clock


@pytest.fixture
def world(make_world: Any) -> Any:
    world = make_world(releases=True)
    world.start()
    return world


def test_the_time_is_signed_for_this_device_and_this_question(device: Any) -> None:
    device.publish(topics.Up.TIME, TimeRequest(nonce="5a" * 32))
    envelope = decode_envelope(device.inbox["time"].get(timeout=10))
    reply = open_envelope(TimeReply, envelope, TIME_TYPE, device.identity.trust.director)
    assert (reply.device, reply.nonce) == ("press-7", "5a" * 32)
    assert abs(reply.time_ms - system_clock()) < 10_000


def test_metadata_that_lead_to_a_target(device: Any) -> None:
    device.publish(topics.Up.METADATA, MetadataRequest(id="q1", path="models/digits/1.0/onnxruntime-fp32", root=1))
    part = decode(MetadataPart, device.inbox["meta"].get(timeout=10))
    assert (part.id, part.part, part.parts) == ("q1", 0, 1)
    files = unpack_metadata(part.data)
    assert {"timestamp.json", "1.snapshot.json", "1.targets.json"} == set(files)
    assert json.loads(files["timestamp.json"])["signed"]["_type"] == "timestamp"


def test_who_asks_without_end_is_not_answered_without_end(world: Any, device: Any) -> None:
    for _ in range(60):
        device.publish(topics.Up.TIME, TimeRequest(nonce="5a" * 32))
    refused = "covey_messages_refused_total"
    world.until(lambda: world.fleet.counters.value(refused, reason="asks_too_often") >= 29)
    assert device.inbox["time"].qsize() <= 31
