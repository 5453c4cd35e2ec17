"""The campaign engine: devices that failed are tried again, looked at or taken back."""

from __future__ import annotations

from dataclasses import replace

import pytest

from covey_server.core.engine import (
    Action,
    Breach,
    CampaignState,
    Observed,
    PassStage,
    RefusedError,
    Restore,
    RestoreCounts,
    Retry,
    SetState,
    StageCounts,
    TimeOut,
    Wait,
    command,
    decide,
    upkeep,
)
from tests.unit.server_campaigns.engine_campaign import RUNNING, observed, waits, with_file
from tests.unit.server_campaigns.small_world import BAD, GOOD


def test_failed_devices_are_tried_again_later_and_later() -> None:
    running = with_file(RUNNING, ("", "retry: {times: 3, after: 1m, factor: 3, causes: [failed]}\ntimeout: 10m"))
    assert upkeep(running, 1_000_000) == [
        TimeOut(400_000),
        Retry(1, 1_060_000, ("failed",)),
        Retry(2, 1_180_000, ("failed",)),
        Retry(3, 1_540_000, ("failed",)),
    ]
    assert upkeep(replace(running, state=CampaignState.HALTED), 0) == []
    assert upkeep(RUNNING, 0) == []


def test_a_device_that_is_to_be_tried_again_has_not_failed() -> None:
    seen = observed(StageCounts(active=1, retrying=1), None, GOOD)
    assert not any(isinstance(each, Breach) for each in decide(RUNNING, seen, 0))


def test_a_person_looks_at_what_failed_every_time() -> None:
    text = "retry: {times: 1, then: person}\ngates: {install_failures: {max_rate: 1}}"
    running = with_file(RUNNING, ("", text))
    seen = observed(StageCounts(active=9, failed=1), None, GOOD)
    decisions = decide(running, seen, 0)
    assert waits(decisions) == "paused: canary: 1 failed 2 times; a person is to look at it"
    accepted = replace(running, accepted=frozenset({(0, "retries")}))
    assert isinstance(decide(accepted, seen, 10_000)[0], PassStage)
    assert command(replace(running, state=CampaignState.PAUSED), Action.RETRY, "ann", stage=0, now_ms=7) == [
        Retry(None, 7, None, 0)
    ]


def test_failed_devices_of_a_done_campaign_can_be_tried_again() -> None:
    done = replace(RUNNING, state=CampaignState.DONE, stage=1)
    assert command(done, Action.RETRY, "ann")[1] == SetState(
        CampaignState.DONE, "reopened", "ann has failed devices tried again", is_open=True
    )


def test_a_breach_may_take_back_its_stage_alone() -> None:
    running = with_file(RUNNING, ("on_breach: rollback", "on_breach: {action: rollback, scope: stage}"))
    late = replace(running, stage=1)
    decisions = decide(late, observed(StageCounts(active=1), StageCounts(active=4), BAD), 0)
    assert Restore((1,)) in decisions
    back = replace(late, state=CampaignState.ROLLING_BACK, going_back=(1,))
    ended = decide(back, Observed((), restore=RestoreCounts(restored=4)), 0)
    assert ended == [
        SetState(CampaignState.HALTED, "stage_rolled_back", "rest went back: 4 of 4 devices restored"),
        Wait("halted: rest went back: 4 of 4 devices restored; roll back the rest or abort"),
    ]


def test_a_person_may_take_back_one_stage_then_the_rest() -> None:
    late = replace(RUNNING, stage=1)
    assert Restore((0,)) in command(late, Action.ROLLBACK, "ann", stage=0)
    back = replace(late, state=CampaignState.ROLLING_BACK, going_back=(0,))
    assert command(back, Action.ROLLBACK, "ann", stage=0) == []
    assert Restore((0, 1)) in command(back, Action.ROLLBACK, "ann", stage=1)
    assert Restore(None) in command(replace(back, state=CampaignState.HALTED), Action.ROLLBACK, "ann")
    with pytest.raises(RefusedError, match="stage rest has not started"):
        command(RUNNING, Action.ROLLBACK, "ann", stage=1)


def test_stages_have_gates_and_a_least_reach_of_their_own() -> None:
    strict = "percent: 100, min_reached: 1, gates: {install_failures: {max_count: 0}}"
    running = replace(with_file(RUNNING, ("percent: 100", strict)), stage=1)
    seen = observed(StageCounts(active=1), StageCounts(active=9, away=1), GOOD)
    assert "9 of at least 10 reached (1 off)" in waits(decide(running, seen, 0))
    tail = replace(running, state=CampaignState.DONE, is_open=True)
    assert isinstance(decide(tail, observed(StageCounts(active=1), StageCounts(active=30, failed=1)), 0)[0], Breach)
    assert not isinstance(decide(tail, observed(StageCounts(active=30, failed=1), StageCounts(active=1)), 0)[0], Breach)
