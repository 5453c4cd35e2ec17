"""The campaign engine: single decisions. What holds over random interleavings is in `test_campaign_machine`."""

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
    Decision,
    HandOut,
    Observed,
    OwnApprovalError,
    PassStage,
    Progress,
    RefusedError,
    Restore,
    RestoreCounts,
    Retry,
    SetState,
    SkipSoak,
    StageCounts,
    StartStage,
    TimeOut,
    Wait,
    command,
    decide,
    upkeep,
)
from covey_server.core.gates import Verdict
from covey_server.core.pace import Meter
from covey_server.core.spec import parse_moment, parse_spec

FILE = """
name: c
model: m
version: "2"
stages:
  - {name: canary, group: canary, soak: 10s}
  - {name: rest, percent: 100}
min_reached: 0.5
on_breach: rollback
"""
SPEC = parse_spec(FILE)
GOOD = Verdict("latency", "passing", "fine", {})
BAD = Verdict("latency", "breached", "p99 4 -> 40 ms", {"ratio": 10.0})
NONE = Verdict("latency", "no_evidence", "64 of 100 requests", {})
RUNNING = Progress(SPEC, CampaignState.RUNNING, stage=0, stage_started=True)


def observed(canary: StageCounts, rest: StageCounts | None = None, *verdicts: Verdict, settled: int = 0) -> Observed:
    return Observed((canary, rest or StageCounts(planned=4)), verdicts, settled)


def waits(decisions: list[Decision]) -> str:
    assert isinstance(decisions[-1], Wait)
    return decisions[-1].why


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


# --- starting -----------------------------------------------------------------------------------------------------

PLANNED = replace(RUNNING, state=CampaignState.PLANNED, stage_started=False, author="ann")


def with_file(campaign: Progress, *changes: tuple[str, str]) -> Progress:
    """The same with another campaign file: `changes` are what is replaced by what, or lines to be added."""
    text = FILE
    for old, new in changes:
        text = text.replace(old, new) if old else f"{text}{new}\n"
    return replace(campaign, spec=parse_spec(text))


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


# --- handing out --------------------------------------------------------------------------------------------------

FULL = Meter(issued=3, at_ms=0, devices=1.0, bytes=5e6)


def test_no_more_are_in_flight_than_the_pace_allows() -> None:
    running = with_file(RUNNING, ("", "pace: {in_flight: 5}"))
    seen = observed(StageCounts(planned=9, busy=2, away=1, ready={"UTC": 9}))
    (order,) = [each for each in decide(running, seen, 0) if isinstance(each, Assign)]
    assert order.bounds is not None
    assert (order.stage, order.bounds.limit, order.bounds.zones) == (0, 2, None)
    full = observed(StageCounts(planned=9, busy=2, away=1, waiting=1, unknown=1, ready={"UTC": 9}))
    assert [each for each in decide(running, full, 0) if isinstance(each, Assign)] == []
    assert "9 to be assigned (5 in flight, at most 5); 2 in progress; 0 of at least 7" in waits(
        decide(running, full, 0)
    )


def test_a_stage_may_have_a_pace_of_its_own() -> None:
    running = with_file(RUNNING, ("", "pace: {in_flight: 5}"), ("count: ", ""), ("soak: 10s", "pace: {in_flight: 1}"))
    seen = observed(StageCounts(planned=9, ready={"UTC": 9}))
    (order,) = [each for each in decide(running, seen, 0) if isinstance(each, Assign)]
    assert order.bounds is not None
    assert order.bounds.limit == 1


def test_orders_go_out_so_many_a_minute() -> None:
    running = replace(with_file(RUNNING, ("", "pace: {per_minute: 30}")), meter=replace(FULL, devices=0.0))
    seen = observed(StageCounts(planned=9, ready={"UTC": 9}))
    assert waits(decide(running, seen, 1000)) == (
        "canary: 0 of 9 active; 9 to be assigned (30 a minute); 0 of at least 5 reached; soak 9 s left"
    )
    (order,) = [each for each in decide(running, seen, 4000) if isinstance(each, Assign)]
    assert order == Assign(0, HandOut(2, None, Meter(issued=3, at_ms=4000, devices=2.0, bytes=0.0)))


def test_the_pace_grows_with_success() -> None:
    growth = "pace: {per_minute: 60, growth: {per: 10, factor: 2, at_most: 300}}"
    running = replace(with_file(RUNNING, ("", growth)), stage=1, meter=replace(FULL, devices=0.0))
    for successes, allowed in ((0, 1), (9, 1), (10, 2), (29, 4), (100, 5), (5000, 5)):
        seen = observed(StageCounts(active=successes), StageCounts(planned=50, ready={"UTC": 50}), GOOD)
        (order,) = [each for each in decide(running, seen, 1000) if isinstance(each, Assign)]
        assert order.bounds is not None
        assert order.bounds.limit == allowed
    # Devices that ran the version before, or have answered nobody yet, are no success.
    seen = observed(StageCounts(active=100, already=60, unserved=35), StageCounts(planned=50, ready={"UTC": 50}), GOOD)
    (order,) = [each for each in decide(running, seen, 1000) if isinstance(each, Assign)]
    assert order.bounds is not None
    assert order.bounds.limit == 1


