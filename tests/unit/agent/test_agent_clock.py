"""Clocks that are wrong: nothing that is true is refused for ever, nothing that is old is believed, no number is used twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from covey_agent.daemon import take_up
from covey_agent.settings import Settings
from covey_contract.lifecycle import State
from covey_contract.messages import Report
from covey_contract.reasons import Reason
from covey_hil.testing.agent_world import World
from covey_hil.testing.random_builds import RandomBuild

Make = Callable[..., RandomBuild]
NOW_S = 1_800_000_000.0
Y1971_S = 40_000_000.0
Y2040_S = 2_220_000_000.0


def serving(world: World, build: RandomBuild) -> None:
    world.now = NOW_S
    world.order(build)
    world.run(lambda: world.is_settled(build))


def test_a_clock_at_1971_follows_orders_of_today(world: World, random_build: Make) -> None:
    one, two = random_build((100,), 1, "1"), random_build((100,), 2, "2")
    serving(world, one)
    world.order(two)  # by the server's clock, which is right
    world.now = Y1971_S
    world.boot()
    world.run(lambda: world.is_settled(two))


def test_at_1971_an_order_that_has_expired_stays_expired(world: World, random_build: Make) -> None:
    one, two = random_build((100,), 1, "1"), random_build((100,), 2, "2")
    serving(world, one)
    now_ms = world.clock()
    world.now = Y1971_S
    world.boot()
    world.order(two, issued_ms=now_ms - 20_000, expires_ms=now_ms - 10_000)
    assert world.newest is not None
    world.deployments.order(world.newest)
    assert world.reports[-1].reason is Reason.EXPIRED
    assert world.record.active == one.digest


def test_a_clock_at_2040_refuses_and_says_why_and_follows_when_it_is_right(world: World, random_build: Make) -> None:
    one, two = random_build((100,), 1, "1"), random_build((100,), 2, "2")
    serving(world, one)
    world.order(two)
    world.now = Y2040_S
    assert world.newest is not None
    world.deployments.order(world.newest)
    assert (world.reports[-1].state, world.reports[-1].reason) == (State.REFUSED, Reason.EXPIRED)
    assert world.serving_build == one.digest
    world.now = NOW_S + 60
    world.run(lambda: world.is_settled(two))


def test_2040_and_back_leaves_no_floor_that_refuses_true_orders(world: World, random_build: Make) -> None:
    """The time floor is what was signed, never the device's own clock."""
    one, two = random_build((100,), 1, "1"), random_build((100,), 2, "2")
    serving(world, one)
    world.now = Y2040_S
    for _ in range(5):
        world.round()
    world.boot()
    world.now = NOW_S + 60
    world.order(two)
    world.run(lambda: world.is_settled(two))


def test_a_clock_that_jumps_ahead_in_probation(world: World, random_build: Make) -> None:
    one, two = random_build((100,), 1, "1"), random_build((100,), 2, "2")
    serving(world, one)
    world.order(two)
    world.run(lambda: world.is_in(State.PROBATION))
    world.clock_offset_s = 86_400.0
    world.round()
    # By the monotonic clock its time is not over.
    assert world.is_in(State.PROBATION)
    world.run(lambda: world.is_settled(two))


def test_a_clock_that_is_set_back_in_probation(world: World, random_build: Make) -> None:
    one, two = random_build((100,), 1, "1"), random_build((100,), 2, "2")
    serving(world, one)
    world.order(two)
    world.run(lambda: world.is_in(State.PROBATION))
    world.clock_offset_s = -86_400.0
    world.run(lambda: world.is_settled(two), rounds=10)


def test_a_gateways_way_back_is_seen_though_the_clock_was_set_back(world: World, random_build: Make) -> None:
    one, two = random_build((100,), 1, "1"), random_build((100,), 2, "2")
    serving(world, one)
    world.order(two)
    world.run(lambda: world.is_in(State.PROBATION) and world.serving_build == two.digest)
    world.clock_offset_s = -86_400.0
    world.gateway.crash_active("m", world.clock())
    world.run(lambda: world.is_in(State.ROLLED_BACK), rounds=10)
    assert world.serving_build == one.digest


def test_a_retry_comes_though_the_clock_was_set_back(world: World, random_build: Make) -> None:
    build = random_build((50_000,))
    world.free = 1000
    world.now = NOW_S
    world.order(build)
    world.run(lambda: world.is_in(State.REFUSED))
    world.clock_offset_s = -86_400.0
    world.free = 10**9
    world.run(lambda: world.is_settled(build), rounds=100)


def test_a_new_spools_numbers_do_not_fall_behind_a_clock_that_was_set_back(world: World, random_build: Make) -> None:
    serving(world, random_build((100,)))
    told = world.reports[-1]
    before = spooled(world, told)
    for path in world.folder.glob("outbox.db*"):
        path.unlink()
    world.now = Y1971_S
    assert spooled(world, told) > before


def spooled(world: World, report: Report) -> int:
    """The number that the report gets from a spool that is opened now."""
    outbox = take_up(Settings(state=Path(world.folder)), world.clock).outbox
    outbox.add(report)
    (record,) = outbox.due(0.0, limit=1)
    outbox.close()
    return record.seq
