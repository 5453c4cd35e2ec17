"""What the gates say: verdicts over plain values, with the figures they rest on.

A verdict is `passing`, `breached` or `no_evidence`; no data is not healthy. Latency has devices as its units: each is compared
with itself before its swap, and a stage is judged by how many of its devices got worse, never by requests thrown together,
for requests of one device are not independent. These are thresholds; another kind of verdict (an e-process over the same
devices) fills in the same `Verdict` with another `kind`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Literal

from covey_contract.histogram import Histogram, merge
from covey_server.core.spec import ErrorGate, Gates, InstallGate, LatencyGate

Status = Literal["passing", "breached", "no_evidence"]

# What shows in a single window may be a noisy moment; nobody is judged by it, well or badly.
MIN_WINDOWS = 2
# In a stage of fewer than ten devices a single slow one is too many.
TOLERATED_SLOW = 0.1
WORST_SHOWN = 10


@dataclass(frozen=True)
class Window:
    """What one build did in one window of one device. `latency` is in seconds, of the measure that the gate names."""

    ok: int
    failed: int  # requests that failed, or that this build failed and the previous one answered
    latency: Histogram = field(default_factory=Histogram)

    @property
    def requests(self) -> int:
        return self.ok + self.failed


@dataclass(frozen=True)
class DeviceEvidence:
    """A device that has swapped: its windows with the build before, and those with the new one after the settling time.
    `had_build` is False where the model is new to the device, so that there is nothing to compare with."""

    device: str
    had_build: bool
    before: tuple[Window, ...]
    after: tuple[Window, ...]


@dataclass(frozen=True)
class StageEvidence:
    """All that the gates of one stage look at."""

    devices: int  # of the stage
    install_failures: int
    active: int = 0
    already: int = 0  # those of them that ran the version before the campaign came; they have nothing to tell
    swapped: tuple[DeviceEvidence, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """One gate's word on one stage. `figures` is evidence for people and records: plain JSON values."""

    gate: str
    status: Status
    summary: str
    figures: dict[str, Any]
    kind: str = "threshold"

    def to_json(self) -> dict[str, Any]:
        return {"gate": self.gate, "kind": self.kind, "status": self.status, "summary": self.summary, **self.figures}


def judge(gates: Gates, evidence: StageEvidence) -> tuple[Verdict, ...]:
    """The verdict of every gate that the campaign names, in a fixed order."""
    verdicts = [judge_installs(gates.install_failures, evidence)]
    if evidence.active and evidence.already == evidence.active:
        named = [name for name in ("errors", "latency") if getattr(gates, name) is not None]
        figures = {"devices": 0, "requests": 0}
        return (
            *verdicts,
            *(Verdict(name, "passing", "all that are active ran this version already", figures) for name in named),
        )
    if gates.errors is not None:
        verdicts.append(judge_errors(gates.errors, evidence))
    if gates.latency is not None:
        verdicts.append(judge_latency(gates.latency, evidence))
    return tuple(verdicts)


# --- install failures ---------------------------------------------------------------------------------------------


def judge_installs(gate: InstallGate, evidence: StageEvidence) -> Verdict:
    """The rate is of the whole stage, so that the first failure of many devices does not look like all of them."""
    failures, devices = evidence.install_failures, evidence.devices
    rate = failures / devices if devices else 0.0
    too_many = gate.max_count is not None and failures > gate.max_count
    breached = too_many or rate > gate.max_rate
    limits = f"{gate.max_rate:.0%}" + (f" or {gate.max_count}" if gate.max_count is not None else "")
    return Verdict(
        "install_failures",
        "breached" if breached else "passing",
        f"{failures} of {devices} devices failed to install it (limit {limits})",
        {
            "devices": devices,
            "failures": failures,
            "rate": _round(rate),
            "threshold": {"max_rate": gate.max_rate, "max_count": gate.max_count},
        },
    )


# --- errors -------------------------------------------------------------------------------------------------------


def judge_errors(gate: ErrorGate, evidence: StageEvidence) -> Verdict:
    """A share of requests above the limit, and above that of the same devices before: callers that always sent nonsense
    do not stop a campaign."""
    after = [window for device in evidence.swapped for window in device.after]
    before = [window for device in evidence.swapped for window in device.before]
    requests, failed = sum(window.requests for window in after), sum(window.failed for window in after)
    rate, rate_before = _rate(after), _rate(before)
    figures = {
        "devices": sum(1 for device in evidence.swapped if any(window.requests for window in device.after)),
        "requests": requests,
        "failed": failed,
        "rate": _round(rate),
        "rate_before": _round(rate_before),
        "threshold": {"max_rate": gate.max_rate, "min_requests": gate.min_requests},
    }
    # Failures alone can be enough: were all requests still missing good ones, the rate would be above the limit.
    certain = failed >= 3 and failed / gate.min_requests > gate.max_rate
    if requests < gate.min_requests and not certain:
        return Verdict("errors", "no_evidence", f"{requests} of {gate.min_requests} requests", figures)
    breached = rate > gate.max_rate and rate > rate_before
    summary = (
        f"{failed} of {requests} requests failed ({rate:.2%}, before {rate_before:.2%}, limit {gate.max_rate:.2%})"
    )
    return Verdict("errors", "breached" if breached else "passing", summary, figures)


