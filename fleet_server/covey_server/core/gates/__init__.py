"""What the gates say: verdicts over plain values, with the figures they rest on.

A verdict is `passing`, `breached` or `no_evidence`; no data is not healthy. Devices are the units: each is compared with itself before
its swap, and never are requests of several devices thrown together, for those of one device are not independent. A `threshold`
compares with a limit; an `e_process` weighs evidence against control devices and may be looked at as often as one likes. One
module for each gate; `weighing` holds what they share, `covey_server.core.eprocess` the mathematics, `docs/verdicts.md` both in words.
"""

from __future__ import annotations

from collections.abc import Callable

from covey_server.core.gates.drift import judge_drift
from covey_server.core.gates.errors import judge_errors
from covey_server.core.gates.evidence import DeviceEvidence, Lost, SiteCount, StageEvidence, Window
from covey_server.core.gates.expressions import expression_name, judge_expression
from covey_server.core.gates.installs import judge_installs, uses_e_process
from covey_server.core.gates.latency import judge_latency
from covey_server.core.gates.resources import judge_memory, judge_temperature, judge_throttling
from covey_server.core.gates.silence import judge_silence
from covey_server.core.gates.verdict import Kind, Status, Verdict, with_trace
from covey_server.core.gates.weighing import Weighing
from covey_server.core.spec.gates import ExpressionGate, Gates, LatencyGate

__all__ = [
    "DeviceEvidence",
    "Kind",
    "Lost",
    "SiteCount",
    "StageEvidence",
    "Status",
    "Verdict",
    "Weighing",
    "Window",
    "alpha_each",
    "judge",
    "judge_drift",
    "judge_errors",
    "judge_expression",
    "judge_installs",
    "judge_installs_of",
    "judge_latency",
    "judge_memory",
    "judge_silence",
    "judge_temperature",
    "judge_throttling",
    "with_trace",
]

_Judge = Callable[[Weighing], Verdict]


def judge(gates: Gates, evidence: StageEvidence) -> tuple[Verdict, ...]:
    """The verdict of every gate that the campaign names, in a fixed order, install failures first."""
    weighing = Weighing(gates.evidence, alpha_each(gates))
    installs = judge_installs_of(gates, evidence)
    named = _named(gates, evidence)
    if evidence.active and evidence.already == evidence.active:
        figures = {"devices": 0, "requests": 0}
        return (
            installs,
            *(Verdict(name, "passing", "all that are active ran this version already", figures) for name in named),
        )
    return (installs, *(judge_it(weighing) for judge_it in named.values()))


def judge_installs_of(gates: Gates, evidence: StageEvidence) -> Verdict:
    """The verdict on installs alone, by the part of α that it has among the campaign's gates."""
    return judge_installs(gates.install_failures, evidence, alpha_each(gates))


def alpha_each(gates: Gates) -> float:
    """The part of α that each gate has that may be judged by e-process: together they halt wrongly in at most α of stages."""
    methods = [
        *(gate.method for _, gate in gates.latencies),
        *(gate.method for gate in gates.expressions),
        *(
            gate.method
            for gate in (gates.errors, gates.drift, gates.temperature, gates.throttling, gates.memory, gates.silence)
            if gate is not None
        ),
    ]
    sharing = sum(method != "threshold" for method in methods) + uses_e_process(gates.install_failures)
    return gates.evidence.alpha / max(sharing, 1)


def _named(gates: Gates, evidence: StageEvidence) -> dict[str, _Judge]:
    """Every gate but install failures that the campaign names, by the name its verdict goes by."""
    found: dict[str, _Judge] = {}
    if (errors := gates.errors) is not None:
        found["errors"] = lambda weighing: judge_errors(errors, evidence, weighing)
    for name, gate in gates.latencies:
        found[name] = _latency(gate, evidence, name)
    if (drift := gates.drift) is not None:
        found["drift"] = lambda weighing: judge_drift(drift, evidence, weighing)
    if (temperature := gates.temperature) is not None:
        found["temperature"] = lambda weighing: judge_temperature(temperature, evidence, weighing)
    if (throttling := gates.throttling) is not None:
        found["throttling"] = lambda weighing: judge_throttling(throttling, evidence, weighing)
    if (memory := gates.memory) is not None:
        found["memory"] = lambda weighing: judge_memory(memory, evidence, weighing)
    if (silence := gates.silence) is not None:
        found["silence"] = lambda weighing: judge_silence(silence, evidence, weighing)
    for expression in gates.expressions:
        found[expression_name(expression)] = _expression(expression, evidence)
    return found


def _latency(gate: LatencyGate, evidence: StageEvidence, name: str) -> _Judge:
    return lambda weighing: judge_latency(gate, evidence, name, weighing)


def _expression(gate: ExpressionGate, evidence: StageEvidence) -> _Judge:
    return lambda weighing: judge_expression(gate, evidence, weighing)
