"""Drift of the outputs: how far each device's distribution moved since before its swap.

The population stability index of counts p and q in the same bins is Σ (p_i − q_i) ln(p_i / q_i) over their shares; half a count is added
to every bin, so that an empty one does not make it endless. It grows with chance as counts get fewer, on control devices alike, so
the e-process compares its logarithm; by convention, 0.1 is little and 0.25 is much.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from covey_contract.drift import OutputCounts
from covey_server.core.eprocess.shift import Rule
from covey_server.core.gates.evidence import DeviceEvidence, StageEvidence
from covey_server.core.gates.shares import judge_share
from covey_server.core.gates.verdict import Verdict, rounded
from covey_server.core.gates.weighing import (
    WORST_SHOWN,
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
from covey_server.core.spec.gates import DriftGate

NAME = "drift"
MIN_COUNTED = 50  # rows or elements of an output, before and after
# ln PSI: the smallest change that matters is half as much again.
RULE = Rule(tau=0.4)
# Of classes seen on neither side nothing is known; more than these are put together by rank.
MAX_BINS = 64


def judge_drift(gate: DriftGate, evidence: StageEvidence, weighing: Weighing | None = None) -> Verdict:
    weighing = weighing or Weighing()
    choice = choose(gate.method, evidence, weighing.settings)
    psis = {device.device: found for device in evidence.swapped if (found := psi_of(device, gate.output)) is not None}
    outputs = sorted({name for device in evidence.swapped for name in device.is_now.outputs})
    middle = median(psis.values()) if psis else None
    figures: dict[str, Any] = {
        "psi": rounded(middle),
        "outputs": outputs,
        "worst": [
            {"device": name, "psi": rounded(value)}
            for name, value in sorted(psis.items(), key=lambda each: (-each[1], each[0]))[:WORST_SHOWN]
        ],
    }
    if evidence.swapped and not any(device.had_build for device in evidence.swapped):
        return Verdict(NAME, "passing", "no device ran the model before; there is nothing to compare", figures)
    if choice.kind == "threshold":
        limited = judge_share(
            NAME,
            evidence,
            lambda device: None if (psi := psi_of(device, gate.output)) is None else psi > gate.max_psi,
            f"moved further than PSI {gate.max_psi:g}" + ("" if middle is None else f" (median {middle:.3g})"),
            0.1,
            choice,
            weighing,
            least_requests=gate.min_requests,
        )
        limits = {"max_psi": gate.max_psi, "min_requests": gate.min_requests}
        return Verdict(NAME, limited.status, limited.summary, {**limited.figures, **figures, "threshold": limits})
    found_numbers = numbers(evidence, lambda device: _number(device, gate.output))
    shift = shift_of(found_numbers, RULE, by_site=choice.by_site)
    looked = together((shift, RULE))
    requests = sum(device.is_now.requests for device in evidence.swapped)
    little = (
        "" if middle is None or middle > gate.max_psi else f"PSI {middle:.3g} is below the limit of {gate.max_psi:g}"
    )
    figures |= {"requests": requests, "threshold": {"max_psi": gate.max_psi, "min_requests": gate.min_requests}}
    return verdict(
        NAME,
        looked,
        Words(
            "outputs: median PSI " + ("none yet" if middle is None else f"{middle:.3g}") + "; against the control",
            percent,
            math.exp,
        ),
        weighing,
        choice,
        figures=figures,
        missing=missing_devices(evidence, shift, requests, gate.min_requests, weighing.settings),
        lost=found_numbers.lost,
        tolerated=little,
    )


def psi_of(device: DeviceEvidence, output: str | None) -> float | None:
    """The furthest that one of the device's outputs moved, or that `output` did; None where there is too little to compare."""
    if not device.had_build:
        return None
    key = ("psi", output)
    if key not in device.memo:
        before, after = device.was.outputs, device.is_now.outputs
        names = [name for name in after if name in before and output in {None, name}]
        found = [psi for name in names if (psi := _psi_of_output(before[name], after[name])) is not None]
        device.memo[key] = max(found) if found else None
    return device.memo[key]


def _number(device: DeviceEvidence, output: str | None) -> float | None:
    psi = psi_of(device, output)
    return None if psi is None else math.log(psi + 1e-3)


def _psi_of_output(before: OutputCounts, after: OutputCounts) -> float | None:
    """The furthest of its histograms."""
    if min(before.count, after.count) < MIN_COUNTED:
        return None
    found = []
    if before.classes and after.classes:
        found.append(_psi(*_by_class(before.classes, after.classes)))
    for name in ("scores", "values"):
        old, new = getattr(before, name), getattr(after, name)
        if old and new and len(old) == len(new):
            found.append(_psi(old, new))
    return max(found, default=None)


def _by_class(before: Mapping[int, int], after: Mapping[int, int]) -> tuple[list[int], list[int]]:
    ranked = sorted(
        before.keys() | after.keys(), key=lambda index: (-before.get(index, 0) - after.get(index, 0), index)
    )
    kept, rest = ranked[: MAX_BINS - 1], ranked[MAX_BINS - 1 :]
    old = [before.get(index, 0) for index in kept] + ([sum(before.get(index, 0) for index in rest)] if rest else [])
    new = [after.get(index, 0) for index in kept] + ([sum(after.get(index, 0) for index in rest)] if rest else [])
    return old, new


def _psi(before: Sequence[int], after: Sequence[int]) -> float:
    used = [(old, new) for old, new in zip(before, after, strict=True) if old or new]
    old_sum, new_sum = sum(old for old, _ in used) + len(used) / 2, sum(new for _, new in used) + len(used) / 2
    terms = (((new + 0.5) / new_sum, (old + 0.5) / old_sum) for old, new in used)
    return math.fsum((p - q) * math.log(p / q) for p, q in terms)
