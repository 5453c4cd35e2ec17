"""Slots and probation: pure decisions."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey_agent.gateway.probation import HANG_FLOOR_S, Failing, Judge, hang_after, patience
from covey_agent.gateway.slots import SlotError, Slots
from covey_contract.histogram import Histogram, Recorder
from covey_contract.messages import Probation
from covey_contract.reasons import Reason

TRIAL = Probation()


def test_a_swap_that_settles() -> None:
    slots = Slots().with_candidate("a").switched("a", None)
    assert (slots.active, slots.previous, slots.candidate) == ("a", None, None)
    slots = slots.with_candidate("b").switched("b", TRIAL)
    assert (slots.active, slots.previous, slots.may_revert) == ("b", "a", True)
    after = slots.settled()
    assert slots.dropped(after) == {"a"}
    assert (after.active, after.may_revert) == ("b", False)


def test_a_swap_that_reverts() -> None:
    slots = Slots(active="a").with_candidate("b").switched("b", TRIAL)
    after = slots.reverted()
    assert (after.active, after.previous, after.probation) == ("a", None, None)
    assert slots.dropped(after) == {"b"}


def test_a_newer_candidate_replaces_the_older() -> None:
    slots = Slots(active="a").with_candidate("b")
    after = slots.with_candidate("c")
    assert slots.dropped(after) == {"b"}
    assert after.with_candidate("a") == after


def test_a_swap_in_probation_gives_up_the_oldest() -> None:
    slots = Slots(active="a").with_candidate("b").switched("b", TRIAL).with_candidate("c")
    after = slots.switched("c", TRIAL)
    assert (after.active, after.previous) == ("c", "b")
    assert slots.dropped(after) == {"a"}


def test_back_to_previous_by_a_switch() -> None:
    slots = Slots(active="a").with_candidate("b").switched("b", TRIAL)
    after = slots.switched("a", None)
    assert after == Slots(active="a")
    assert slots.dropped(after) == {"b"}


def test_without_probation_there_is_no_way_back() -> None:
    slots = Slots(active="a").with_candidate("b").switched("b", None)
    assert (slots.previous, slots.may_revert) == (None, False)


def test_the_first_build_in_probation_is_given_up_when_it_fails() -> None:
    slots = Slots().with_candidate("a").switched("a", TRIAL)
    assert slots.may_revert
    assert slots.reverted() == Slots()


def test_a_lost_previous_build_takes_the_way_back_along() -> None:
    slots = Slots(active="a").with_candidate("b").switched("b", TRIAL).without("a")
    assert (slots.active, slots.previous, slots.may_revert) == ("b", None, False)


def test_orders_that_do_not_fit() -> None:
    with pytest.raises(SlotError):
        Slots(active="a").switched("b", None)
    with pytest.raises(SlotError):
        Slots().reverted()


ORDERS = st.lists(
    st.tuples(st.sampled_from(["load", "switch", "trial", "settle", "revert", "unload"]), st.sampled_from("abcd"))
)


@given(ORDERS)
def test_no_build_is_ever_in_two_slots(orders: list[tuple[str, str]]) -> None:
    slots = Slots()
    for order, build in orders:
        before = slots
        try:
            match order:
                case "load":
                    slots = slots.with_candidate(build)
                case "switch":
                    slots = slots.switched(build, None)
                case "trial":
                    slots = slots.switched(build, TRIAL)
                case "settle":
                    slots = slots.settled()
                case "revert":
                    slots = slots.reverted()
                case _:
                    slots = slots.without(build)
        except SlotError:
            continue
        held = [name for name in (slots.active, slots.previous, slots.candidate) if name is not None]
        assert len(held) == len(set(held))
        assert slots.previous is None or slots.probation is not None
        assert before.dropped(slots) == before.builds - slots.builds


def test_errors_are_forgiven_up_to_a_number() -> None:
    judge = Judge(Probation(max_errors=2))
    assert judge.failed_one(Failing.ERROR, "e") is None
    assert judge.failed_one(Failing.LATE, "l") is None
    verdict = judge.failed_one(Failing.ERROR, "third")
    assert verdict is not None
    assert verdict.reason is Reason.INFERENCE_ERRORS
    assert "third" in verdict.detail


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        (Failing.CRASHED, Reason.RUNNER_CRASHED),
        (Failing.HUNG, Reason.RUNNER_HUNG),
        (Failing.BAD_OUTPUT, Reason.BAD_OUTPUT),
    ],
)
def test_some_failures_are_never_forgiven(how: Failing, reason: Reason) -> None:
    verdict = Judge(Probation(max_errors=100)).failed_one(how, "x")
    assert verdict is not None
    assert verdict.reason is reason


def histogram(*seconds: float) -> Histogram:
    recorder = Recorder()
    for value in seconds:
        recorder.record(value)
    return recorder.snapshot()


def test_latency_is_judged_with_enough_evidence_only() -> None:
    judge = Judge(Probation(max_slowdown=2.0, min_requests=10))
    slow, fast = histogram(*[0.03] * 10), histogram(*[0.01] * 10)
    assert judge.latency(slow, histogram(*[0.01] * 9)) is None
    assert judge.latency(histogram(*[0.03] * 9), fast) is None
    assert judge.latency(histogram(*[0.019] * 10), fast) is None
    verdict = judge.latency(slow, fast)
    assert verdict is not None
    assert verdict.reason is Reason.TOO_SLOW
    assert [judge.answered_one() for _ in range(21)] == [False] * 9 + [True] + [False] * 9 + [True, False]
    assert Judge(Probation()).latency(slow, fast) is None


def test_how_long_is_waited() -> None:
    assert hang_after(30.0, Histogram()) == 30.0
    assert hang_after(30.0, histogram(0.001)) == HANG_FLOOR_S
    assert math.isclose(hang_after(30.0, histogram(0.1)), 5.0)
    assert hang_after(30.0, histogram(10.0)) == 30.0
    assert patience(4.0) == 2.0
