"""Gate verdicts over plain values."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from covey_contract.histogram import Recorder
from covey_server.core.gates import (
    DeviceEvidence,
    StageEvidence,
    Window,
    judge,
    judge_errors,
    judge_installs,
    judge_latency,
)
from covey_server.core.spec import ErrorGate, Gates, InstallGate, LatencyGate

LATENCY = LatencyGate(quantile=0.99, max_ratio=1.5, min_increase_ms=2, min_requests=100)
ERRORS = ErrorGate(max_rate=0.01, min_requests=50)


def windows(ms: float | Sequence[float], *, each: int = 50, failed: int = 0, seed: int = 1) -> tuple[Window, ...]:
    """One window for each of `ms` (six for a single number), of `each` requests around so many milliseconds."""
    source = random.Random(seed)
    made = []
    for middle in [ms] * 6 if isinstance(ms, int | float) else ms:
        recorder = Recorder()
        for _ in range(each):
            recorder.record(middle / 1000 * source.lognormvariate(0, 0.1))
        made.append(Window(each - failed, failed, recorder.snapshot()))
    return tuple(made)


def stage(*devices: DeviceEvidence, failures: int = 0) -> StageEvidence:
    return StageEvidence(len(devices), failures, swapped=devices)


def device(name: str, before: float | None, after: float | Sequence[float], each: int = 50) -> DeviceEvidence:
    earlier = windows(before, each=each) if before is not None else ()
    return DeviceEvidence(name, before is not None, earlier, windows(after, each=each, seed=2))


@pytest.mark.parametrize(
    ("failures", "devices", "gate", "status"),
    [
        (0, 6, InstallGate(), "passing"),
        (1, 1, InstallGate(max_rate=0.1, max_count=1), "breached"),  # the only canary
        (1, 20, InstallGate(max_rate=0.1, max_count=1), "passing"),
        (2, 100, InstallGate(max_rate=0.1, max_count=1), "breached"),
        (10, 100, InstallGate(max_rate=0.1), "passing"),
        (11, 100, InstallGate(max_rate=0.1), "breached"),
        (1, 100, InstallGate(max_count=0), "breached"),
    ],
)
def test_install_failures(failures: int, devices: int, gate: InstallGate, status: str) -> None:
    verdict = judge_installs(gate, StageEvidence(devices, failures))
    assert verdict.status == status
    assert verdict.figures["failures"] == failures


def test_errors_need_evidence_and_count_what_the_new_build_failed() -> None:
    few = DeviceEvidence("a", True, (), (Window(20, 0),))
    assert judge_errors(ERRORS, stage(few)).status == "no_evidence"
    assert judge_errors(ERRORS, stage(few)).summary == "20 of 50 requests"
    well = DeviceEvidence("a", True, (), (Window(99, 1),))
    assert judge_errors(ERRORS, stage(well)).status == "passing"
    ill = DeviceEvidence("a", True, (), (Window(97, 3),))
    assert judge_errors(ERRORS, stage(ill)).status == "breached"


def test_errors_that_were_there_before_are_not_the_new_builds() -> None:
    same = DeviceEvidence("a", True, (Window(80, 20),), (Window(85, 15),))
    assert judge_errors(ERRORS, stage(same)).status == "passing"


def test_a_build_that_fails_from_the_first_request_needs_no_more_evidence() -> None:
    ill = DeviceEvidence("a", True, (Window(100, 0),), (Window(0, 5),))
    assert judge_errors(ERRORS, stage(ill)).status == "breached"


def test_a_single_slow_canary_is_seen_with_its_figures() -> None:
    verdict = judge_latency(LATENCY, stage(device("press-1", 4, 30)))
    assert verdict.status == "breached"
    figures = verdict.figures
    assert (figures["devices"], figures["devices_slow"], figures["requests"]) == (1, 1, 300)
    assert figures["before_ms"] == pytest.approx(4 * 1.26, rel=0.15)
    assert figures["ratio"] == pytest.approx(7.5, rel=0.2)
    assert figures["threshold"]["max_ratio"] == 1.5
    assert figures["worst"][0]["device"] == "press-1"
    assert "p99 end_to_end" in verdict.summary


def test_an_unchanged_canary_passes() -> None:
    assert judge_latency(LATENCY, stage(device("press-1", 4, 4.2))).status == "passing"


def test_both_the_ratio_and_the_increase_must_be_beyond() -> None:
    assert judge_latency(LATENCY, stage(device("fast", 0.2, 1.0))).status == "passing"  # x5, but under 2 ms
    assert judge_latency(LATENCY, stage(device("slow", 100, 120))).status == "passing"  # 20 ms, but x1.2


def test_one_noisy_window_does_not_trip_a_single_canary() -> None:
    noisy = device("press-1", 4, [4, 4, 60, 4, 4, 4])
    assert judge_latency(LATENCY, stage(noisy)).status == "passing"
    assert judge_latency(LATENCY, stage(device("press-1", 4, [60], each=200))).status == "no_evidence"
    assert judge_latency(LATENCY, stage(device("press-1", 4, [60, 60], each=100))).status == "breached"


def test_one_bad_device_counts_in_a_small_stage_and_not_in_a_large_one() -> None:
    good = [device(f"good-{number}", 4, 4) for number in range(29)]
    bad = device("bad", 4, 40)
    assert judge_latency(LATENCY, stage(*good[:4], bad)).status == "breached"
    large = judge_latency(LATENCY, stage(*good, bad))
    assert large.status == "passing"
    assert large.figures["devices_slow"] == 1
    assert large.figures["worst"][0]["device"] == "bad"


def test_a_device_that_looks_slow_in_its_first_window_is_waited_for() -> None:
    well, first = device("well", 4, 4), device("first", 4, [40], each=60)
    verdict = judge_latency(LATENCY, stage(well, first))
    assert (verdict.status, verdict.summary) == ("no_evidence", "1 slow in one window only, so far")


def test_no_data_is_not_healthy() -> None:
    assert judge_latency(LATENCY, stage()).status == "no_evidence"
    few = judge_latency(LATENCY, stage(device("a", 4, [4], each=64)))
    assert (few.status, few.summary) == ("no_evidence", "64 of 100 requests")
    idle_before = DeviceEvidence("a", True, (), windows(4))
    verdict = judge_latency(LATENCY, stage(idle_before))
    assert verdict.status == "no_evidence"
    assert "before the swap" in verdict.summary


def test_a_first_install_has_nothing_to_compare_with_unless_there_is_an_absolute_limit() -> None:
    fresh = device("a", None, 30)
    assert judge_latency(LATENCY, stage(fresh)).status == "passing"
    limit = LatencyGate(max_ms=20, min_requests=100)
    verdict = judge_latency(limit, stage(fresh))
    assert verdict.status == "breached"
    assert "limit 20 ms" in verdict.summary
    assert judge_latency(limit, stage(device("a", None, 5))).status == "passing"


def test_a_stage_that_ran_the_version_already_has_nothing_to_show() -> None:
    verdicts = judge(Gates(errors=ERRORS, latency=LATENCY), StageEvidence(4, 0, active=3, already=3))
    assert [(each.gate, each.status) for each in verdicts] == [
        ("install_failures", "passing"),
        ("errors", "passing"),
        ("latency", "passing"),
    ]


def test_a_verdict_is_plain_json() -> None:
    verdict = judge_latency(LATENCY, stage(device("a", 4, 30))).to_json()
    assert (verdict["gate"], verdict["kind"], verdict["status"]) == ("latency", "threshold", "breached")
