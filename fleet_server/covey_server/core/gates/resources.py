"""What the device itself goes through: temperature, throttling, memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from covey_server.core.eprocess.shift import Rule
from covey_server.core.gates.evidence import DeviceEvidence, StageEvidence, log_ratio
from covey_server.core.gates.shares import judge_share
from covey_server.core.gates.verdict import Verdict, rounded
from covey_server.core.gates.weighing import (
    Numbers,
    Weighing,
    Words,
    choose,
    missing_devices,
    numbers,
    percent,
    shift_of,
    together,
    verdict,
)
from covey_server.core.spec.gates import MemoryGate, Method, TemperatureGate, ThrottlingGate

TEMPERATURE_TAU_C = 3.0
MEMORY_TAU = 0.1
TOLERATED_SHARE = 0.1


@dataclass(frozen=True)
class _Figure:
    """One figure of a device's resources: how it is read, how a rise is measured and shown, and which rise is tolerated."""

    name: str
    unit: str
    read: Callable[[DeviceEvidence], tuple[float | None, float | None]]  # before, after
    number: Callable[[float, float], float | None]
    rule: Rule
    words: Words
    limit: float | None  # of the figure itself


def judge_temperature(gate: TemperatureGate, evidence: StageEvidence, weighing: Weighing | None = None) -> Verdict:
    figure = _Figure(
        "temperature",
        "°C",
        lambda device: (device.was.temperature_c, device.is_now.temperature_c),
        lambda before, after: after - before,
        Rule(tau=TEMPERATURE_TAU_C, margin=gate.max_rise_c),
        Words("temperature", lambda shift: f"{shift:+.1f} °C", float),
        gate.max_c,
    )
    return _judge(figure, gate.method, evidence, weighing or Weighing())


def judge_memory(gate: MemoryGate, evidence: StageEvidence, weighing: Weighing | None = None) -> Verdict:
    figure = _Figure(
        "memory",
        "MB",
        lambda device: (device.was.memory_mb, device.is_now.memory_mb),
        lambda before, after: log_ratio(after, before),
        Rule(tau=MEMORY_TAU, margin=math.log(gate.max_ratio)),
        Words("memory", percent, math.exp),
        gate.max_mb,
    )
    return _judge(figure, gate.method, evidence, weighing or Weighing())


def judge_throttling(gate: ThrottlingGate, evidence: StageEvidence, weighing: Weighing | None = None) -> Verdict:
    weighing = weighing or Weighing()
    choice = choose(gate.method, evidence, weighing.settings)
    return judge_share(
        "throttling", evidence, throttles_more, "throttle more than before", gate.max_share, choice, weighing
    )


def throttles_more(device: DeviceEvidence) -> bool | None:
    """Whether the device throttled itself in a larger share of its windows than before the swap; lost ones do not count as such."""
    after = device.is_now
    if after.throttled is None or not after.readings:
        return None
    before = device.was
    earlier = (before.throttled or 0) / before.readings if before.readings else 0.0
    return after.throttled / after.readings > earlier


def _judge(figure: _Figure, method: Method, evidence: StageEvidence, weighing: Weighing) -> Verdict:
    choice = choose(method, evidence, weighing.settings)
    levels = [level for device in evidence.swapped if (level := figure.read(device)[1]) is not None]
    figures = {"after": rounded(median(levels), 2) if levels else None, "unit": figure.unit, "limit": figure.limit}
    limited = judge_share(
        figure.name,
        evidence,
        lambda device: _beyond(figure, device),
        f"beyond the limit ({_limits(figure)})",
        TOLERATED_SHARE,
        # The limit on the figure itself holds whatever the control does.
        choose("threshold", evidence, weighing.settings),
        weighing,
    )
    if choice.kind == "threshold":
        return Verdict(figure.name, limited.status, limited.summary, {**limited.figures, **figures, "why": choice.why})
    found: Numbers = numbers(evidence, lambda device: _number(figure, device))
    shift = shift_of(found, figure.rule, by_site=choice.by_site)
    told = verdict(
        figure.name,
        together((shift, figure.rule)),
        figure.words,
        weighing,
        choice,
        figures=figures,
        missing=missing_devices(evidence, shift, 0, 0, weighing.settings),
        lost=found.lost,
    )
    if figure.limit is not None and told.status != "breached" and _too_many_above(figure, evidence):
        return Verdict(figure.name, "breached", f"{limited.summary}; {told.summary}", told.figures, told.kind)
    return told


def _number(figure: _Figure, device: DeviceEvidence) -> float | None:
    before, after = figure.read(device)
    return None if before is None or after is None else figure.number(before, after)


def _beyond(figure: _Figure, device: DeviceEvidence) -> bool | None:
    before, after = figure.read(device)
    if after is None:
        return None
    if figure.limit is not None and after > figure.limit:
        return True
    rise = None if before is None else figure.number(before, after)
    return rise is not None and rise > figure.rule.margin


def _too_many_above(figure: _Figure, evidence: StageEvidence) -> bool:
    levels = [level for device in evidence.swapped if (level := figure.read(device)[1]) is not None]
    above = sum(1 for level in levels if figure.limit is not None and level > figure.limit)
    return above > math.floor(TOLERATED_SHARE * len(levels))


def _limits(figure: _Figure) -> str:
    rise = f"{figure.words.show(figure.rule.margin)} since the swap"
    return rise if figure.limit is None else f"{figure.limit:g} {figure.unit} or {rise}"
