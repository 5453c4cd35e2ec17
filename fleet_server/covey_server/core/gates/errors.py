"""Inference errors: by a limit on their share, or by the evidence that they rose more than the control's did."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import replace

from covey_server.core.eprocess.shift import Member, Rule, by_kind, site_residuals
from covey_server.core.eprocess.tilted import log_e_value
from covey_server.core.gates.evidence import DeviceEvidence, StageEvidence, Window
from covey_server.core.gates.verdict import Verdict, rounded
from covey_server.core.gates.weighing import (
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
from covey_server.core.spec.gates import ErrorGate

# A device's number is ln of its failures over those it would have had at its earlier rate, with so much added to both: a device
# without failures then moves little, whatever its requests. It lies within the bound, so that one device's burst is one device's.
PRIOR = 1.0
BOUND = 3.0
# The smallest change that matters: half as many again.
TAU = 0.4
RULE = Rule(tau=TAU, winsorise=None, bound=BOUND)


def judge_errors(gate: ErrorGate, evidence: StageEvidence, weighing: Weighing | None = None) -> Verdict:
    """A share of requests above the limit, and above that of the same devices before: callers that always sent nonsense
    do not stop a campaign."""
    weighing = weighing or Weighing()
    choice = choose(gate.method, evidence, weighing.settings)
    if choice.kind == "e_process":
        return _by_evidence(gate, evidence, weighing, choice)
    found = _by_threshold(gate, evidence)
    found.figures["why"] = choice.why
    return with_least(found, evidence, weighing.settings)


# --- by evidence --------------------------------------------------------------------------------------------------


def weigh_errors(found: Numbers, *, by_site: bool) -> Looked:
    """The estimate is as of any other figure; the evidence is from the draw alone, for failures come in bursts on few devices."""
    shift = shift_of(found, RULE, by_site=by_site)
    if not shift.judged:
        return together((shift, RULE))
    if by_site:
        judged, control = site_residuals(found.canaries, found.controls, RULE)
        tilted = log_e_value({"": judged}, {"": control})
    else:
        tilted = log_e_value(_bounded(found.canaries, shift.kinds), _bounded(found.controls, shift.kinds))
    kinds = {kind: replace(part, log_e=tilted.kinds[kind]) for kind, part in shift.kinds.items()}
    return together((replace(shift, log_e=tilted.log_e, log_e_overall=tilted.overall, kinds=kinds), RULE))


def _bounded(members: Sequence[Member], kinds: Collection[str]) -> dict[str, list[float]]:
    return {
        kind: [min(max(value, -BOUND), BOUND) for value in values]
        for kind, values in by_kind(members).items()
        if kind in kinds
    }


def error_shift(failed_before: int, requests_before: int, failed: int, requests: int) -> float | None:
    """A device's number; None without requests on both sides."""
    if requests_before == 0 or requests == 0:
        return None
    expected = failed_before * requests / requests_before
    return math.log((failed + PRIOR) / (expected + PRIOR))


def _number(device: DeviceEvidence) -> float | None:
    before, after = device.was, device.is_now
    return error_shift(before.failed, before.requests, after.failed, after.requests)


def _by_evidence(gate: ErrorGate, evidence: StageEvidence, weighing: Weighing, choice: Choice) -> Verdict:
    found = numbers(evidence, _number)
    looked = weigh_errors(found, by_site=choice.by_site)
    after = [window for device in evidence.swapped for window in device.after]
    before = [window for device in evidence.swapped for window in device.before]
    requests, failed, rate = _sums(after)
    _, _, rate_before = _sums(before)
    figures = {
        "requests": requests,
        "failed": failed,
        "rate": rounded(rate),
        "rate_before": rounded(rate_before),
        "threshold": {"max_rate": gate.max_rate, "min_requests": gate.min_requests},
    }
    told = verdict(
        "errors",
        looked,
        Words(
            f"{failed} of {requests} requests failed ({rate:.2%}, before {rate_before:.2%}); change", percent, math.exp
        ),
        weighing,
        choice,
        figures=figures,
        missing=missing_devices(evidence, looked.shift, requests, gate.min_requests, weighing.settings),
        lost=found.lost,
        tolerated=tolerated(gate, rate, found.lost),
    )
    rest = without_control(evidence, looked.shift, choice)
    return and_the_rest(told, rest, lambda others: _by_threshold(gate, others))


def tolerated(gate: ErrorGate, rate: float, lost: dict[str, int]) -> str:
    """A rise that leaves the share below the limit; devices that were lost fail whatever is asked of them, so then it counts."""
    return f"below the limit of {gate.max_rate:.2%}" if rate <= gate.max_rate and not lost else ""


# --- by threshold -------------------------------------------------------------------------------------------------


def _by_threshold(gate: ErrorGate, evidence: StageEvidence) -> Verdict:
    after = [window for device in evidence.present for window in device.after]
    before = [window for device in evidence.present for window in device.before]
    requests, failed, rate = _sums(after)
    _, _, rate_before = _sums(before)
    figures = {
        "devices": sum(1 for device in evidence.present if any(window.requests for window in device.after)),
        "requests": requests,
        "failed": failed,
        "rate": rounded(rate),
        "rate_before": rounded(rate_before),
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


def _sums(windows: Sequence[Window]) -> tuple[int, int, float]:
    requests = sum(window.requests for window in windows)
    failed = sum(window.failed for window in windows)
    return requests, failed, failed / requests if requests else 0.0
