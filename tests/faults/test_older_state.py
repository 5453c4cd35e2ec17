"""The state folder that the first agent (0.1.0 as of 2026-11-21) left when it was killed in a build's probation, under the agent of today.

`data/first-agent.tar.gz` was written by that agent's own store, book and spool: build 1 is active, build 2 on probation, three reports
are not acknowledged, and a write of the state was cut short.
"""

from __future__ import annotations

import tarfile
from hashlib import sha256
from pathlib import Path

import pytest

from covey_agent.book import read_state
from covey_agent.core.telemetry import records
from covey_agent.daemon import take_up
from covey_agent.gateway.slots import Slots
from covey_agent.settings import Settings
from covey_contract.lifecycle import State
from covey_contract.messages import Probation, Telemetry
from covey_contract.reasons import Reason
from covey_hil.testing.agent_world import World
from covey_hil.testing.random_builds import RandomBuild

ARCHIVE = Path(__file__).parent / "data" / "first-agent.tar.gz"
ONE = "df38380fc1ea74a5b436ee0a91ce7901e18acb53ba138e144670e21aa456d348"
TWO = "59d2222f382923c453f5ef01df21bada5cedea88a87d3a8dd6f180e55b17fed6"
THEN_S = 1_700_000_000.0


@pytest.fixture
def state(tmp_path: Path) -> Path:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


@pytest.fixture
def world(state: Path) -> World:
    made = World(state, now=THEN_S + 2)
    made.order_id = "a2"
    return made


def test_a_probation_goes_on_under_the_gateway_that_lived_through_the_update(world: World) -> None:
    probation = Probation(seconds=3)
    world.gateway.models["m"] = Slots(active=TWO, previous=ONE, probation=probation)
    world.run(lambda: world.is_in(State.ACTIVE))
    assert (world.record.active, world.record.previous) == (TWO, ONE)
    assert world.book.state.counter == 2


def test_without_its_gateway_the_verified_build_serves_first(world: World) -> None:
    world.run(lambda: world.serving_build is not None)
    assert world.serving_build == ONE
    assert world.gateway.loads[0] == ONE


def test_the_next_order_is_followed(world: World) -> None:
    world.counter = 2
    build = RandomBuild((500,), 3, "3")
    world.order(build)
    world.run(lambda: world.is_settled(build))
    assert world.record.previous == ONE


def test_what_was_spooled_is_told_under_its_numbers(state: Path) -> None:
    taken = take_up(Settings(state=state), lambda: int(THEN_S * 1000))
    assert taken.last_exit in (Reason.INTERNAL, Reason.POWER_LOSS)
    due = taken.outbox.due(0.0)
    assert [record.seq - (1_700_000_000_000 << 10) for record in due] == [1, 2, 3]
    (more,) = records(Telemetry(seq=0, boot_id="b", start_ms=1, end_ms=2))
    taken.outbox.add(more)
    assert taken.outbox.due(1.0)[0].seq == due[-1].seq + 1
    taken.outbox.close()
    assert not list(state.glob(".*.tmp"))


def test_what_a_newer_agent_adds_is_passed_over(state: Path) -> None:
    """Fields are only ever added, so that an update of the agent can be taken back."""
    body = (state / "state.json").read_bytes().partition(b"\n")[2]
    newer = body[:-1] + b',"of_tomorrow":{"a":[1]},"generation":99}'
    for name in ("state.json", "state.copy.json"):
        (state / name).write_bytes(sha256(newer).hexdigest().encode() + b"\n" + newer)
    found = read_state(state)
    assert (found.generation, found.record("m").active) == (99, ONE)
