"""Latency: each device's quantile after its swap against its own before, by a limit or by the evidence against the control."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from covey_contract.histogram import Histogram
from covey_server.core.eprocess.shift import Rule
from covey_server.core.gates.evidence import DeviceEvidence, StageEvidence, log_ratio
from covey_server.core.gates.verdict import Verdict, rounded
from covey_server.core.gates.weighing import (
    WORST_SHOWN,
    Choice,
    Looked,
    Numbers,
    Weighing,
    Words,
    and_the_rest,
    choose,
    missing_devices,
    numbers,
    percent,
    shift_of,
    together,
    verdict,
    with_least,
    without_control,
)
from covey_server.core.spec.gates import LatencyGate

# What shows in a single window may be a noisy moment; nobody is judged by it, well or badly.
MIN_WINDOWS = 2
# In a stage of fewer than ten devices a single slow one is too many.
TOLERATED_SLOW = 0.1

MAX_RATIO = 1.5
MIN_INCREASE_MS = 2.0

# By e-process: which ratio is tolerated unless the campaign says otherwise, and the smallest shifts that matter. The second figure is ln of
# the share of requests above the device's own earlier quantile, over what that share was.
MARGIN = 1.0
TAU = 0.05
EXCEEDANCE_TAU = 0.2
# A device has a quantile once that many of its requests lie beyond it, before and after.
MIN_BEYOND = 1.0


def judge_latency(
    gate: LatencyGate, evidence: StageEvidence, name: str = "latency", weighing: Weighing | None = None
) -> Verdict:
    weighing = weighing or Weighing()
    choice = choose(gate.method, evidence, weighing.settings)
    if choice.kind == "e_process":
        return _by_evidence(gate, evidence, name, weighing, choice)
    found = _by_threshold(gate, evidence, name)
    found.figures["why"] = choice.why
    return with_least(found, evidence, weighing.settings)


# --- by evidence --------------------------------------------------------------------------------------------------


def latency_rules(gate: LatencyGate) -> tuple[Rule, Rule]:
    """Of the quantile's shift, and of the share beyond the earlier quantile."""
    return Rule(tau=TAU, margin=math.log(tolerated_ratio(gate))), Rule(tau=EXCEEDANCE_TAU)


def tolerated_ratio(gate: LatencyGate) -> float:
    """Beyond which a shift is evidence."""
    return MARGIN if gate.max_ratio is None else gate.max_ratio


def weigh_latency(gate: LatencyGate, shifts: Numbers, exceedances: Numbers, *, by_site: bool) -> Looked:
    """The shift of the quantile sees tails sooner, the share beyond the earlier quantile sees the whole distribution move sooner;
    both are looked at, and their e-values averaged."""
    rule, exceedance_rule = latency_rules(gate)
    main = shift_of(shifts, rule, by_site=by_site)
    return together((main, rule), shift_of(exceedances, exceedance_rule, by_site=by_site))


def quantile_shift(gate: LatencyGate, device: DeviceEvidence) -> float | None:
    """ln of the quantile after over that before; None with too few requests for a quantile."""
    key = ("shift", gate.measure, gate.quantile)
    if key not in device.memo:
        before, after = device.was.of(gate.measure), device.is_now.of(gate.measure)
        enough = _has_quantile(before, gate.quantile) and _has_quantile(after, gate.quantile)
        device.memo[key] = log_ratio(after.quantile(gate.quantile), before.quantile(gate.quantile)) if enough else None
    return device.memo[key]


def exceedance(gate: LatencyGate, device: DeviceEvidence, ratio: float = 1.0) -> float | None:
    """ln of how many requests took longer than `ratio` times the device's own earlier quantile, over how many take longer than the
    quantile itself if nothing changes; one is added to both, so that few requests say little. With the ratio that is tolerated,
    canaries that are slower by just that much look like control devices without one."""
    key = ("exceedance", gate.measure, gate.quantile, ratio)
    if key not in device.memo:
        before, after = device.was.of(gate.measure), device.is_now.of(gate.measure)
        enough = _has_quantile(before, gate.quantile) and _has_quantile(after, gate.quantile)
        bound = before.quantile(gate.quantile) * ratio if enough else 0.0
        device.memo[key] = log_exceedance(after.count_above(bound), after.count, gate.quantile) if enough else None
    return device.memo[key]


