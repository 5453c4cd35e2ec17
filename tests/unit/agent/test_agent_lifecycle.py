"""The transition table: complete, and every state says how the agent goes on in it."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey_agent.core.lifecycle import RESUME, TABLE, Act, Event, LifecycleError, after, may_retry
from covey_agent.core.state import AgentState, Deployment, ModelRecord, candidate_of, moved, protected, status_of
from covey_contract.lifecycle import FINAL, State
from covey_contract.messages import Action, Assignment
from covey_contract.reasons import Reason

A, B, C = "a" * 64, "b" * 64, "c" * 64


def assignment(build: str = B, **changes: object) -> Assignment:
    order = Assignment(id="a1", device="d", counter=1, issued_ms=1, expires_ms=9, model="m", version="1", build=build)
    return msgspec.structs.replace(order, **changes)


def test_every_state_says_what_is_done_in_it_after_a_crash() -> None:
    assert set(RESUME) == set(State)
    assert all(RESUME[state] is Act.KEEP_SERVING for state in FINAL)
    assert all(RESUME[state] is not Act.KEEP_SERVING for state in set(State) - FINAL)


def test_every_state_is_reached_and_every_unfinished_one_can_be_left() -> None:
    assert {State.ASSIGNED, *TABLE.values()} == set(State)
    for state in set(State) - FINAL:
        assert any(before is state for before, _ in TABLE)
        assert (state, Event.SUPERSEDED) in TABLE


def test_what_the_table_does_not_hold_is_a_bug() -> None:
    for state in State:
        for event in Event:
            if (state, event) in TABLE:
                assert after(state, event) is TABLE[state, event]
            else:
                with pytest.raises(LifecycleError):
                    after(state, event)


def test_only_what_may_pass_is_tried_again() -> None:
    assert may_retry(State.FAILED, Reason.NO_SPACE)
    assert may_retry(State.REFUSED, Reason.NO_SPACE)
    assert not may_retry(State.FAILED, Reason.LOAD_FAILED)
    assert not may_retry(State.FAILED, Reason.SUPERSEDED)
    assert not may_retry(State.REFUSED, Reason.BAD_SIGNATURE)
    assert not may_retry(State.ACTIVE, Reason.NONE)
    assert not may_retry(State.ROLLED_BACK, Reason.RUNNER_CRASHED)


def test_slots_change_with_the_state() -> None:
    record = ModelRecord(active=A, previous=C, deployment=Deployment(order=assignment(), state=State.PROBATION))
    passed = moved(record, Event.PASSED, now_ms=5)
    assert (passed.active, passed.previous) == (B, A)
    reverted = moved(record, Event.REVERTED, now_ms=5, reason=Reason.TOO_SLOW, detail="slow")
    assert (reverted.active, reverted.previous) == (A, C)
    assert status_of("m", reverted).reason is Reason.TOO_SLOW
    fell = moved(passed, Event.FELL_BACK, now_ms=6, reason=Reason.QUARANTINED)
    assert (fell.active, fell.previous) == (A, None)
    removing = ModelRecord(active=A, deployment=Deployment(order=assignment(A, action=Action.REMOVE)))
    assert moved(removing, Event.REMOVE, now_ms=1).active is None


def test_the_candidate_is_protected_until_it_has_failed_for_good() -> None:
    def holding(state: State, reason: Reason = Reason.NONE) -> AgentState:
        deployment = Deployment(order=assignment(), state=state, reason=reason)
        return AgentState(models={"m": ModelRecord(active=A, previous=C, deployment=deployment)})

    assert protected(holding(State.FETCHING)) == {A, B, C}
    assert protected(holding(State.FAILED, Reason.NO_SPACE)) == {A, B, C}
    assert protected(holding(State.FAILED, Reason.LOAD_FAILED)) == {A, C}
    removing = ModelRecord(deployment=Deployment(order=assignment(action=Action.REMOVE)))
    assert candidate_of(removing) is None


@given(st.lists(st.sampled_from(sorted(Event)), max_size=30))
def test_no_walk_through_the_table_loses_the_active_build(events: list[Event]) -> None:
    """Whatever happens on the way, the active build changes by passing, falling back, breaking or removal alone. One whose files have
    rotted so that it does not start falls back too, until they are fetched again."""
    record = ModelRecord(active=A, previous=C, deployment=Deployment(order=assignment()))
    for event in events:
        assert record.deployment is not None
        if (record.deployment.state, event) not in TABLE:
            continue
        new = moved(record, event, now_ms=1)
        if event is Event.PASSED:
            assert (new.active, new.previous) == (B, record.previous if record.active == B else record.active)
        elif event in (Event.FELL_BACK, Event.ROTTED):
            assert (new.active, new.previous) == (record.previous, None)
        elif event in (Event.BROKE, Event.REMOVE):
            assert (new.active, new.previous) == (None, None)
        else:
            assert (new.active, new.previous) == (record.active, record.previous)
        record = new
