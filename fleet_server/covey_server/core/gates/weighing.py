"""How an e-process gate gets from devices to a verdict: which method, which numbers, how much evidence, what is missing.

Gates differ in what number a device gives and in what is tolerated; all else is the same and stands here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from covey_server.core.eprocess.mixture import radius
from covey_server.core.eprocess.shift import Member, Rule, Shift, by_kind, compare, compare_sites
from covey_server.core.eprocess.special import log_mean_exp
from covey_server.core.gates.evidence import DeviceEvidence, StageEvidence
from covey_server.core.gates.verdict import Kind, Status, Verdict, rounded
from covey_server.core.spec.gates import Evidence, Method

# What a device's number is; None: it has none yet.
Number = Callable[[DeviceEvidence], float | None]

# A stage does not pass while the evidence against it is within this factor of the boundary.
SUSPICIOUS = 5.0
# Whole sites as units: fewer of them say too little.
MIN_CANARY_SITES = 3
MIN_CONTROL_SITES = 10
WORST_SHOWN = 10


@dataclass(frozen=True)
class Weighing:
    """What the gates of one stage have in common: the campaign's wishes, and this gate's part of α."""

    settings: Evidence = Evidence()
    alpha: float = 0.01

    @property
    def boundary(self) -> float:
        """log of the e-value that halts."""
        return math.log(1 / self.alpha)


@dataclass(frozen=True)
class Choice:
    """The method that was taken, and why."""

    kind: Kind
    why: str
    by_site: bool = False


def choose(method: Method, evidence: StageEvidence, settings: Evidence) -> Choice:
    """An e-process where it may and can be."""
    if method == "threshold":
        return Choice("threshold", "the campaign asks for it")
    why_not = _why_no_e_process(evidence, settings)
    if why_not and method == "auto":
        return Choice("threshold", why_not)
    by_site = evidence.whole_sites
    what = "whole sites as units, since canaries are whole sites" if by_site else "devices as units"
    return Choice("e_process", why_not or what, by_site)


def _why_no_e_process(evidence: StageEvidence, settings: Evidence) -> str:
    new = sum(1 for device in evidence.swapped if not device.had_build)
    canaries = evidence.canaries - new
    if canaries < settings.min_canaries:
        return f"{canaries} of at least {settings.min_canaries} canaries that had a build before"
    if evidence.pool < settings.min_controls:
        return f"{evidence.pool} of at least {settings.min_controls} control devices"
    if evidence.whole_sites:
        sites = sum(1 for each in evidence.sites if each.canaries)
        if sites < MIN_CANARY_SITES:
            return f"the canaries are {sites} whole sites; as units they would have to be {MIN_CANARY_SITES}"
    return ""


# --- the numbers --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Numbers:
    """Each device's number. A device that was lost counts as the worst there is, whether or not it had one."""

    canaries: tuple[Member, ...]
    controls: tuple[Member, ...]
    lost: dict[str, int]  # canaries, by how


def numbers(evidence: StageEvidence, number: Number, of_control: Number | None = None) -> Numbers:
    """`of_control`: a control device's number, where it is not made as a canary's."""
    lost: dict[str, int] = {}
    for device in evidence.swapped:
        if device.lost is not None and device.had_build:
            lost[device.lost] = lost.get(device.lost, 0) + 1
    return Numbers(_members(evidence.swapped, number), _members(evidence.controls, of_control or number), lost)


def _members(devices: Sequence[DeviceEvidence], number: Number) -> tuple[Member, ...]:
    members = []
    for device in devices:
        if not device.had_build:
            continue
        # A device that never answered anything is not lost to this figure.
        lost = device.lost is not None and device.was.requests > 0
        value = math.inf if lost else number(device)
        if value is not None:
            members.append(Member(device.kind, device.site, value))
    return tuple(members)


def shift_of(found: Numbers, rule: Rule, *, by_site: bool) -> Shift:
    if by_site:
        return compare_sites(found.canaries, found.controls, rule)
    return compare(by_kind(found.canaries), by_kind(found.controls), rule)