def _rate(windows: Sequence[Window]) -> float:
    requests = sum(window.requests for window in windows)
    return sum(window.failed for window in windows) / requests if requests else 0.0


# --- latency ------------------------------------------------------------------------------------------------------


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
            "before_ms": _round(self.before_ms),
            "after_ms": _round(self.after_ms),
            "ratio": _round(self.ratio),
            "slow": self.slow,
        }


def judge_latency(gate: LatencyGate, evidence: StageEvidence) -> Verdict:
    """Each device with enough requests is compared with itself before; the stage is breached if the median device got too
    slow, or if more devices than a tenth of them did (in a small canary: any one)."""
    devices = evidence.swapped
    judged = [device for device in devices if device.had_build or gate.max_ms is not None]
    if devices and not judged:
        figures = {"devices": 0, "requests": _requests(devices), "threshold": _threshold(gate)}
        return Verdict("latency", "passing", "no device ran the model before; there is nothing to compare", figures)
    # Each device needs its share of the evidence, and enough to have a quantile at all.
    share = max(math.ceil(gate.min_requests / max(len(judged), 1)), min(gate.min_requests, 20))
    looked = [each for device in judged if (each := _compare(gate, device, share)) is not None]
    compared = [each for each in looked if each.windows >= MIN_WINDOWS]
    unsure = sum(each.too_slow for each in looked) - sum(each.too_slow for each in compared)
    figures = _latency_figures(gate, compared, _requests(judged))
    if not compared or sum(each.requests for each in compared) < gate.min_requests:
        return Verdict("latency", "no_evidence", _missing(gate, judged, share), figures)
    slow = sum(each.slow for each in compared)
    if slow > math.floor(TOLERATED_SLOW * len(compared)) or 2 * slow >= len(compared):
        return Verdict("latency", "breached", _latency_summary(gate, figures), figures)
    if unsure:
        return Verdict("latency", "no_evidence", f"{unsure} slow in one window only, so far", figures)
    return Verdict("latency", "passing", _latency_summary(gate, figures), figures)


def _compare(gate: LatencyGate, device: DeviceEvidence, enough: int) -> _Compared | None:
    """None: too few requests before or after."""
    before = merge([window.latency for window in device.before])
    after = merge([window.latency for window in device.after])
    has_before = device.had_build and before.count >= enough
    if after.count < enough or not (has_before or gate.max_ms is not None):
        return None
    before_ms = before.quantile(gate.quantile) * 1000 if has_before else None
    after_ms = after.quantile(gate.quantile) * 1000
    too_slow = _too_slow(gate, before_ms, after_ms)
    windows = [window.latency for window in device.after if window.latency.count]
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


def _too_slow(gate: LatencyGate, before_ms: float | None, after_ms: float) -> bool:
    if gate.max_ms is not None and after_ms > gate.max_ms:
        return True
    if before_ms is None:
        return False
    return after_ms > before_ms * gate.max_ratio and after_ms - before_ms >= gate.min_increase_ms


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
        "before_ms": _round(median(befores)) if befores else None,
        "after_ms": _round(median(each.after_ms for each in compared)) if compared else None,
        "ratio": _round(median(ratios)) if ratios else None,
        "threshold": _threshold(gate),
        "worst": [each.to_json() for each in worst],
    }


def _threshold(gate: LatencyGate) -> dict[str, Any]:
    names = ("max_ratio", "min_increase_ms", "min_requests", "max_ms")
    return {name: getattr(gate, name) for name in names}


def _latency_summary(gate: LatencyGate, figures: dict[str, Any]) -> str:
    name = f"p{gate.quantile * 100:g} {gate.measure}"
    who = f"{figures['devices_slow']} of {figures['devices']} devices slow, {figures['requests']} requests"
    if figures["ratio"] is None:
        return f"{name} {figures['after_ms']:g} ms (limit {gate.max_ms:g} ms; {who})"
    change = (
        f"{figures['before_ms']:g} -> {figures['after_ms']:g} ms (x{figures['ratio']:.2f}, limit x{gate.max_ratio:g}"
    )
    return f"{name} {change} and {gate.min_increase_ms:g} ms more; {who})"


def _missing(gate: LatencyGate, devices: Sequence[DeviceEvidence], share: int) -> str:
    """Which evidence is still to come."""
    requests = _requests(devices)
    if not devices or requests < gate.min_requests:
        return f"{requests} of {gate.min_requests} requests"
    blind = sum(1 for device in devices if sum(window.latency.count for window in device.before) < share)
    if blind == len(devices) and gate.max_ms is None:
        return f"too few requests before the swap to compare with on {blind} of {len(devices)} devices"
    return f"no device with {share} requests in {MIN_WINDOWS} windows yet ({requests} in all)"


def _requests(devices: Sequence[DeviceEvidence]) -> int:
    return sum(window.latency.count for device in devices for window in device.after)


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