def log_exceedance(above: float, requests: int, quantile: float) -> float:
    return math.log((above + 1.0) / (requests * (1.0 - quantile) + 1.0))


def _has_quantile(histogram: Histogram, quantile: float) -> bool:
    return histogram.count * (1.0 - quantile) >= MIN_BEYOND and histogram.count * quantile >= MIN_BEYOND


def _by_evidence(gate: LatencyGate, evidence: StageEvidence, name: str, weighing: Weighing, choice: Choice) -> Verdict:
    shifts = numbers(evidence, lambda device: quantile_shift(gate, device))
    exceedances = numbers(
        evidence,
        lambda device: exceedance(gate, device, tolerated_ratio(gate)),
        lambda device: exceedance(gate, device),
    )
    looked = weigh_latency(gate, shifts, exceedances, by_site=choice.by_site)
    requests = _requests(gate, evidence.swapped)
    befores, afters = _levels(gate, evidence.swapped)
    figures = {
        "measure": gate.measure,
        "quantile": gate.quantile,
        "requests": requests,
        "requests_before": sum(device.was.of(gate.measure).count for device in evidence.swapped),
        "before_ms": rounded(median(befores)) if befores else None,
        "after_ms": rounded(median(afters)) if afters else None,
        "ratio": rounded(math.exp(looked.shift.estimate)) if looked.shift.judged else None,
        "threshold": {
            "max_ratio": tolerated_ratio(gate),
            "min_increase_ms": gate.min_increase_ms or 0.0,
            "min_requests": gate.min_requests,
            "max_ms": gate.max_ms,
        },
        "worst": _worst(gate, evidence.swapped),
    }
    missing = missing_devices(evidence, looked.shift, requests, gate.min_requests, weighing.settings)
    missing += _not_sure(gate, looked, weighing)
    told = verdict(
        name,
        looked,
        Words(f"p{gate.quantile * 100:g} {gate.measure}", percent, math.exp),
        weighing,
        choice,
        figures=figures,
        missing=missing,
        lost=shifts.lost,
        tolerated=_too_little(gate, looked, befores),
    )
    rest = without_control(evidence, looked.shift, choice)
    told = and_the_rest(told, rest, lambda others: _by_threshold(gate, others, name))
    return told if gate.max_ms is None else _with_limit(gate, evidence, told)


def _not_sure(gate: LatencyGate, looked: Looked, weighing: Weighing) -> list[str]:
    if gate.pass_below is None or not looked.shift.judged:
        return []
    _, high = looked.shift.interval(looked.rule.tau, 1 - weighing.settings.confidence)
    limit = math.log(gate.pass_below)
    return [] if high <= limit else [f"sure only that it is below {percent(high)}, not {percent(limit)}"]


def _too_little(gate: LatencyGate, looked: Looked, befores: Sequence[float]) -> str:
    """Why a shift that is evident does not count: it is too few milliseconds."""
    if not gate.min_increase_ms or not befores or not looked.shift.judged:
        return ""
    increase = median(befores) * math.expm1(min(looked.shift.estimate, 20.0))
    if increase >= gate.min_increase_ms:
        return ""
    return f"{increase:.3g} ms is less than the {gate.min_increase_ms:g} ms that count"


def _with_limit(gate: LatencyGate, evidence: StageEvidence, found: Verdict) -> Verdict:
    """`max_ms` is a limit whatever the control does."""
    absolute = LatencyGate(
        quantile=gate.quantile, measure=gate.measure, max_ms=gate.max_ms, min_requests=1, max_ratio=1000.0
    )
    limit = _by_threshold(absolute, evidence, found.gate)
    if limit.status != "breached" or found.status == "breached":
        return found
    told = (
        f"{limit.figures['devices_slow']} of {limit.figures['devices']} devices above the limit of {gate.max_ms:g} ms"
    )
    return Verdict(found.gate, "breached", f"{told}; {found.summary}", found.figures, found.kind)