# --- the verdict --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Looked:
    """What one look at a gate's shift showed. `log_e` may be of several figures together; `shift` is of the one shown."""

    shift: Shift
    log_e: float
    rule: Rule


def together(main: tuple[Shift, Rule], *others: Shift) -> Looked:
    """Several figures of the same devices: the average of their e-values is an e-value, and at least as strong as halting
    where any of them passes its own part of α. A figure with no evidence of its own counts as e = 0."""
    shift, rule = main
    return Looked(shift, log_mean_exp([shift.log_e, *(other.log_e for other in others)]), rule)


@dataclass(frozen=True)
class Words:
    """How the gate's shift is shown: `show` makes a number of it such as +1.2 %, `scale` the value that goes into the figures."""

    name: str
    show: Callable[[float], str]
    scale: Callable[[float], float]


def percent(value: float) -> str:
    """A shift of a logarithm as a change in percent."""
    return f"{math.expm1(min(value, 20.0)):+.1%}".replace("%", " %").replace("-", "−")


def verdict(
    gate: str,
    looked: Looked,
    words: Words,
    weighing: Weighing,
    choice: Choice,
    *,
    figures: dict[str, Any],
    missing: Sequence[str],
    lost: dict[str, int],
    tolerated: str = "",
) -> Verdict:
    """`missing` are reasons why the evidence does not suffice to pass; `tolerated` is why evidence alone does not halt it."""
    shift, rule = looked.shift, looked.rule
    breached = looked.log_e >= weighing.boundary and not tolerated
    suspicious = looked.log_e >= weighing.boundary - math.log(SUSPICIOUS) and not tolerated
    reasons = [*missing, *(["evidence against it that is close to the boundary"] if suspicious else [])]
    status: Status = "breached" if breached else "no_evidence" if reasons else "passing"
    shown = {**figures, **_evidence_figures(looked, words, weighing, choice, lost)}
    told = _told(looked, words, weighing, lost)
    if status == "no_evidence":
        told = f"{'; '.join(reasons)} ({told})" if shift.judged else "; ".join(reasons)
    elif tolerated:
        told = f"{told}; {tolerated}"
    shown["missing"] = reasons
    shown["margin"] = rounded(words.scale(rule.margin))
    return Verdict(gate, status, told, shown, "e_process")


def _evidence_figures(
    looked: Looked, words: Words, weighing: Weighing, choice: Choice, lost: dict[str, int]
) -> dict[str, Any]:
    shift, rule = looked.shift, looked.rule
    figures: dict[str, Any] = {
        "devices": shift.canaries,
        "controls": shift.controls,
        "unjudged": shift.unjudged,
        "by_site": choice.by_site,
        "lost": lost,
        "evidence": evidence_figures(looked.log_e, weighing.alpha, choice.why),
    }
    if shift.judged:
        level = weighing.settings.confidence
        low, high = shift.interval(rule.tau, 1 - level)
        figures["estimate"] = rounded(words.scale(shift.estimate))
        figures["interval"] = [rounded(words.scale(low)), rounded(words.scale(high))]
        figures["confidence"] = level
        figures["kinds"] = {
            kind: {
                "canaries": part.canaries,
                "controls": part.controls,
                "estimate": rounded(words.scale(part.estimate)),
                "log10_e": rounded(part.log_e / math.log(10), 3),
            }
            for kind, part in shift.kinds.items()
        }
    return figures


def evidence_figures(log_e: float, alpha: float, why: str) -> dict[str, Any]:
    log_e = max(min(log_e, 700.0), -700.0)
    return {
        "e": float(f"{math.exp(log_e):.4g}"),
        "log10_e": rounded(log_e / math.log(10), 3),
        "boundary": round(1 / alpha, 3),
        "alpha": alpha,
        "why": why,
    }


