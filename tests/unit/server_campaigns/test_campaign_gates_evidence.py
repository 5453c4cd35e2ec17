"""Gates by e-process: which method is taken, what it says, what it waits for, and what counts as evidence."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest

from covey_contract.drift import OutputCounts
from covey_contract.histogram import Recorder
from covey_server.core.gates import (
    DeviceEvidence,
    Lost,
    SiteCount,
    StageEvidence,
    Verdict,
    Window,
    alpha_each,
    judge,
    judge_drift,
    judge_errors,
    judge_expression,
    judge_installs,
    judge_latency,
    judge_memory,
    judge_silence,
    judge_temperature,
    judge_throttling,
    with_trace,
)
from covey_server.core.gates.verdict import MAX_TRACE
from covey_server.core.spec.gates import (
    DriftGate,
    ErrorGate,
    Evidence,
    ExpressionGate,
    Gates,
    InstallGate,
    LatencyGate,
    MemoryGate,
    SilenceGate,
    TemperatureGate,
    ThrottlingGate,
)

LATENCY = LatencyGate(quantile=0.9)
ERRORS = ErrorGate(max_rate=0.005)
REQUESTS = 200


def window(
    source: random.Random,
    ms: float,
    *,
    failed: int = 0,
    temperature_c: float | None = None,
    throttled: int = 0,
    memory_mb: float | None = None,
    classes: dict[int, int] | None = None,
) -> Window:
    recorder = Recorder()
    for _ in range(REQUESTS):
        recorder.record(ms / 1000 * source.lognormvariate(0, 0.2))
    outputs = {} if classes is None else {"label": OutputCounts(count=sum(classes.values()), classes=classes)}
    return Window(
        REQUESTS - failed,
        failed,
        recorder.snapshot(),
        outputs=outputs,
        readings=10,
        throttled=throttled,
        temperature_c=temperature_c,
        memory_mb=memory_mb,
    )


def fleet(
    count: int,
    *,
    first: int = 0,
    factor: float = 1.0,
    failed: int = 0,
    lost: int = 0,
    sites: bool = False,
    hot: float = 0.0,
    throttled: int = 0,
    memory: float = 1.0,
    moved: bool = False,
) -> tuple[DeviceEvidence, ...]:
    """Devices of two kinds, each with a latency of its own; `lost` of them fell silent."""
    made = []
    for number in range(first, first + count):
        source = random.Random(number)
        ms = 10 * source.lognormvariate(0, 0.3)
        old, new = {0: 150, 1: 50}, {0: 60, 1: 140} if moved else {0: 148, 1: 52}
        made.append(
            DeviceEvidence(
                f"device-{number:03}",
                True,
                (window(source, ms, temperature_c=50, memory_mb=100, classes=old),),
                tuple(
                    window(
                        source,
                        ms * factor,
                        failed=failed,
                        temperature_c=50 + hot + source.gauss(0, 1),
                        throttled=throttled,
                        memory_mb=100 * memory * source.lognormvariate(0, 0.05),
                        classes=new,
                    )
                    for _ in range(3)
                ),
                kind=("pi", "jetson")[number % 2],
                site=f"site-{number // 10}" if sites else "",
                lost="silent" if number - first < lost else None,
            )
        )
    return tuple(made)


CONTROL = fleet(60, first=1000)


def stage(canaries: tuple[DeviceEvidence, ...], controls: tuple[DeviceEvidence, ...] = CONTROL) -> StageEvidence:
    return StageEvidence(len(canaries), 0, len(canaries), swapped=canaries, controls=controls)


# --- which method -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("canaries", "controls", "gate", "kind", "why"),
    [
        (20, 60, LATENCY, "e_process", "devices as units"),
        (9, 60, LATENCY, "threshold", "9 of at least 10 canaries"),
        (20, 19, LATENCY, "threshold", "19 of at least 20 control devices"),
        (20, 60, LatencyGate(quantile=0.9, method="threshold"), "threshold", "the campaign asks for it"),
        (3, 0, LatencyGate(quantile=0.9, method="e_process"), "e_process", "3 of at least 10 canaries"),
    ],
)
def test_the_method_is_chosen_by_what_there_is_and_the_verdict_says_why(
    canaries: int, controls: int, gate: LatencyGate, kind: str, why: str
) -> None:
    verdict = judge_latency(gate, stage(fleet(canaries), CONTROL[:controls]))
    assert verdict.kind == kind
    assert why in str(verdict.figures.get("why") or verdict.figures["evidence"]["why"])


def test_an_e_process_that_is_asked_for_waits_for_its_control() -> None:
    verdict = judge_latency(LatencyGate(quantile=0.9, method="e_process"), stage(fleet(12), ()))
    assert verdict.status == "no_evidence"


def test_the_gates_share_alpha_and_those_by_threshold_have_no_part() -> None:
    assert alpha_each(Gates(latency=LATENCY)) == 0.01
    both = Gates(latency=LATENCY, errors=ErrorGate(max_rate=0.01), evidence=Evidence(alpha=0.02))
    assert alpha_each(both) == 0.01
    one = Gates(latency=LATENCY, errors=ErrorGate(max_rate=0.01, method="threshold"))
    assert alpha_each(one) == 0.01
    assert alpha_each(Gates()) == 0.01


# --- latency ------------------------------------------------------------------------------------------------------


def test_nothing_changed_passes_with_its_figures() -> None:
    verdict = judge_latency(LATENCY, stage(fleet(20)))
    assert (verdict.status, verdict.kind) == ("passing", "e_process")
    figures = verdict.figures
    assert (figures["devices"], figures["controls"], figures["by_site"]) == (20, 60, False)
    assert figures["evidence"]["e"] < figures["evidence"]["boundary"] == 100
    assert figures["interval"][0] < 1 < figures["interval"][1]
    assert set(figures["kinds"]) == {"pi", "jetson"}
    assert "95 % CS" in verdict.summary
    assert "against 60" in verdict.summary


def test_ten_percent_are_found_though_every_device_is_far_from_any_threshold() -> None:
    verdict = judge_latency(LATENCY, stage(fleet(20, factor=1.1)))
    assert verdict.status == "breached"
    assert verdict.figures["estimate"] == pytest.approx(1.1, abs=0.03)
    assert (
        judge_latency(LatencyGate(quantile=0.9, method="threshold"), stage(fleet(20, factor=1.1))).status == "passing"
    )


def test_a_ratio_that_is_allowed_is_no_breach_and_a_worse_one_is() -> None:
    gate = LatencyGate(quantile=0.9, max_ratio=1.5)
    assert judge_latency(gate, stage(fleet(20, factor=1.3))).status == "passing"
    assert judge_latency(gate, stage(fleet(20, factor=1.8))).status == "breached"


def test_a_rise_of_too_few_milliseconds_does_not_count() -> None:
    verdict = judge_latency(LatencyGate(quantile=0.9, min_increase_ms=20), stage(fleet(20, factor=1.3)))
    assert verdict.status == "passing"
    assert "less than the 20 ms that count" in verdict.summary


def test_an_absolute_limit_holds_whatever_the_control_does() -> None:
    verdict = judge_latency(LatencyGate(quantile=0.9, max_ms=5), stage(fleet(20)))
    assert (verdict.status, verdict.kind) == ("breached", "e_process")
    assert "20 of 20 devices above the limit of 5 ms" in verdict.summary


def test_the_stage_may_have_to_be_sure() -> None:
    verdict = judge_latency(LatencyGate(quantile=0.9, pass_below=1.02), stage(fleet(12)))
    assert verdict.status == "no_evidence"
    assert "sure only that it is below" in verdict.summary
    assert judge_latency(LatencyGate(quantile=0.9, pass_below=1.2), stage(fleet(40))).status == "passing"


def test_lost_devices_are_evidence() -> None:
    whole = judge_latency(LATENCY, stage(fleet(20)))
    some = judge_latency(LATENCY, stage(fleet(20, lost=8)))
    assert some.figures["lost"] == {"silent": 8}
    assert some.figures["evidence"]["log10_e"] > whole.figures["evidence"]["log10_e"] + 1
    assert some.status == "breached"
    assert "counted as worst: 8 silent" in some.summary


def test_it_says_what_is_missing() -> None:
    few = judge_latency(LATENCY, stage(fleet(20)[:4]))
    assert few.kind == "threshold"
    begun = replace(stage(fleet(20)[:4]), devices=20)
    verdict = judge_latency(LATENCY, begun)
    assert (verdict.kind, verdict.status) == ("e_process", "no_evidence")
    assert verdict.figures["missing"] == ["4 of 10 devices to judge by"]
    reading = judge_latency(LATENCY, replace(stage(fleet(20)), loading=7))
    assert "the telemetry of 7 devices" in reading.summary
    many = Gates(latency=LATENCY, evidence=Evidence(min_devices=30, min_requests=10**6))
    assert judge(many, stage(fleet(20)))[1].figures["missing"] == [
        "20 of 30 devices to judge by",
        "12000 of 1000000 requests",
    ]
    assert judge_latency(LATENCY, stage(())).status == "no_evidence"


def test_a_breach_needs_no_minimum() -> None:
    early = replace(stage(fleet(20, factor=2)[:6]), devices=20)
    assert judge_latency(LATENCY, early).status == "breached"


def test_kinds_without_a_control_group_are_held_against_the_threshold() -> None:
    known = fleet(20)
    for factor, failed, status in ((1.0, 0, "passing"), (3.0, 0, "breached"), (1.0, 20, "breached")):
        new = tuple(replace(each, kind="new") for each in fleet(4, first=300, factor=factor, failed=failed))
        verdicts = judge(Gates(latency=LATENCY, errors=ERRORS), stage((*known, *new)))
        assert {each.kind for each in verdicts[1:]} == {"e_process"}
        assert ("breached" in {each.status for each in verdicts}) == (status == "breached")
        assert verdicts[2].figures["unjudged"] == 4
        assert "4 devices of kinds without control devices" in verdicts[2].summary


def test_several_latency_gates_each_have_a_verdict() -> None:
    gates = Gates(latency=(LatencyGate(quantile=0.5), LatencyGate(quantile=0.9)))
    assert [each.gate for each in judge(gates, stage(fleet(20, factor=1.2)))] == [
        "install_failures",
        "latency_p50",
        "latency_p90",
    ]


def test_canaries_by_whole_site_make_the_site_the_unit_or_a_threshold() -> None:
    canaries = fleet(50, sites=True)
    control = tuple(device for start in range(1000, 1300, 50) for device in fleet(25, first=start, sites=True))
    sites = tuple(SiteCount(f"site-{number}", 10, 0) for number in range(5))
    whole = replace(stage(canaries, control), sites=sites)
    assert whole.whole_sites
    verdict = judge_latency(LATENCY, whole)
    assert verdict.figures["by_site"]
    assert verdict.figures["devices"] == 5
    assert "canaries are whole sites" in verdict.figures["evidence"]["why"]
    two = judge_latency(LATENCY, replace(whole, sites=sites[:2]))
    assert (two.kind, "2 whole sites" in two.figures["why"]) == ("threshold", True)
    mixed = replace(whole, sites=tuple(replace(site, controls=3) for site in sites))
    assert not mixed.whole_sites


# --- the other gates ----------------------------------------------------------------------------------------------


def test_errors_by_evidence() -> None:
    assert judge_errors(ERRORS, stage(fleet(20))).status == "passing"
    worse = judge_errors(ERRORS, stage(fleet(20, failed=4)))
    assert (worse.status, worse.kind) == ("breached", "e_process")
    assert "240 of 12000 requests failed (2.00%, before 0.00%)" in worse.summary


def test_more_errors_below_the_limit_are_tolerated_unless_devices_were_lost() -> None:
    gate = ErrorGate(max_rate=0.05)
    tolerated = judge_errors(gate, stage(fleet(20, failed=4)))
    assert tolerated.status == "passing"
    assert "below the limit of 5.00%" in tolerated.summary
    assert judge_errors(gate, stage(fleet(20, failed=4, lost=6))).status == "breached"


def test_installs_by_evidence_against_a_base_rate() -> None:
    gate = InstallGate(base_rate=0.01)
    four, five = (judge_installs(gate, StageEvidence(50, failures)) for failures in (4, 5))
    assert (four.status, four.kind) == ("passing", "e_process")
    assert five.status == "breached"
    assert "5 failures would halt" in five.figures["evidence"]["why"]
    begun = judge_installs(gate, StageEvidence(5000, 4, ordered=20))
    assert begun.status == "breached"
    assert judge_installs(InstallGate(base_rate=0.01, max_count=0), StageEvidence(50, 1)).status == "breached"


def test_an_install_rate_may_need_a_minimum_sample() -> None:
    gate = InstallGate(max_rate=0.1, min_devices=10)
    assert judge_installs(gate, StageEvidence(4, 2, active=1)).status == "passing"
    assert judge_installs(gate, StageEvidence(20, 5, active=5)).status == "breached"


def test_silence_by_threshold_and_by_evidence() -> None:
    gate = SilenceGate()
    assert judge_silence(gate, stage(fleet(4, lost=1), ())).status == "breached"
    assert judge_silence(gate, stage(fleet(20, lost=1))).status == "passing"
    verdict = judge_silence(gate, stage(fleet(30, lost=6)))
    assert (verdict.status, verdict.kind) == ("breached", "e_process")
    assert verdict.figures["controls_bad"] == 0
    outage = tuple(replace(device, lost="silent") for device in CONTROL[:20]) + CONTROL[20:]
    assert judge_silence(gate, stage(fleet(30, lost=10), outage)).status == "passing"


def test_by_threshold_a_silent_canary_holds_the_stage() -> None:
    verdict = judge_latency(LATENCY, stage(fleet(3, lost=1), ()))
    assert (verdict.status, verdict.summary) == ("no_evidence", "1 of 3 devices that have fallen silent")


@pytest.mark.parametrize("lost", ["crashed", "went_back"])
def test_by_threshold_install_failures_speak_for_devices_that_crashed(lost: Lost) -> None:
    gone = replace(fleet(1, first=50, factor=9)[0], lost=lost)
    assert judge_latency(LATENCY, stage((*fleet(3), gone), ())).status == "passing"


def test_temperature_throttling_and_memory() -> None:
    for canaries, worse in ((4, ()), (30, CONTROL)):
        calm = stage(fleet(canaries), worse)
        assert judge_temperature(TemperatureGate(), calm).status == "passing"
        assert judge_throttling(ThrottlingGate(), calm).status == "passing"
        assert judge_memory(MemoryGate(), calm).status == "passing"
        assert judge_temperature(TemperatureGate(), stage(fleet(canaries, hot=15), worse)).status == "breached"
        assert judge_throttling(ThrottlingGate(), stage(fleet(canaries, throttled=3), worse)).status == "breached"
        assert judge_memory(MemoryGate(), stage(fleet(canaries, memory=2), worse)).status == "breached"
        assert judge_temperature(TemperatureGate(max_c=40), calm).status == "breached"
        assert judge_memory(MemoryGate(max_mb=50), calm).status == "breached"


def test_a_device_that_cannot_read_its_temperature_is_not_judged_by_it() -> None:
    blind = DeviceEvidence("a", True, (Window(9, 0),), (Window(9, 0),))
    verdict = judge_temperature(TemperatureGate(), stage((blind,), ()))
    assert (verdict.status, verdict.figures["devices"]) == ("no_evidence", 0)


def test_drift_by_threshold_and_by_evidence() -> None:
    gate = DriftGate(max_psi=0.2)
    for canaries, control in ((4, ()), (20, CONTROL)):
        assert judge_drift(gate, stage(fleet(canaries), control)).status == "passing"
        moved = judge_drift(gate, stage(fleet(canaries, moved=True), control))
        assert moved.status == "breached"
        assert moved.figures["psi"] > 0.5
        assert moved.figures["outputs"] == ["label"]
    assert judge_drift(DriftGate(output="other"), stage(fleet(4, moved=True), ())).status == "no_evidence"


def test_a_condition_over_figures() -> None:
    gate = ExpressionGate(name="slow", bad="p90_ms > 1.5 * before.p90_ms and error_rate < 0.5")
    assert judge_expression(gate, stage(fleet(4), ())).status == "passing"
    found = judge_expression(gate, stage(fleet(4, factor=2), ()))
    assert (found.status, found.gate, found.kind) == ("breached", "expression_slow", "threshold")
    by_evidence = judge_expression(gate, stage(fleet(20, factor=2)))
    assert (by_evidence.status, by_evidence.kind) == ("breached", "e_process")
    unknown = ExpressionGate(name="x", bad="compute_p99_ms > 1")
    assert judge_expression(unknown, stage(fleet(4), ())).status == "no_evidence"


# --- over time ----------------------------------------------------------------------------------------------------


def test_the_evidence_is_kept_over_time() -> None:
    first = judge_latency(LATENCY, stage(fleet(12)))
    shown = [with_trace([first], [], 1000)[0].to_json()]
    second = with_trace([judge_latency(LATENCY, stage(fleet(14)))], shown, 2000)[0]
    trace = second.figures["trace"]
    assert [point[0] for point in trace] == [1000, 2000]
    assert trace[0][1:3] == [first.figures["evidence"]["log10_e"], first.figures["estimate"]]


def replace_evidence(verdict: Verdict, log10_e: float) -> Verdict:
    return replace(verdict, figures={"evidence": {"log10_e": log10_e}, "estimate": 1.0, "interval": [0.9, 1.1]})


def test_a_trace_stays_bounded_and_a_look_without_news_adds_nothing() -> None:
    bare = Verdict("latency", "passing", "", {}, "e_process")
    shown: list[dict[str, object]] = []
    for look in range(1000):
        shown = [with_trace([replace_evidence(bare, float(look))], shown, look)[0].to_json()]
    trace = shown[0]["trace"]
    assert isinstance(trace, list)
    assert len(trace) <= MAX_TRACE
    assert (trace[0][0], trace[-1][0]) == (0, 999)
    assert with_trace([replace_evidence(bare, 999.0)], shown, 5000)[0].figures["trace"] == trace
    threshold = Verdict("latency", "passing", "", {})
    assert with_trace([threshold], shown, 1) == (threshold,)
    assert math.isfinite(trace[-1][1])