def _levels(gate: LatencyGate, devices: Sequence[DeviceEvidence]) -> tuple[list[float], list[float]]:
    """The quantiles before and after, in ms, of the devices that have both."""
    judged = [device for device in devices if device.had_build and quantile_shift(gate, device) is not None]
    return (
        [device.was.of(gate.measure).quantile(gate.quantile) * 1000 for device in judged],
        [device.is_now.of(gate.measure).quantile(gate.quantile) * 1000 for device in judged],
    )


def _worst(gate: LatencyGate, devices: Sequence[DeviceEvidence]) -> list[dict[str, Any]]:
    moved = [(shift, device) for device in devices if (shift := quantile_shift(gate, device)) is not None]
    moved.sort(key=lambda each: (-each[0], each[1].device))
    return [
        {
            "device": device.device,
            "requests_before": device.was.of(gate.measure).count,
            "requests": device.is_now.of(gate.measure).count,
            "before_ms": rounded(device.was.of(gate.measure).quantile(gate.quantile) * 1000),
            "after_ms": rounded(device.is_now.of(gate.measure).quantile(gate.quantile) * 1000),
            "ratio": rounded(math.exp(shift)),
            "slow": shift > math.log(tolerated_ratio(gate)),
        }
        for shift, device in moved[:WORST_SHOWN]
    ]


# --- by threshold -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Compared:
    """One device's quantile after against before, in ms; `before_ms` and `ratio` are None where only `max_ms` judges it.
    `slow`: it is too slow not in one noisy moment alone."""

    device: str
    requests_before: int
    requests: int
    windows: int
    before_ms: float | None
    after_ms: float
    ratio: float | None
    too_slow: bool
    slow: bool

    def to_json(self) -> dict[str, Any]:
        return {
            "device": self.device,
            "requests_before": self.requests_before,
            "requests": self.requests,
            "before_ms": rounded(self.before_ms),
            "after_ms": rounded(self.after_ms),
            "ratio": rounded(self.ratio),
            "slow": self.slow,
        }


def _by_threshold(gate: LatencyGate, evidence: StageEvidence, name: str) -> Verdict:
    """Each device with enough requests is compared with itself before; the stage is breached if the median device got too
    slow, or if more devices than a tenth of them did (in a small canary: any one)."""
    devices = evidence.present
    judged = [device for device in devices if device.had_build or gate.max_ms is not None]
    if devices and not judged:
        figures = {"devices": 0, "requests": _requests(gate, devices), "threshold": _threshold(gate)}
        return Verdict(name, "passing", "no device ran the model before; there is nothing to compare", figures)
    # Each device needs its share of the evidence, and enough to have a quantile at all.
    share = max(math.ceil(gate.min_requests / max(len(judged), 1)), min(gate.min_requests, 20))
    looked = [each for device in judged if (each := _compare(gate, device, share)) is not None]
    compared = [each for each in looked if each.windows >= MIN_WINDOWS]
    unsure = sum(each.too_slow for each in looked) - sum(each.too_slow for each in compared)
    figures = _latency_figures(gate, compared, _requests(gate, judged))
    if not compared or sum(each.requests for each in compared) < gate.min_requests:
        return Verdict(name, "no_evidence", _missing(gate, judged, share), figures)
    slow = sum(each.slow for each in compared)
    if slow > math.floor(TOLERATED_SLOW * len(compared)) or 2 * slow >= len(compared):
        return Verdict(name, "breached", _latency_summary(gate, figures), figures)
    if unsure:
        return Verdict(name, "no_evidence", f"{unsure} slow in one window only, so far", figures)
    return Verdict(name, "passing", _latency_summary(gate, figures), figures)


def _compare(gate: LatencyGate, device: DeviceEvidence, enough: int) -> _Compared | None:
    """None: too few requests before or after."""
    before, after = device.was.of(gate.measure), device.is_now.of(gate.measure)
    has_before = device.had_build and before.count >= enough
    if after.count < enough or not (has_before or gate.max_ms is not None):
        return None
    before_ms = before.quantile(gate.quantile) * 1000 if has_before else None
    after_ms = after.quantile(gate.quantile) * 1000
    too_slow = _too_slow(gate, before_ms, after_ms)
    windows = [found for window in device.after if (found := window.of(gate.measure)).count]
    return _Compared(
        device=device.device,
        requests_before=before.count,
        requests=after.count,
        windows=len(windows),
        before_ms=before_ms,
        after_ms=after_ms,
        ratio=after_ms / before_ms if before_ms else None,
        too_slow=too_slow,
        slow=too_slow and len(windows) >= MIN_WINDOWS and _lasts(gate, before_ms, windows),
    )


