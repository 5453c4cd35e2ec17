"""Killed at every write and at every call to the gateway, one after the other: the agent goes on and ends where it should."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from covey_agent import durable
from covey_agent.book import read_state
from covey_contract.conditions import Conditions
from covey_contract.lifecycle import State
from covey_contract.messages import ASSIGNMENT_TYPE, Action, Assignment, Order
from covey_contract.reasons import Reason
from covey_contract.signing import seal
from covey_contract.wire import encode
from covey_hil.testing.agent_world import DIRECTOR, Killed, World
from covey_hil.testing.random_builds import RandomBuild

Make = Callable[..., RandomBuild]


def check(world: World, counter: int, good: set[str | None]) -> int:
    """What must hold at every moment. Returns the counter, which only grows."""
    state = read_state(world.folder)
    assert state.counter >= counter
    assert state.record("m").active in good
    assert world.serving_build in good
    return state.counter


@pytest.mark.usefixtures("no_flushing")
@pytest.mark.parametrize("gateway_too", [False, True], ids=["control", "control and gateway"])
@pytest.mark.parametrize("scenario", ["swap", "first", "back", "remove", "held"])
def test_killed_at_every_step(
    tmp_path_factory: pytest.TempPathFactory,
    random_build: Make,
    monkeypatch: pytest.MonkeyPatch,
    scenario: str,
    gateway_too: bool,
) -> None:
    one, two = random_build((30_000, 100), 1, "1"), random_build((40_000,), 2, "2")
    real = durable.write
    kills = 0
    for fuse in range(10_000):
        world = World(tmp_path_factory.mktemp("world"))

        def write(path: Path, data: bytes, mode: int = 0o644, world: World = world) -> None:
            world.fuse.step()
            real(path, data, mode)
            world.fuse.step()

        monkeypatch.setattr(durable, "write", write)
        target = two
        if scenario != "first":
            world.order(one)
            world.run(lambda world=world: world.is_settled(one))  # type: ignore[misc]
        if scenario in ("back", "remove"):
            world.order(two)
            world.run(lambda world=world: world.is_settled(two))  # type: ignore[misc]
            target = one
        counter = world.book.state.counter
        good: set[str | None] = {None} if scenario == "first" else {one.digest}
        good |= {two.digest} if scenario in ("back", "remove", "swap", "first", "held") else set()
        good |= {None} if gateway_too or scenario == "remove" else set()

        if scenario == "held":
            world.locked_until = world.now + 12
        world.order(
            target,
            Action.REMOVE if scenario == "remove" else Action.RUN,
            conditions=Conditions(unlocked=True) if scenario == "held" else None,
        )

        def there(world: World = world, target: RandomBuild = target) -> bool:
            if scenario == "remove":
                return world.is_in(State.REMOVED) and world.serving_build is None
            return world.is_settled(target)

        world.fuse.left = fuse
        try:
            world.run(there)
        except Killed:
            kills += 1
            counter = check(world, counter, good | {None} if gateway_too else good)
            if gateway_too:
                world.gateway.lose_everything()
            world.boot()
            world.run(there)
            check(world, counter, good | {None} if scenario == "remove" else good)
        else:
            world.fuse.left = None
            break
        assert {path.name for path in (world.folder / "builds").iterdir()} <= {one.digest, two.digest}
    assert kills > (4 if scenario == "remove" else 20)


def test_a_gateway_that_dies_in_probation_gets_the_old_build_first(world: World, random_build: Make) -> None:
    one, two = random_build((100,), 1, "1"), random_build((100,), 2, "2")
    world.order(one)
    world.run(lambda: world.is_settled(one))
    world.order(two)
    world.run(lambda: world.is_in(State.PROBATION) and world.serving_build == two.digest)
    world.gateway.lose_everything()
    world.gateway.loads.clear()
    world.run(lambda: world.serving_build is not None)
    assert world.gateway.loads[0] == one.digest
    world.run(lambda: world.is_settled(two))


def test_a_build_in_whose_probation_the_gateway_dies_thrice_is_taken_back(world: World, random_build: Make) -> None:
    one, two = random_build((100,), 1, "1"), random_build((100,), 2, "2")
    world.order(one)
    world.run(lambda: world.is_settled(one))
    world.order(two)
    for _ in range(3):
        world.run(lambda: world.is_in(State.PROBATION) and world.serving_build == two.digest)
        world.gateway.lose_everything()
    world.run(lambda: world.is_in(State.ROLLED_BACK) and world.serving_build == one.digest)
    assert world.record.deployment.reason is Reason.PROBATION_INTERRUPTED
    # Not started again, until a newer order says so.
    world.gateway.loads.clear()
    for _ in range(20):
        world.round()
    assert two.digest not in world.gateway.loads
    world.order(two)
    world.run(lambda: world.is_settled(two))


def test_a_build_that_does_not_start_is_tried_three_times(world: World, random_build: Make) -> None:
    build = random_build((100,))
    world.gateway.bad[build.digest] = Reason.LOAD_TIMEOUT
    world.order(build)
    world.run(lambda: world.is_in(State.FAILED))
    assert world.gateway.loads == [build.digest] * 3
    for _ in range(30):
        world.round()
    assert len(world.gateway.loads) == 3


def test_a_build_that_cannot_load_is_tried_once(world: World, random_build: Make) -> None:
    build = random_build((100,))
    world.gateway.bad[build.digest] = Reason.GOLDEN_MISMATCH
    world.order(build)
    world.run(lambda: world.is_in(State.FAILED))
    assert world.gateway.loads == [build.digest]
    assert world.record.deployment.reason is Reason.GOLDEN_MISMATCH


def test_an_active_build_that_starts_no_more_gives_way_to_the_one_before(world: World, random_build: Make) -> None:
    one, two = random_build((100,), 1, "1"), random_build((100,), 2, "2")
    for build in (one, two):
        world.order(build)
        world.run(lambda build=build: world.is_settled(build))  # type: ignore[misc]
    world.gateway.bad[two.digest] = Reason.LOAD_FAILED
    world.gateway.lose_everything()
    world.boot()
    world.run(lambda: world.serving_build == one.digest)
    assert world.is_in(State.ROLLED_BACK)
    assert world.record.deployment.reason is Reason.QUARANTINED
    assert world.gateway.loads.count(two.digest) == 1 + 3


def test_an_active_build_that_rotted_is_not_loaded(world: World, random_build: Make) -> None:
    one, two = random_build((100,), 1, "1"), random_build((100,), 2, "2")
    for build in (one, two):
        world.order(build)
        world.run(lambda build=build: world.is_settled(build))  # type: ignore[misc]
    blob = world.folder / "blobs" / two.manifest.files[0].sha256
    blob.chmod(0o644)
    blob.write_bytes(b"x" * 100)
    world.gateway.lose_everything()
    world.gateway.loads.clear()
    world.reports.clear()
    world.run(lambda: world.is_settled(two))
    assert world.gateway.loads == [one.digest, two.digest]
    first = world.reports[0]
    assert (first.state, first.reason, first.previous) == (State.FETCHING, Reason.DIGEST_MISMATCH, one.digest)
    assert blob.read_bytes() == two.contents[1]


def test_an_only_build_that_rotted_is_fetched_again(world: World, random_build: Make) -> None:
    build = random_build((9_000, 100))
    world.order(build)
    world.run(lambda: world.is_settled(build))
    blob = world.folder / "blobs" / build.manifest.files[0].sha256
    blob.chmod(0o644)
    blob.write_bytes(b"x" * 9_000)
    world.gateway.lose_everything()
    world.boot()
    world.run(lambda: world.is_settled(build))
    assert blob.read_bytes() == build.contents[1]
    assert world.record.deployment.bytes_fetched < 2 * sum(map(len, build.contents))


def test_the_gateway_goes_back_and_control_learns_of_it_later(world: World, random_build: Make) -> None:
    one, two = random_build((100,), 1, "1"), random_build((100,), 2, "2")
    world.order(one)
    world.run(lambda: world.is_settled(one))
    world.order(two)
    world.run(lambda: world.is_in(State.PROBATION) and world.serving_build == two.digest)
    # Control is dead while it happens.
    world.now += 1
    world.gateway.crash_active("m", world.clock())
    world.boot()
    world.run(lambda: world.is_in(State.ROLLED_BACK))
    last = world.reports[-1]
    assert (last.state, last.reason, last.previous) == (State.ROLLED_BACK, Reason.RUNNER_CRASHED, one.digest)


def test_what_a_kill_kept_from_the_spool_is_told_at_the_next_start(world: World, random_build: Make) -> None:
    build = random_build((100,))
    world.order(build)
    world.run(lambda: world.is_settled(build))
    told = list(world.reports)
    world.reports.clear()
    world.deployments.tell_again(reversed(told))
    assert not world.reports  # the newest that is on its way says it
    world.deployments.tell_again(())
    assert not world.reports  # nothing is on its way: the hello says it
    world.deployments.tell_again(reversed(told[:-1]))
    assert [(report.state, report.assignment) for report in world.reports] == [(State.ACTIVE, world.order_id)]


def test_no_space_is_refused_and_tried_again_when_there_is_some(world: World, random_build: Make) -> None:
    build = random_build((50_000,))
    world.free = 1000
    world.order(build)
    world.run(lambda: world.is_in(State.REFUSED))
    assert world.record.deployment.reason is Reason.NO_SPACE
    world.free = 10**9
    world.run(lambda: world.is_settled(build), rounds=200)


def test_a_disk_that_takes_no_state_delays_and_loses_nothing(
    world: World, random_build: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = random_build((100,), 1, "1"), random_build((5000,), 2, "2")
    world.order(one)
    world.run(lambda: world.is_settled(one))
    working = durable.write

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(durable, "write", full)
    world.order(two)
    with pytest.raises(AssertionError, match="not there"):
        world.run(lambda: world.is_settled(two), rounds=10)
    assert world.serving_build == one.digest
    monkeypatch.setattr(durable, "write", working)
    world.newest = None  # it is not even told again
    world.run(lambda: world.is_settled(two))


def test_refused_orders_change_nothing_and_are_told_once(world: World, random_build: Make) -> None:
    one = random_build((100,), 1, "1")
    world.order(one)
    world.run(lambda: world.is_settled(one))
    before = read_state(world.folder)
    stranger = Ed25519PrivateKey.generate()
    forged = Assignment(
        id="forged",
        device="d1",
        counter=999,
        issued_ms=0,
        expires_ms=1 << 50,
        model="m",
        version="1",
        build=one.digest,
    )
    for key, order in ((stranger, forged), (DIRECTOR, forged.__class__(**{**_fields(forged), "device": "d2"}))):
        payload = encode(Order(assignment=seal(order, ASSIGNMENT_TYPE, [key]), manifest=world.sealed(one)))
        world.reports.clear()
        for _ in range(3):
            world.deployments.order(payload)
        (report,) = world.reports
        assert report.state is State.REFUSED
        assert report.reason in (Reason.BAD_SIGNATURE, Reason.WRONG_DEVICE)
    # The newest order told again is no news either.
    world.reports.clear()
    assert world.newest is not None
    world.deployments.order(world.newest)
    assert not world.reports
    assert read_state(world.folder) == before


def _fields(order: Assignment) -> dict[str, Any]:
    return {name: getattr(order, name) for name in order.__struct_fields__}
