"""The campaign engine: to how many devices it hands out orders, and when a stage has reached enough of them."""

from __future__ import annotations

from dataclasses import replace

from covey_server.core.engine import (
    Assign,
    CampaignState,
    Close,
    HandOut,
    PassStage,
    SetState,
    StageCounts,
    decide,
)
from covey_server.core.pace import Meter
from covey_server.core.spec import parse_moment
from tests.unit.server_campaigns.engine_campaign import RUNNING, observed, waits, with_file
from tests.unit.server_campaigns.small_world import GOOD

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


# --- served ------------------------------------------------------------------------------------------------------------


def test_active_is_not_done_before_it_has_answered() -> None:
    seen = observed(StageCounts(active=4, unserved=1), None, GOOD)
    assert waits(decide(RUNNING, seen, 10_000)) == "canary: 4 of 4 active; 1 to answer a request"
    mute = observed(StageCounts(active=4, mute=3), None, GOOD)
    assert "1 of at least 2 reached (3 have answered no request)" in waits(decide(RUNNING, mute, 10_000))
    assert isinstance(decide(RUNNING, observed(StageCounts(active=4, mute=2), None, GOOD), 10_000)[0], PassStage)