def _max_ratio(gate: LatencyGate) -> float:
    return MAX_RATIO if gate.max_ratio is None else gate.max_ratio


def _min_increase_ms(gate: LatencyGate) -> float:
    return MIN_INCREASE_MS if gate.min_increase_ms is None else gate.min_increase_ms


def _too_slow(gate: LatencyGate, before_ms: float | None, after_ms: float) -> bool:
    if gate.max_ms is not None and after_ms > gate.max_ms:
        return True
    if before_ms is None:
        return False
    return after_ms > before_ms * _max_ratio(gate) and after_ms - before_ms >= _min_increase_ms(gate)


def _lasts(gate: LatencyGate, before_ms: float | None, windows: Sequence[Histogram]) -> bool:
    """Whether the device is slow in at least two windows, and most of its requests lie in slow ones."""
    slow = [window for window in windows if _too_slow(gate, before_ms, window.quantile(gate.quantile) * 1000)]
    requests = sum(window.count for window in windows)
    return len(slow) >= MIN_WINDOWS and 2 * sum(window.count for window in slow) > requests


def _latency_figures(gate: LatencyGate, compared: Sequence[_Compared], requests: int) -> dict[str, Any]:
    ratios = [each.ratio for each in compared if each.ratio is not None]
    befores = [each.before_ms for each in compared if each.before_ms is not None]
    worst = sorted(compared, key=lambda each: (-each.slow, -(each.ratio or 0.0), each.device))[:WORST_SHOWN]
    return {
        "measure": gate.measure,
        "quantile": gate.quantile,
        "devices": len(compared),
        "devices_slow": sum(each.slow for each in compared),
        "requests": requests,
        "requests_before": sum(each.requests_before for each in compared),
        "before_ms": rounded(median(befores)) if befores else None,
        "after_ms": rounded(median(each.after_ms for each in compared)) if compared else None,
        "ratio": rounded(median(ratios)) if ratios else None,
        "threshold": _threshold(gate),
        "worst": [each.to_json() for each in worst],
    }


def _threshold(gate: LatencyGate) -> dict[str, Any]:
    return {
        "max_ratio": _max_ratio(gate),
        "min_increase_ms": _min_increase_ms(gate),
        "min_requests": gate.min_requests,
        "max_ms": gate.max_ms,
    }


def _latency_summary(gate: LatencyGate, figures: dict[str, Any]) -> str:
    name = f"p{gate.quantile * 100:g} {gate.measure}"
    who = f"{figures['devices_slow']} of {figures['devices']} devices slow, {figures['requests']} requests"
    if figures["ratio"] is None:
        return f"{name} {figures['after_ms']:g} ms (limit {gate.max_ms:g} ms; {who})"
    change = (
        f"{figures['before_ms']:g} -> {figures['after_ms']:g} ms (x{figures['ratio']:.2f}, limit x{_max_ratio(gate):g}"
    )
    return f"{name} {change} and {_min_increase_ms(gate):g} ms more; {who})"


def _missing(gate: LatencyGate, devices: Sequence[DeviceEvidence], share: int) -> str:
    """Which evidence is still to come."""
    requests = _requests(gate, devices)
    if not devices or requests < gate.min_requests:
        return f"{requests} of {gate.min_requests} requests"
    blind = sum(1 for device in devices if device.was.of(gate.measure).count < share)
    if blind == len(devices) and gate.max_ms is None:
        return f"too few requests before the swap to compare with on {blind} of {len(devices)} devices"
    return f"no device with {share} requests in {MIN_WINDOWS} windows yet ({requests} in all)"


def _requests(gate: LatencyGate, devices: Sequence[DeviceEvidence]) -> int:
    return sum(device.is_now.of(gate.measure).count for device in devices)
