"""A slice of `./dev faults`: a few points of every operation, with every fault; and that the rig does notice what it is there for."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator

import pytest

from covey_contract.lifecycle import State
from covey_hil.faults.bench import Bench, Outlived
from covey_hil.faults.disk import why_not
from covey_hil.faults.journal import Written
from covey_hil.faults.operations import BY_NAME
from covey_hil.faults.strace import Injection
from covey_hil.faults.sweep import Fault, Point, bench_in_memory, points_of, try_point

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")

# Of each operation: about 60 points in all.
POINTS = 4
CUT_AT = [State.ASSIGNED, State.FETCHING, State.VERIFYING, State.STAGED, State.WARMING, State.PROBATION, State.ACTIVE]


# What the sweep has found once: the operation, the fault, the call and what is in its words; all that match are tried.
FOUND = {
    "a half of a file stays for ever": ("swap", Fault.KILL, "rename", r"/\.state\.json\.\d+\.tmp"),
    "fetched bytes stay beside their build": ("swap", Fault.KILL, "openat", r"/\.state\.copy\.json\.\d+\.tmp"),
    "an order that cannot be read once has failed for good": ("swap", Fault.EIO, "read", r"/orders/"),
    "an order that cannot be opened once has failed for good": ("swap", Fault.EIO, "openat", r"/orders/101\.json"),
    "a blob that cannot be looked at once is taken for missing": ("swap", Fault.EIO, "newfstatat", r"/blobs/\w{64}\""),
    "a build that cannot be read once is taken for damaged": ("start", Fault.EIO, "openat", r"/builds/\w{64}/"),
    "a spool that opens to read only": ("resume on trial", Fault.ENOSPC, "openat", r"outbox\.db-wal"),
    "an older report is believed": ("remove", Fault.FULL, "pwrite64", r"outbox\.db-wal"),
    "a start that went well is counted as failed": ("start", Fault.KILL, "rename", r"/\.state\.json\.\d+\.tmp"),
    "a full disk keeps the agent from starting": ("start", Fault.FULL, "write", r"/\.state\.json\.\d+\.tmp"),
}


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with bench_in_memory() as made:
        yield made


@pytest.fixture(scope="module")
def no_power_cuts(tmp_path_factory: pytest.TempPathFactory) -> str | None:
    return why_not(tmp_path_factory.mktemp("disk"))


@pytest.mark.parametrize("operation", BY_NAME)
def test_any_call_may_be_the_last_or_fail(bench: Bench, operation: str) -> None:
    points = [point for point in points_of(bench, operation) if point.fault is not Fault.POWER]
    drawn = [points[(2 * at + 1) * len(points) // (2 * POINTS)] for at in range(POINTS)]
    outcomes = [try_point(bench, point) for point in drawn]
    assert all(outcome.reached for outcome in outcomes)
    assert [(str(outcome.point), outcome.wrong) for outcome in outcomes if outcome.wrong] == []


@pytest.mark.parametrize("found", FOUND.values(), ids=FOUND)
def test_what_was_found_stays_mended(bench: Bench, found: tuple[str, Fault, str, str]) -> None:
    operation, fault, call, words = found
    points = [
        point
        for point in points_of(bench, operation)
        if (point.fault, point.call.name) == (fault, call) and re.search(words, point.call.words)
    ]
    assert points
    outcomes = [try_point(bench, point) for point in points]
    assert all(outcome.reached for outcome in outcomes)
    assert [(str(outcome.point), outcome.wrong) for outcome in outcomes if outcome.wrong] == []


@pytest.mark.root
@pytest.mark.parametrize("state", CUT_AT, ids=str)
def test_a_power_cut_as_soon_as_a_state_is_stored(bench: Bench, no_power_cuts: str | None, state: State) -> None:
    if no_power_cuts is not None:
        pytest.skip(no_power_cuts)
    outcome = try_point(bench, after_state(bench, "swap", state))
    assert outcome.reached
    assert outcome.wrong == ()


@pytest.mark.root
def test_a_disk_that_lies_about_flushing_is_noticed(bench: Bench, no_power_cuts: str | None) -> None:
    """The rig can tell: without fsync and fdatasync the same power cut loses what was promised."""
    if no_power_cuts is not None:
        pytest.skip(no_power_cuts)

    class Lied(Point):
        @property
        def injections(self) -> tuple[Injection, ...]:
            never = (Injection(name, "retval=0", 1, lasting=True) for name in ("fsync", "fdatasync"))
            return (*super().injections, *never)

    honest = after_state(bench, "swap", State.ACTIVE)
    outcome = try_point(bench, Lied(honest.operation, honest.fault, honest.call, honest.full))
    assert outcome.reached
    assert any("went back" in wrong or "not whole" in wrong for wrong in outcome.wrong)


def after_state(bench: Bench, operation: str, state: State) -> Point:
    """The power cut at the first call after the book held the state."""
    heard: list[Written] = []

    def hear(outlived: Outlived) -> None:
        heard.extend(entry for entry in outlived.entries if isinstance(entry, Written))

    points = points_of(bench, operation, hear)
    generation = next(written.generation for written in heard if written.state is state and written.counter > 100)
    sent = f'\\"generation\\":{generation},'
    told = next(at for at, point in enumerate(points) if sent in point.call.words)
    return next(point for point in points[told:] if point.fault is Fault.POWER)
