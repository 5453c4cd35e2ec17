"""A broadcast through the real broker with its real access list: once from the server, whole at every device."""

from __future__ import annotations

from typing import Any

import pytest

from covey_contract import topics
from covey_contract.blocks import decode_block
from covey_contract.messages import Broadcast, Order
from covey_contract.wire import decode, encode
from covey_server.clock import system_clock
from covey_server.db.tables import Device
from covey_server.fleet.assignments import NewOrder, issue

DEVICES = 4
# Less than the broker holds for one that does not read for a while: nothing is dropped.
SIZE = 990_000
BLOCKS = 16


@pytest.fixture
def world(make_world: Any) -> Any:
    world = make_world(broadcast_from=DEVICES, broadcast_gather_s=0.5)
    world.start()
    return world


@pytest.fixture
def devices(world: Any) -> Any:
    made = [world.device(f"press-{number}") for number in range(DEVICES)]
    for device in made:
        device.connect()
    world.until(lambda: all(world.row(Device, device.name).online for device in made))
    yield made
    for device in made:
        device.disconnect()


def order_all(world: Any, build: tuple[int, int, str], names: list[str]) -> None:
    version_id, build_id, _ = build
    with world.database.session() as session:
        issue(session, [NewOrder(name, "digits", version_id, build_id, "manual") for name in names], system_clock())
    world.fleet.wake()


def test_each_block_leaves_the_server_once_and_arrives_everywhere(world: Any, devices: list[Any]) -> None:
    build = world.build(size=SIZE)
    for device in devices:
        device.client.subscribe(topics.broadcast_filter(build[2]), qos=1)
    order_all(world, build, [device.name for device in devices])
    for device in devices:
        assert decode(Order, device.inbox["assignment"].get(timeout=20)).offer.broadcast
    held: dict[str, dict[tuple[int, int], bytes]] = {device.name: {} for device in devices}
    for device in devices:
        # those of the file, and one of the block table
        for _ in range(BLOCKS + 1):
            block = decode_block(device.inbox["blk"].get(timeout=20))
            held[device.name][block.file, block.index] = block.data
    assert len({tuple(sorted(blocks.items())) for blocks in held.values()}) == 1
    (blocks,) = {tuple(sorted(blocks.items())) for blocks in held.values()}
    assert sum(len(data) for (file, _), data in blocks if file == 1) == SIZE
    world.until(lambda: _over(devices[0]))
    sent = world.fleet.counters.value("covey_delivery_bytes_total", build=build[2])
    assert sent == SIZE + BLOCKS * 32
    assert sent == world.fleet.counters.value("covey_broadcast_bytes_total", build=build[2])


def _over(device: Any) -> bool:
    return decode(Broadcast, device.inbox["cast"].get(timeout=20)).over


def test_fewer_devices_are_offered_the_servers_files(world: Any, devices: list[Any]) -> None:
    build = world.build(size=SIZE)
    world.order(devices[0].name, build)
    offer = decode(Order, devices[0].inbox["assignment"].get(timeout=20)).offer
    assert not offer.broadcast
    assert offer.url == ""  # the build is smaller than what is worth it


def test_a_device_can_broadcast_nothing(world: Any, devices: list[Any]) -> None:
    """The broker's access list: what a device says on the topics of all is heard by nobody."""
    build = world.build(size=SIZE)
    liar, listener = devices[:2]
    listener.client.subscribe(topics.broadcast_filter(build[2]), qos=1)
    for topic in (topics.broadcast_blocks(build[2]), topics.broadcast_notes(build[2])):
        liar.client.publish(topic, encode(Broadcast(build=build[2], over=True)), qos=1)
    # Something that comes after it through the same broker.
    order_all(world, build, [device.name for device in devices])
    first = decode(Broadcast, listener.inbox["cast"].get(timeout=20))
    assert not first.over
    assert first.listeners >= DEVICES  # more where an order was sent twice
