"""The server makes a delta once, offers it to whom it helps, and gives it out as it gives out builds."""

from __future__ import annotations

import hashlib
from pathlib import Path
from random import Random
from typing import Any

import pytest

from covey_agent.delta import made_blocks
from covey_agent.store import Store
from covey_contract import topics
from covey_contract.blocks import bitmap_of, decode_block
from covey_contract.manifest import BLOCK_BYTES, block_count
from covey_contract.messages import BlockRequest, ModelStatus, Order
from covey_contract.wire import decode
from covey_server.db.tables import Reported

SIZE = 20 * BLOCK_BYTES


def lightly_changed(data: bytes) -> bytes:
    draw, changed = Random(4), bytearray(data)
    for at in draw.sample(range(len(changed)), len(changed) // 50):
        changed[at] = (changed[at] + 1) % 256
    return bytes(changed)


@pytest.fixture
def pair(world: Any) -> tuple[Any, Any, bytes, bytes]:
    old = Random(1).randbytes(SIZE)
    new = lightly_changed(old)
    return world.build(content=old), world.build(content=new, version="2.0"), old, new


def newest_order(device: Any) -> Order:
    order: Order = decode(Order, device.inbox["assignment"].get(timeout=10))
    return order


def test_a_pair_is_made_once_and_offered_to_those_who_have_the_older_one(
    world: Any, device: Any, pair: Any, tmp_path: Path
) -> None:
    before, after, old, new = pair
    device.models = (ModelStatus(model="digits", active=before[2]),)
    device.hello()
    world.until(lambda: world.row(Reported, "press-7", "digits"))
    assert world.fleet.deltas.between(before[2], after[2]) is None  # wanted now, and nobody waits for it
    made = world.until(lambda: world.fleet.deltas.between(before[2], after[2]))
    assert made.size < SIZE / 5
    world.order("press-7", after)
    assert newest_order(device).offer.delta == made

    delta = fetched(device, made.sha256, made.size)
    assert hashlib.sha256(delta).hexdigest() == made.sha256
    store = Store(tmp_path / "store")
    store.prepare()
    store.blob(hashlib.sha256(old).hexdigest()).write_bytes(old)
    (tmp_path / "delta").write_bytes(delta)
    blocks = {(file, index): data for file, index, data in made_blocks(tmp_path / "delta", store)}
    assert b"".join(data for _, data in sorted(blocks.items())) == new

    other = world.device("press-8")
    other.connect()
    world.order("press-8", after)
    assert newest_order(other).offer.delta is None
    other.publish(topics.Up.BLOCK_REQUEST, BlockRequest(build=made.sha256, file=0, base=0, bitmap=1))
    assert other.inbox["blk"].get(timeout=10)  # it may have the build, and so what leads to it
    other.disconnect()


def fetched(device: Any, name: str, size: int) -> bytes:
    count = block_count(size)
    device.publish(
        topics.Up.BLOCK_REQUEST, BlockRequest(build=name, file=0, base=0, bitmap=bitmap_of(0, list(range(count))))
    )
    blocks = [decode_block(device.inbox["blk"].get(timeout=10)) for _ in range(count)]
    assert {block.build_prefix.hex() for block in blocks} == {name[:16]}
    return b"".join(block.data for block in sorted(blocks, key=lambda block: block.index))


def test_who_is_not_ordered_to_run_the_newer_one_gets_no_delta(world: Any, device: Any, pair: Any) -> None:
    before, after, _, _ = pair
    world.fleet.deltas.between(before[2], after[2])
    made = world.until(lambda: world.fleet.deltas.between(before[2], after[2]))
    world.order("press-7", before)
    newest_order(device)
    device.publish(topics.Up.BLOCK_REQUEST, BlockRequest(build=made.sha256, file=0, base=0, bitmap=1))
    world.until(lambda: world.fleet.counters.value("covey_delivery_refused_total", reason="not_assigned"))
    assert device.inbox["blk"].empty()


def test_a_build_with_nothing_in_common_has_none(world: Any, pair: Any) -> None:
    before, other = pair[0], world.build(size=SIZE, version="3.0")
    world.fleet.deltas.between(before[2], other[2])
    record = world.settings.data / "deltas" / f"{other[2]}-{before[2]}.json"
    world.until(record.exists)
    assert world.fleet.deltas.between(before[2], other[2]) is None


def test_a_new_build_has_its_delta_before_anybody_is_ordered_to_run_it(make_world: Any) -> None:
    """And it is there after a restart, without being made again."""
    world = make_world()
    world.start()
    old = Random(1).randbytes(SIZE)
    before = world.build(content=old)
    device = world.device("press-7")
    device.connect()
    device.models = (ModelStatus(model="digits", active=before[2]),)
    device.hello()
    world.until(lambda: world.row(Reported, "press-7", "digits"))
    device.disconnect()
    after = world.build(content=lightly_changed(old), version="2.0")
    record = world.settings.data / "deltas" / f"{after[2]}-{before[2]}.json"
    world.until(record.exists)
    written = record.stat().st_mtime_ns
    world.stop()
    again = make_world()
    again.start()
    made = again.fleet.deltas.between(before[2], after[2])
    assert made is not None
    assert record.stat().st_mtime_ns == written


def test_a_process_that_fails_is_not_started_again_and_again(world: Any, pair: Any) -> None:
    before, after, _, new = pair
    path = world.blobs.path(hashlib.sha256(new).hexdigest())
    path.unlink()
    world.fleet.deltas.between(before[2], after[2])
    world.until(lambda: world.fleet.deltas.settled(before[2], after[2]))
    assert world.fleet.deltas.between(before[2], after[2]) is None
    assert not list((world.settings.data / "deltas").glob("*.part"))
