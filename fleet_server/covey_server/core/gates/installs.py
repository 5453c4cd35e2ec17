"""Install failures: by a limit on their rate and number, or by the evidence that they are above a base rate."""

from __future__ import annotations

import math

from covey_server.core.eprocess import binomial
from covey_server.core.gates.evidence import StageEvidence
from covey_server.core.gates.verdict import Verdict, rounded
from covey_server.core.spec.gates import InstallGate

NAME = "install_failures"
DEFAULT_BASE_RATE = 0.01


def uses_e_process(gate: InstallGate) -> bool:
    return gate.method == "e_process" or (gate.method == "auto" and gate.base_rate is not None)


def judge_installs(gate: InstallGate, evidence: StageEvidence, alpha: float = 0.01) -> Verdict:
    """The rate is of the whole stage, so that the first failure of many devices does not look like all of them; of a stage that
    gets its orders bit by bit, the e-process counts those that have one."""
    return _by_evidence(gate, evidence, alpha) if uses_e_process(gate) else _by_threshold(gate, evidence)


def _by_threshold(gate: InstallGate, evidence: StageEvidence) -> Verdict:
    failures, devices = evidence.install_failures, evidence.devices
    rate = failures / devices if devices else 0.0
    enough = failures + evidence.active >= gate.min_devices
    breached = _too_many(gate, failures) or (enough and rate > gate.max_rate)
    limits = f"{gate.max_rate:.0%}" + (f" or {gate.max_count}" if gate.max_count is not None else "")
    waits = "" if enough else f"; the rate counts from {gate.min_devices} devices on"
    return Verdict(
        NAME,
        "breached" if breached else "passing",
        f"{failures} of {devices} devices failed to install it (limit {limits}{waits})",
        {
            "devices": devices,
            "failures": failures,
            "rate": rounded(rate),
            "threshold": {
                "max_rate": gate.max_rate,
                "max_count": gate.max_count,
                "min_devices": gate.min_devices,
            },
        },
    )


def _by_evidence(gate: InstallGate, evidence: StageEvidence, alpha: float) -> Verdict:
    failures = evidence.install_failures
    tried = max(evidence.devices if evidence.ordered is None else evidence.ordered, failures)
    base = gate.base_rate or DEFAULT_BASE_RATE
    log_e = binomial.log_e_value(failures, tried, base)
    breached = _too_many(gate, failures) or log_e >= math.log(1 / alpha)
    count = f", limit {gate.max_count}" if gate.max_count is not None else ""
    return Verdict(
        NAME,
        "breached" if breached else "passing",
        f"{failures} of {tried} devices failed to install it (base rate {base:.2%}{count}); "
        f"evidence {math.exp(min(log_e, 700)):.3g} of {1 / alpha:.3g}",
        {
            "devices": tried,
            "failures": failures,
            "rate": rounded(failures / tried if tried else 0.0),
            "threshold": {"base_rate": base, "max_count": gate.max_count},
            "evidence": {
                "e": float(f"{math.exp(min(log_e, 700)):.4g}"),
                "log10_e": rounded(log_e / math.log(10), 3),
                "boundary": round(1 / alpha, 3),
                "alpha": alpha,
                "why": f"beta-binomial against the base rate; {failures_to_halt(tried, base, alpha)} failures would halt",
            },
        },
        "e_process",
    )


def failures_to_halt(tried: int, base_rate: float, alpha: float) -> int:
    """The least number of failures that would halt a stage of so many devices; by bisection, since it grows with them."""
    low, high, boundary = 0, tried + 1, math.log(1 / alpha)
    while low < high:
        middle = (low + high) // 2
        if middle > tried or binomial.log_e_value(middle, tried, base_rate) >= boundary:
            high = middle
        else:
            low = middle + 1
    return low


def _too_many(gate: InstallGate, failures: int) -> bool:
    return gate.max_count is not None and failures > gate.max_count