def _told(looked: Looked, words: Words, weighing: Weighing, lost: dict[str, int]) -> str:
    shift, rule = looked.shift, looked.rule
    gone = f"; counted as worst: {lost_words(lost)}" if lost else ""
    if not shift.judged:
        return f"{words.name}: no device judged yet{gone}"
    level = weighing.settings.confidence
    half = radius(shift.variance, rule.tau, 1 - level)
    low, high = words.show(shift.estimate - half), words.show(shift.estimate + half)
    bad = [kind for kind, part in shift.kinds.items() if part.log_e >= weighing.boundary]
    where = (
        f", most on {', '.join(kind or 'devices without a profile' for kind in bad)}"
        if len(shift.kinds) > len(bad) > 0
        else ""
    )
    return (
        f"{words.name} {words.show(shift.estimate)} ({level * 100:g} % CS {low} … {high}) on {shift.canaries} against "
        f"{shift.controls}{where}; evidence {e_value_words(looked.log_e)} of {1 / weighing.alpha:.3g}{gone}"
    )


def lost_words(lost: dict[str, int]) -> str:
    return ", ".join(f"{count} {how.replace('_', ' ')}" for how, count in sorted(lost.items()))


def e_value_words(log_e: float) -> str:
    if log_e > math.log(1e6):
        return "over 1000000"
    value = math.exp(log_e)
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def missing_devices(evidence: StageEvidence, shift: Shift, requests: int, least: int, settings: Evidence) -> list[str]:
    """What is still to come before the stage may pass on this gate."""
    reasons = []
    if evidence.loading:
        reasons.append(f"the telemetry of {evidence.loading} devices still to be read")
    wanted = max(settings.min_devices, min(settings.min_canaries, evidence.canaries)) if not evidence.whole_sites else 1
    if shift.canaries < wanted:
        reasons.append(f"{shift.canaries} of {wanted} devices to judge by")
    controls = settings.min_controls if not evidence.whole_sites else MIN_CONTROL_SITES
    if shift.canaries and shift.controls < controls:
        reasons.append(f"{shift.controls} of {controls} control {'sites' if evidence.whole_sites else 'devices'}")
    least = max(least, settings.min_requests)
    if requests < least:
        reasons.append(f"{requests} of {least} requests")
    return reasons


def without_control(evidence: StageEvidence, shift: Shift, choice: Choice) -> StageEvidence:
    """The stage with those of its devices alone whose kind has too few control devices."""
    if choice.by_site or not shift.judged:
        return replace(evidence, swapped=())
    return replace(evidence, swapped=tuple(each for each in evidence.swapped if each.kind not in shift.kinds))


def and_the_rest(found: Verdict, rest: StageEvidence, judge_rest: Callable[[StageEvidence], Verdict]) -> Verdict:
    """Devices of kinds without a control group are held against the gate's threshold, since nobody else looks at them."""
    if not rest.swapped:
        return found
    limited = judge_rest(rest)
    told = f"{len(rest.swapped)} devices of kinds without control devices, by threshold: {limited.summary}"
    figures = {**found.figures, "without_control": limited.to_json()}
    status: Status = "breached" if limited.status == "breached" else found.status
    return replace(found, status=status, summary=f"{found.summary}; {told}", figures=figures)


def with_least(found: Verdict, evidence: StageEvidence, settings: Evidence) -> Verdict:
    """A verdict by threshold, held back until the campaign's own minimum of devices and requests is there, and while more
    devices than a tenth have fallen silent: nobody knows how they fare."""
    if found.status != "passing" or found.kind != "threshold":
        return found
    devices, requests = int(found.figures.get("devices", 0)), int(found.figures.get("requests", 0))
    silent = sum(device.lost == "silent" for device in evidence.swapped)
    reasons = []
    if silent > math.floor(0.1 * len(evidence.swapped)):
        reasons.append(f"{silent} of {len(evidence.swapped)} devices that have fallen silent")
    if evidence.loading:
        reasons.append(f"the telemetry of {evidence.loading} devices still to be read")
    if devices < settings.min_devices:
        reasons.append(f"{devices} of {settings.min_devices} devices to judge by")
    if requests < settings.min_requests:
        reasons.append(f"{requests} of {settings.min_requests} requests")
    return replace(found, status="no_evidence", summary="; ".join(reasons)) if reasons else found
