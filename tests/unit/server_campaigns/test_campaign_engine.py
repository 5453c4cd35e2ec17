"""The campaign engine: single decisions of a campaign from its start to its end.

Pace is in `test_campaign_engine_pace`, failures in `test_campaign_engine_failures`; what holds over random interleavings in
`test_campaign_machine`.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from covey_server.core.engine import (
    AcceptBreach,
    Action,
    Admit,
    Approve,
    Assign,
    Breach,
    CampaignState,
    Close,
    Observed,
    OwnApprovalError,
    PassStage,
    RefusedError,
    Restore,
    RestoreCounts,
    SetState,
    SkipSoak,
    StageCounts,
    StartStage,
    Wait,
    command,
    decide,
)
from covey_server.core.spec import parse_moment, parse_spec
from tests.unit.server_campaigns.engine_campaign import FILE, PLANNED, RUNNING, observed, waits, with_file
from tests.unit.server_campaigns.small_world import BAD, GOOD, NONE


def test_a_started_campaign_starts_its_first_stage() -> None:
    fresh = replace(RUNNING, stage_started=False)
    assert decide(fresh, observed(StageCounts(planned=1)), 0)[:2] == [StartStage(0), Assign(0)]


def test_it_says_why_it_waits() -> None:
    seen = observed(StageCounts(active=1), None, NONE, settled=1000)
    assert decide(RUNNING, seen, 4000) == [Wait("canary: 1 of 1 active; latency has 64 of 100 requests; soak 7 s left")]
    seen = observed(StageCounts(active=1, busy=1, silent=1, away=3), None, GOOD, settled=0)
    assert (
        waits(decide(RUNNING, seen, 60_000)) == "canary: 1 of 6 active; 2 in progress; 1 of at least 3 reached (3 off)"
    )


def test_a_stage_passes_into_the_next_once_all_holds() -> None:
    decisions = decide(RUNNING, observed(StageCounts(active=1), None, GOOD), 10_000)
    assert decisions[:3] == [PassStage(0, "stage canary passed: 1 of 1 active"), StartStage(1), Assign(1)]


def test_devices_that_are_off_do_not_block_and_the_end_says_so() -> None:
    last = replace(RUNNING, stage=1)
    seen = observed(StageCounts(active=1), StageCounts(active=3, away=2), GOOD)
    decisions = decide(last, seen, 0)
    assert SetState(CampaignState.DONE, "done", "done: 4 of 6 devices active, 2 to catch up") in decisions


def test_an_empty_stage_passes_without_evidence() -> None:
    assert decide(RUNNING, observed(StageCounts(), None, NONE), 0)[0] == PassStage(0, "stage canary is empty")


@pytest.mark.parametrize(
    ("on_breach", "state"),
    [("pause", CampaignState.PAUSED), ("halt", CampaignState.HALTED), ("rollback", CampaignState.ROLLING_BACK)],
)
def test_a_breach_leads_to_what_the_file_says(on_breach: str, state: CampaignState) -> None:
    spec = parse_spec(FILE.replace("rollback", on_breach))
    decisions = decide(replace(RUNNING, spec=spec), observed(StageCounts(active=1), None, BAD), 0)
    assert decisions[0] == Breach(0, BAD)
    assert isinstance(decisions[1], SetState)
    assert decisions[1].state is state
    assert (Restore() in decisions) == (state is CampaignState.ROLLING_BACK)
    assert "p99 4 -> 40 ms" in waits(decisions)


def test_late_install_failures_of_a_passed_stage_count() -> None:
    decisions = decide(replace(RUNNING, stage=1), observed(StageCounts(failed=1), StageCounts(active=4), GOOD), 0)
    assert isinstance(decisions[0], Breach)
    assert (decisions[0].stage, decisions[0].verdict.gate) == (0, "install_failures")


@pytest.mark.parametrize(("active", "breached"), [(1, False), (17, True)])
def test_the_rate_of_install_failures_counts_from_enough_devices_that_ended_well_or_badly(
    active: int, breached: bool
) -> None:
    spec = parse_spec(FILE + "gates:\n  install_failures: {max_rate: 0.1, min_devices: 5}\n")
    late = replace(RUNNING, spec=spec, stage=1)
    decisions = decide(late, observed(StageCounts(failed=3, active=active), StageCounts(busy=4), GOOD), 0)
    assert isinstance(decisions[0], Breach) == breached


def test_install_failures_are_weighed_against_the_devices_that_have_an_order() -> None:
    spec = parse_spec(FILE + "gates:\n  install_failures: {method: e_process, base_rate: 0.01}\n")
    late = replace(RUNNING, spec=spec, stage=1)
    canary = StageCounts(failed=8, active=12, planned=5000)  # of 5,020, eight would be few
    decisions = decide(late, observed(canary, StageCounts(busy=4), GOOD), 0)
    assert isinstance(decisions[0], Breach)


def test_an_accepted_breach_does_not_trip_again() -> None:
    accepted = replace(RUNNING, accepted=frozenset({(0, "latency")}))
    assert isinstance(decide(accepted, observed(StageCounts(active=1), None, BAD), 10_000)[0], PassStage)


def test_an_accepted_failure_of_an_earlier_stage_does_not_trip_in_each_later_one() -> None:
    late = replace(RUNNING, stage=1, accepted=frozenset({(0, "install_failures")}))
    decisions = decide(late, observed(StageCounts(failed=1), StageCounts(busy=4), GOOD), 0)
    assert waits(decisions).startswith("rest: 0 of 4 active; 4 in progress")


def test_a_paused_campaign_still_protects_its_devices() -> None:
    paused = replace(RUNNING, state=CampaignState.PAUSED)
    assert decide(paused, observed(StageCounts(planned=1), None, GOOD), 0) == []
    assert Restore() in decide(paused, observed(StageCounts(active=1), None, BAD), 0)


@pytest.mark.parametrize(
    ("restore", "state", "words"),
    [
        (RestoreCounts(restored=2), CampaignState.ROLLED_BACK, "2 of 2 devices restored"),
        (
            RestoreCounts(restored=1, away=1),
            CampaignState.ROLLED_BACK,
            "1 of 2 devices restored, 1 off; their order waits for them",
        ),
        (RestoreCounts(restored=1, failed=1), CampaignState.FAILED, "1 of 2 devices restored, 1 could not go back"),
    ],
)
def test_going_back_ends_once_nobody_is_waited_for(restore: RestoreCounts, state: CampaignState, words: str) -> None:
    back = replace(RUNNING, state=CampaignState.ROLLING_BACK)
    assert decide(back, Observed((), restore=restore), 0)[0] == SetState(state, state.value, words)
    waiting = decide(back, Observed((), restore=replace(restore, restoring=1)), 0)
    assert len(waiting) == 1


TABLE = {
    Action.START: ("planned", "queued running"),
    Action.APPROVE: ("", ""),
    Action.PAUSE: ("running", "paused"),
    Action.RESUME: ("paused", "running"),
    Action.ABORT: ("planned queued running paused halted", "aborted"),
    Action.CLOSE: ("", "done"),
    Action.ROLLBACK: ("running paused halted aborted done failed", "rolling_back rolled_back"),
    Action.SKIP_SOAK: ("running paused", ""),
    Action.RETRY: ("running paused done", ""),
}


@pytest.mark.parametrize("action", Action)
@pytest.mark.parametrize("state", CampaignState)
def test_every_word_in_every_state(action: Action, state: CampaignState) -> None:
    takes, already = (words.split() for words in TABLE[action])
    campaign = replace(RUNNING, state=state)
    if state.value in already:
        assert command(campaign, action, "ann") == []
    elif state.value in takes:
        assert command(campaign, action, "ann")
    else:
        with pytest.raises(RefusedError, match=r"cannot|nothing of the campaign waits for approval"):
            command(campaign, action, "ann")


def test_skipping_a_soak_twice_is_skipping_it_once() -> None:
    assert command(RUNNING, Action.SKIP_SOAK, "ann") == [SkipSoak(0)]
    skipped = replace(RUNNING, soak_skipped=True)
    assert command(skipped, Action.SKIP_SOAK, "ann") == []
    assert isinstance(decide(skipped, observed(StageCounts(active=1), None, GOOD), 0)[0], PassStage)


# --- starting ----------------------------------------------------------------------------------------------------------


def test_approval_is_waited_for_and_nobody_approves_their_own_campaign() -> None:
    planned = with_file(PLANNED, ("", "approval: true"))
    started = command(planned, Action.START, "ann")
    assert started[0] == SetState(
        CampaignState.QUEUED, "queued", "started by ann; waits for approval by somebody other than ann"
    )
    queued = replace(planned, state=CampaignState.QUEUED)
    assert decide(queued, observed(StageCounts(planned=1)), 0) == [
        Wait("queued: waits for approval by somebody other than ann")
    ]
    with pytest.raises(OwnApprovalError, match="somebody else has to approve it"):
        command(queued, Action.APPROVE, "ann")
    assert command(queued, Action.APPROVE, "bob") == [Approve(None)]
    approved = replace(queued, approved=True)
    assert command(approved, Action.APPROVE, "eve") == []
    first = decide(approved, observed(StageCounts(planned=1)), 0)[0]
    assert isinstance(first, SetState)
    assert first.state is CampaignState.RUNNING


def test_a_stage_may_need_approval_of_its_own() -> None:
    running = with_file(replace(RUNNING, author="ann"), ("percent: 100", "percent: 100, approval: true"))
    decisions = decide(running, observed(StageCounts(active=1), None, GOOD), 10_000)
    assert decisions == [
        PassStage(0, "stage canary passed: 1 of 1 active"),
        Wait("rest: waits for approval by somebody other than ann"),
    ]
    waiting = replace(running, stage=1, stage_started=False)
    assert not any(isinstance(each, StartStage) for each in decide(waiting, observed(StageCounts(active=1)), 10_000))
    assert command(waiting, Action.APPROVE, "bob") == [Approve(1)]
    assert command(running, Action.APPROVE, "bob", stage=1) == [Approve(1)]
    with pytest.raises(RefusedError, match="stage canary needs no approval"):
        command(running, Action.APPROVE, "bob", stage=0)
    approved = replace(waiting, approved_stages=frozenset({1}))
    assert StartStage(1) in decide(approved, observed(StageCounts(active=1)), 10_000)
    assert command(approved, Action.APPROVE, "bob") == []


def test_a_start_time_is_waited_for() -> None:
    planned = with_file(PLANNED, ("", "schedule: {start: 2026-12-01T22:00:00Z}"))
    start_ms = parse_moment("2026-12-01T22:00:00Z").ms
    assert waits(command(planned, Action.START, "ann", now_ms=start_ms - 1)) == "queued: starts 2026-12-01 22:00 UTC"
    queued = replace(planned, state=CampaignState.QUEUED)
    assert waits(decide(queued, observed(StageCounts(planned=1)), start_ms - 1)).startswith("queued: starts")
    assert isinstance(decide(queued, observed(StageCounts(planned=1)), start_ms)[0], SetState)
    assert isinstance(command(planned, Action.START, "ann", now_ms=start_ms)[0], SetState)


def test_a_stage_may_have_a_start_time() -> None:
    running = with_file(RUNNING, ("percent: 100", "percent: 100, not_before: 2026-12-01T22:00:00Z"))
    start_ms = parse_moment("2026-12-01T22:00:00Z").ms
    seen = observed(StageCounts(active=1), None, GOOD)
    assert waits(decide(running, seen, start_ms - 1)) == "rest: starts 2026-12-01 22:00 UTC"
    assert StartStage(1) in decide(running, seen, start_ms)


def test_a_campaign_queues_behind_those_that_are_under_way() -> None:
    seen = replace(observed(StageCounts(planned=1)), rivals=("other",))
    assert waits(command(PLANNED, Action.START, "ann", rivals=("other",))) == "queued: waits for other to end"
    queued = replace(PLANNED, state=CampaignState.QUEUED)
    assert waits(decide(queued, seen, 0)) == "queued: waits for other to end"
    assert isinstance(decide(queued, replace(seen, rivals=()), 0)[0], SetState)


@pytest.mark.parametrize(
    ("at_end", "state"),
    [("pause", CampaignState.PAUSED), ("abort", CampaignState.ABORTED), ("rollback", CampaignState.ROLLING_BACK)],
)
def test_a_campaign_has_an_end(at_end: str, state: CampaignState) -> None:
    running = with_file(RUNNING, ("", f"schedule: {{end: 2026-12-01T22:00:00Z, at_end: {at_end}}}"))
    end_ms = parse_moment("2026-12-01T22:00:00Z").ms
    seen = observed(StageCounts(busy=1))
    assert waits(decide(running, seen, end_ms - 1)).startswith("canary: 0 of 1 active; 1 in progress")
    decisions = decide(running, seen, end_ms)
    assert state in [each.state for each in decisions if isinstance(each, SetState)]
    assert (Restore() in decisions) == (at_end == "rollback")
    assert not any(isinstance(each, Assign) for each in decisions)
    if at_end == "pause":
        resumed = command(replace(running, state=CampaignState.PAUSED), Action.RESUME, "ann", [(0, "schedule")])
        assert resumed[0] == AcceptBreach(0, "schedule")
        accepted = replace(running, accepted=frozenset({(0, "schedule")}))
        assert waits(decide(accepted, seen, end_ms)).startswith("canary: 0 of 1 active; 1 in progress")


def test_a_queued_campaign_whose_time_is_over_does_not_start() -> None:
    queued = with_file(replace(PLANNED, state=CampaignState.QUEUED), ("", "schedule: {end: 2026-12-01T22:00:00Z}"))
    decisions = decide(queued, observed(StageCounts(planned=1)), parse_moment("2026-12-01T22:00:00Z").ms)
    assert isinstance(decisions[0], SetState)
    assert decisions[0].state is CampaignState.ABORTED


# --- live --------------------------------------------------------------------------------------------------------------


def test_a_live_campaign_looks_for_newcomers_now_and_then_and_stays_open() -> None:
    running = with_file(RUNNING, ("", "target: {groups: [all], membership: live}"))
    seen = observed(StageCounts(busy=1))
    assert decide(running, seen, 100_000)[0] == Admit(0)
    looked = replace(running, admitted_ms=100_000)
    assert Admit(0) not in decide(looked, seen, 129_999)
    assert Admit(0) in decide(looked, seen, 130_000)
    assert Admit(0) in decide(looked, seen, 50_000)  # the clock was set back
    last = replace(looked, stage=1)
    done = decide(last, observed(StageCounts(active=1), StageCounts(active=4), GOOD), 100_000)
    assert SetState(CampaignState.DONE, "done", "done: 5 of 5 devices active", is_open=True) in done
    tail = replace(last, state=CampaignState.DONE, is_open=True)
    came = observed(StageCounts(active=1), StageCounts(active=4, planned=1))
    assert decide(tail, came, 200_000)[:2] == [Admit(1), Assign(1)]
    assert command(tail, Action.CLOSE, "ann") == [Close("closed by ann")]
    assert command(replace(tail, is_open=False), Action.CLOSE, "ann") == []
    assert decide(replace(tail, is_open=False), came, 200_000) == []


def test_newcomers_that_fail_stop_an_open_campaign() -> None:
    tail = replace(with_file(RUNNING, ("", "target: {groups: [all], membership: live}")), stage=1, is_open=True)
    tail = replace(tail, state=CampaignState.DONE)
    decisions = decide(tail, observed(StageCounts(active=1), StageCounts(active=4, failed=2)), 0)
    assert isinstance(decisions[0], Breach)
    assert Restore() in decisions
