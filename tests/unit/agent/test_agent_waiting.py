"""An order whose conditions do not hold: fetched and verified, then held, through restarts, until they do or it expires."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from covey_agent.core.lifecycle import RESUME, Act
from covey_contract.conditions import Conditions, MaintenanceWindow
from covey_contract.lifecycle import State
from covey_contract.messages import Report
from covey_contract.reasons import WAITING, Reason
from covey_hil.testing.agent_world import World
from covey_hil.testing.random_builds import RandomBuild

Make = Callable[..., RandomBuild]


@pytest.fixture
def serving(world: World, random_build: Make) -> RandomBuild:
    """The build that serves before the test's order comes."""
    one = random_build((5_000,), 1, "1")
    world.order(one)
    world.run(lambda: world.is_settled(one))
    world.reports.clear()
    return one


def held(world: World, reason: Reason) -> bool:
    deployment = world.record.deployment
    return bool(deployment.state is State.STAGED and deployment.reason is reason)


def told(world: World) -> list[tuple[State, Reason]]:
    return [(report.state, report.reason) for report in world.reports if report.progress is None]


def test_it_is_fetched_and_verified_and_waits_before_it_loads(
    world: World, serving: RandomBuild, random_build: Make
) -> None:
    two = random_build((40_000,), 2, "2")
    world.mains_power = False
    world.order(two, conditions=Conditions(mains_power=True))
    world.run(lambda: held(world, Reason.WAITING_FOR_POWER))
    for _ in range(30):
        world.round()
    assert world.serving_build == serving.digest
    assert two.digest not in world.gateway.loads
    assert told(world) == [
        (State.ASSIGNED, Reason.NONE),
        (State.FETCHING, Reason.NONE),
        (State.VERIFYING, Reason.NONE),
        (State.STAGED, Reason.NONE),
        (State.STAGED, Reason.WAITING_FOR_POWER),
    ]
    # Without the network: all that it needs is here.
    world.newest = None
    world.mains_power = True
    world.run(lambda: world.is_settled(two))


def test_what_it_waits_for_is_told_anew_when_it_changes(world: World, serving: RandomBuild, random_build: Make) -> None:
    del serving
    world.locked_until = world.now + 25
    world.idle_s = 3.0
    world.order(random_build((100,), 2, "2"), conditions=Conditions(unlocked=True, idle_s=10))
    world.run(lambda: held(world, Reason.LOCKED))
    world.run(lambda: held(world, Reason.WAITING_FOR_IDLE))
    assert world.reports[-1].detail == "no 10 s without an inference request yet"
    assert not world.deployments.busy  # the gateway need not be asked several times a second
    world.idle_s = 10.0
    world.run(lambda: world.is_in(State.PROBATION))
    assert world.deployments.busy


def test_conditions_that_flicker_are_told_with_measure(world: World, serving: RandomBuild, random_build: Make) -> None:
    del serving
    world.idle_s = 0.0
    world.mains_power = False
    world.order(random_build((100,), 2, "2"), conditions=Conditions(mains_power=True, idle_s=10))
    world.run(lambda: held(world, Reason.WAITING_FOR_POWER))
    world.reports.clear()
    for _ in range(60):
        world.mains_power = not world.mains_power
        world.round()
    assert 0 < len(world.reports) <= 6


def test_the_wait_survives_a_restart(world: World, serving: RandomBuild, random_build: Make) -> None:
    two = random_build((100,), 2, "2")
    world.locked_until = 1e9
    world.order(two, conditions=Conditions(unlocked=True))
    world.run(lambda: held(world, Reason.LOCKED))
    world.gateway.lose_everything()
    world.boot()
    assert RESUME[world.record.deployment.state] is Act.WAIT_TO_LOAD
    world.run(lambda: world.serving_build == serving.digest)
    for _ in range(10):
        world.round()
    assert held(world, Reason.LOCKED)
    world.locked_until = 0.0
    world.run(lambda: world.is_settled(two))


def test_an_order_that_expires_over_its_wait_has_failed_for_that(
    world: World, serving: RandomBuild, random_build: Make
) -> None:
    two = random_build((100,), 2, "2")
    world.mains_power = False
    order = world.order(two, conditions=Conditions(mains_power=True), expires_ms=world.clock() + 20_000)
    world.run(lambda: world.is_in(State.FAILED))
    last: Report = world.reports[-1]
    assert last.reason is Reason.EXPIRED
    assert "battery" in last.detail
    assert last.time_ms >= order.expires_ms
    assert world.serving_build == serving.digest
    # Nor is it loaded when the conditions hold at last: it is too late.
    world.mains_power = True
    for _ in range(5):
        world.round()
    assert two.digest not in world.gateway.loads


def test_an_order_that_expired_while_the_device_was_off_is_not_followed_though_its_conditions_hold(
    world: World, serving: RandomBuild, random_build: Make
) -> None:
    two = random_build((100,), 2, "2")
    world.mains_power = False
    world.order(two, conditions=Conditions(mains_power=True), expires_ms=world.clock() + 60_000)
    world.run(lambda: held(world, Reason.WAITING_FOR_POWER))
    world.now += 3600
    world.mains_power = True
    world.boot()
    world.run(lambda: world.is_in(State.FAILED))
    assert world.record.deployment.reason is Reason.EXPIRED
    assert world.serving_build == serving.digest


def test_a_newer_order_takes_the_place_of_one_that_waits(
    world: World, serving: RandomBuild, random_build: Make
) -> None:
    del serving
    two, three = random_build((100,), 2, "2"), random_build((100,), 3, "3")
    world.mains_power = False
    world.order(two, conditions=Conditions(mains_power=True))
    world.run(lambda: held(world, Reason.WAITING_FOR_POWER))
    world.order(three)
    world.run(lambda: world.is_settled(three))
    assert (State.FAILED, Reason.SUPERSEDED) in told(world)
    assert two.digest not in world.gateway.loads


def test_the_way_back_is_never_held(world: World, serving: RandomBuild, random_build: Make) -> None:
    two = random_build((100,), 2, "2")
    world.order(two)
    world.run(lambda: world.is_settled(two))
    world.mains_power, world.locked_until, world.idle_s = False, 1e9, 0.0
    everything: dict[str, Any] = {"mains_power": True, "unlocked": True, "idle_s": 60, "not_before_ms": 1 << 50}
    world.order(serving, conditions=Conditions(**everything), rollback=True)
    world.run(lambda: world.is_settled(serving), rounds=20)
    assert not WAITING & {reason for _, reason in told(world)}


def test_a_window_is_waited_for_and_its_opening_is_told(world: World, serving: RandomBuild, random_build: Make) -> None:
    del serving
    # The world's clock begins at 1970-01-01T00:16:40 UTC, and so does its zone.
    two = random_build((100,), 2, "2")
    world.order(two, conditions=Conditions(windows=(MaintenanceWindow(start="00:20", end="00:30"),)))
    world.run(lambda: held(world, Reason.WAITING_FOR_WINDOW))
    opens_ms = 20 * 60_000
    assert world.reports[-1].waits_until_ms == opens_ms
    assert "opens 1970-01-01 00:20+00:00" in world.reports[-1].detail
    world.run(lambda: world.is_settled(two), rounds=400)
    warming = next(report for report in world.reports if report.state is State.WARMING)
    assert warming.time_ms >= opens_ms
    assert warming.waits_until_ms is None