def test_orders_go_out_no_faster_than_builds_could_be_fetched() -> None:
    running = replace(with_file(RUNNING, ("", "pace: {bandwidth: 1MB/s}")), meter=FULL)
    seen = replace(observed(StageCounts(planned=9, ready={"UTC": 9})), build_bytes=2_000_000)
    (order,) = [each for each in decide(running, seen, 0) if isinstance(each, Assign)]
    assert order.bounds is not None
    assert order.bounds.limit == 2
    overdrawn = replace(running, meter=replace(FULL, bytes=-3e6))
    assert "9 to be assigned (at most 1MB/s)" in waits(decide(overdrawn, seen, 1000))
    assert any(isinstance(each, Assign) for each in decide(overdrawn, seen, 4000))


def test_orders_go_out_inside_the_devices_windows() -> None:
    window = 'maintenance: {windows: [{from: "22:00", to: "05:00"}]}'
    running = with_file(RUNNING, ("", window))
    seen = observed(StageCounts(planned=7, ready={"Europe/Berlin": 3, "Asia/Tokyo": 4}))
    at_ms = parse_moment("2026-12-01T21:30:00Z").ms  # 22:30 in Berlin, 06:30 in Tokyo
    (order,) = [each for each in decide(running, seen, at_ms) if isinstance(each, Assign)]
    assert order.bounds is not None
    assert order.bounds.zones == frozenset({"Europe/Berlin"})
    nobody = decide(running, seen, parse_moment("2026-12-01T09:00:00Z").ms)
    assert [each for each in nobody if isinstance(each, Assign)] == []
    assert "7 outside their maintenance window, the next opens 2026-12-01 13:00 UTC" in waits(nobody)


def test_devices_may_fetch_ahead_of_their_window() -> None:
    window = 'maintenance: {windows: [{from: "22:00", to: "05:00"}], fetch: ahead}'
    running = with_file(RUNNING, ("", window))
    seen = observed(StageCounts(planned=7, ready={"Europe/Berlin": 7}))
    noon = parse_moment("2026-12-01T12:00:00Z").ms
    assert Assign(0) in decide(running, seen, noon)


def test_what_is_not_there_does_not_hold_up_a_paced_stage_that_has_reached_enough() -> None:
    running = replace(with_file(RUNNING, ("", "pace: {in_flight: 5}")), stage=1)
    seen = observed(StageCounts(active=1), StageCounts(active=3, planned=2), GOOD)
    done = decide(running, seen, 0)
    assert SetState(CampaignState.DONE, "done", "done: 4 of 6 devices active, 2 to catch up", is_open=True) in done
    tail = replace(running, state=CampaignState.DONE, is_open=True)
    came = observed(StageCounts(active=1), StageCounts(active=3, planned=2, ready={"UTC": 1}))
    (order,) = [each for each in decide(tail, came, 0) if isinstance(each, Assign)]
    assert order.stage == 1
    assert decide(tail, observed(StageCounts(active=1), StageCounts(active=5)), 0)[0] == Close(
        "every device has had its order"
    )


def test_what_waits_for_its_device_does_not_hold_up_a_stage_that_has_reached_enough() -> None:
    seen = observed(StageCounts(active=2, waiting=1, unknown=1), None, GOOD)
    assert isinstance(decide(RUNNING, seen, 10_000)[0], PassStage)
    seen = observed(StageCounts(active=1, waiting=2, unknown=1), None, GOOD)
    assert "1 of at least 2 reached (1 fell silent, 2 waiting)" in waits(decide(RUNNING, seen, 10_000))


# --- served -------------------------------------------------------------------------------------------------------


def test_active_is_not_done_before_it_has_answered() -> None:
    seen = observed(StageCounts(active=4, unserved=1), None, GOOD)
    assert waits(decide(RUNNING, seen, 10_000)) == "canary: 4 of 4 active; 1 to answer a request"
    mute = observed(StageCounts(active=4, mute=3), None, GOOD)
    assert "1 of at least 2 reached (3 have answered no request)" in waits(decide(RUNNING, mute, 10_000))
    assert isinstance(decide(RUNNING, observed(StageCounts(active=4, mute=2), None, GOOD), 10_000)[0], PassStage)


# --- failures -----------------------------------------------------------------------------------------------------


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


# --- live ---------------------------------------------------------------------------------------------------------


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
