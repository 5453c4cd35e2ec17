"""Conditions that people write over a device's figures."""

from __future__ import annotations

from functools import lru_cache

from covey_server.core.gates.drift import psi_of
from covey_server.core.gates.evidence import DeviceEvidence, StageEvidence, Window
from covey_server.core.gates.shares import judge_share
from covey_server.core.gates.verdict import Verdict
from covey_server.core.gates.weighing import Weighing, choose
from covey_server.core.spec.expression import Condition, parse_condition
from covey_server.core.spec.gates import ExpressionGate, Measure

# Quantiles of fewer requests are no figure.
MIN_REQUESTS = 20

_QUANTILES: dict[str, tuple[Measure, float]] = {
    "p50_ms": ("end_to_end", 0.5),
    "p90_ms": ("end_to_end", 0.9),
    "p95_ms": ("end_to_end", 0.95),
    "p99_ms": ("end_to_end", 0.99),
    "compute_p50_ms": ("compute", 0.5),
    "compute_p99_ms": ("compute", 0.99),
}


def judge_expression(gate: ExpressionGate, evidence: StageEvidence, weighing: Weighing | None = None) -> Verdict:
    """Its verdict goes by the gate's own name."""
    weighing = weighing or Weighing()
    choice = choose(gate.method, evidence, weighing.settings)
    condition = _condition(gate.bad)
    return judge_share(
        expression_name(gate),
        evidence,
        lambda device: _is_bad(condition, device),
        f"are bad ({gate.bad})",
        gate.max_share,
        choice,
        weighing,
        least_requests=gate.min_requests,
    )


def expression_name(gate: ExpressionGate) -> str:
    return f"expression_{gate.name}"


@lru_cache(maxsize=256)
def _condition(text: str) -> Condition:
    return parse_condition(text)


def _is_bad(condition: Condition, device: DeviceEvidence) -> bool | None:
    after = figures_of(device.is_now, condition.figures)
    if "drift" in condition.figures and (psi := psi_of(device, None)) is not None:
        after["drift"] = psi
    return condition.holds(after, figures_of(device.was, condition.figures))


def figures_of(window: Window, wanted: frozenset[str]) -> dict[str, float]:
    """Those of `wanted` that the window tells, by the names of `covey_server.core.spec.expression.FIGURES`."""
    found: dict[str, float | None] = {
        "requests": float(window.requests),
        "error_rate": window.failed / window.requests if window.requests else None,
        "mean_ms": window.latency.mean * 1000 if window.latency.count else None,
        "temperature_c": window.temperature_c,
        "memory_mb": window.memory_mb,
        "throttled_share": window.throttled / window.readings
        if window.throttled is not None and window.readings
        else None,
    }
    for name in wanted & _QUANTILES.keys():
        measure, quantile = _QUANTILES[name]
        histogram = window.of(measure)
        found[name] = histogram.quantile(quantile) * 1000 if histogram.count >= MIN_REQUESTS else None
    return {name: value for name, value in found.items() if name in wanted and value is not None}
