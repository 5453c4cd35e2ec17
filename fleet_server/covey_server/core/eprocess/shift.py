"""Did the canaries get worse than the control did? Devices are the units, each compared with its own past.

Every device gives one number: how far its figure moved since its swap, usually the logarithm of a ratio. A canary's residual is
its number less the middle of the control's devices of the same kind; the estimate is the mean residual, and its variance comes
from how much the control's devices differ among one another, kind by kind. Requests are no units: those of one device are not
independent, and counting them as if they were halts half of all campaigns in which nothing changed.

A device that was lost (crashed, silent, gone back) gives `math.inf`: it counts as the worst of its kind, in both groups alike.

>>> quiet = [(-1) ** i * 0.01 * i for i in range(20)]
>>> worse = compare({"pi": [0.2, 0.3, 0.25] * 4}, {"pi": quiet}, Rule(tau=0.05))
>>> worse.log_e > math.log(100), round(worse.estimate, 2)
(True, 0.25)
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from covey_server.core.eprocess.mixture import log_e_value, radius
from covey_server.core.eprocess.special import log_mean_exp, t_to_z

# The standard deviation of a normal distribution over its median absolute deviation.
MAD_SCALE = 1.4826
# Fewer controls of one kind say too little of how much such devices differ.
MIN_CONTROLS_OF_KIND = 5
# Where almost all control devices give the very same number, this part of τ still counts as their deviation.
FLOOR_OF_TAU = 0.1


@dataclass(frozen=True)
class Rule:
    """How numbers become evidence. `tau`: the smallest shift that matters, in the numbers' units; `margin`: the shift that is
    tolerated, so that only what goes beyond it is evidence; `winsorise`: how many scaled MADs from the middle of its kind a
    device may lie before it is pulled in, or None where `bound` alone pulls in; `bound`: no number lies further than this from
    zero."""

    tau: float
    margin: float = 0.0
    winsorise: float | None = 3.0
    bound: float | None = None


@dataclass(frozen=True)
class KindShift:
    """One kind of device: `estimate` for people; what is tested is the `excess` over the margin, with its `variance`, and the
    evidence of this kind alone.

    The two differ in where far numbers are pulled in: the excess must not rest on a single wild device if there is no more than
    the margin, so canaries are pulled in around the margin; the estimate would be too small for it, so there it is
    around the middle of the canaries themselves.
    """

    canaries: int
    controls: int
    estimate: float
    excess: float
    variance: float
    log_e: float


@dataclass(frozen=True)
class Shift:
    """The whole comparison. `unjudged` canaries are of kinds with too few controls; they count in nothing here."""

    canaries: int
    controls: int
    unjudged: int
    estimate: float
    variance: float
    z: float
    log_e: float
    log_e_overall: float
    kinds: Mapping[str, KindShift]

    @property
    def judged(self) -> bool:
        return self.canaries > 0

    def interval(self, tau: float, alpha: float) -> tuple[float, float]:
        """The confidence sequence of level 1 − `alpha` for the shift."""
        half = radius(self.variance, tau, alpha)
        return self.estimate - half, self.estimate + half


NOTHING = Shift(0, 0, 0, 0.0, 0.0, 0.0, -math.inf, -math.inf, {})


def compare(canaries: Mapping[str, Sequence[float]], controls: Mapping[str, Sequence[float]], rule: Rule) -> Shift:
    """The evidence that the canaries moved further than the control, by kind and overall; both map a kind to its devices'
    numbers. An average of e-values is an e-value (Vovk & Wang 2021): half of the weight is on the overall comparison, half is
    shared by the kinds, so that a change on one kind of device shows where the others would hide it."""
    parts = {
        kind: part
        for kind, numbers in sorted(canaries.items())
        if numbers and (part := _kind(numbers, controls.get(kind, ()), rule)) is not None
    }
    n = sum(part.canaries for part in parts.values())
    unjudged = sum(map(len, canaries.values())) - n
    if not n:
        return Shift(0, 0, unjudged, 0.0, 0.0, 0.0, -math.inf, -math.inf, {})
    m = sum(part.controls for part in parts.values())
    estimate = sum(part.canaries / n * part.estimate for part in parts.values())
    variance = sum((part.canaries / n) ** 2 * part.variance for part in parts.values())
    excess = sum(part.canaries / n * part.excess for part in parts.values())
    z, overall = _evidence(excess, variance, m - len(parts), rule)
    log_e = log_mean_exp([overall, log_mean_exp(part.log_e for part in parts.values())])
    return Shift(n, m, unjudged, estimate, variance, z, log_e, overall, parts)


def _kind(canaries: Sequence[float], controls: Sequence[float], rule: Rule) -> KindShift | None:
    n, m = len(canaries), len(controls)
    if m < MIN_CONTROLS_OF_KIND:
        return None
    control = _Control.of(controls, rule)
    excess = sum(control.excess(value, rule) for value in canaries) / n
    variance = control.variance * (1.0 / n + 1.0 / m)
    return KindShift(n, m, control.estimate(canaries), excess, variance, _evidence(excess, variance, m - 1, rule)[1])


@dataclass(frozen=True)
class _Control:
    """The control devices of one kind: the mean of their numbers once the far ones are pulled in to between `low` and `high`, and the
    variance of one of them."""

    low: float
    high: float
    middle: float
    variance: float

    @staticmethod
    def of(controls: Sequence[float], rule: Rule) -> _Control:
        m, ordered = len(controls), sorted(controls)
        low, high = _limits(ordered, rule)
        # In order, those that are pulled in are the two ends.
        first, last = bisect_left(ordered, low), bisect_right(ordered, high)
        inside = ordered[first:last]
        pulled = [(value, count) for value, count in ((low, first), (high, m - last)) if count]
        middle = (sum(inside) + sum(value * count for value, count in pulled)) / m
        squares = sum([(value - middle) ** 2 for value in inside])
        squares += sum((value - middle) ** 2 * count for value, count in pulled)
        return _Control(low, high, middle, max(squares / (m - 1), (FLOOR_OF_TAU * rule.tau) ** 2))

    def excess(self, value: float, rule: Rule) -> float:
        """What one canary's number is over the middle and the margin, pulled in."""
        return min(max(value - rule.margin, self.low), self.high) - self.middle

    def estimate(self, canaries: Sequence[float]) -> float:
        """The canaries' mean shift against the middle, each pulled in as far from the canaries' own median as control devices are
        from theirs."""
        known = sorted(value for value in canaries if math.isfinite(value))
        own = _median(known) if known else self.high
        low, high = own - (self.middle - self.low), own + (self.high - self.middle)
        return sum(min(max(value, low), high) for value in canaries) / len(canaries) - self.middle


def _limits(ordered: Sequence[float], rule: Rule) -> tuple[float, float]:
    """Between which numbers of this kind lie once the far ones are pulled in."""
    low, high = (-rule.bound, rule.bound) if rule.bound is not None else (-math.inf, math.inf)
    if rule.winsorise is not None:
        middle = _median(ordered)
        if not math.isfinite(middle):  # most of the control was lost: nobody is worse than it
            return 0.0, 0.0
        # Falling, then rising: sorting two runs costs little.
        deviation = MAD_SCALE * _median(sorted([abs(value - middle) for value in ordered]))
        reach = rule.winsorise * max(deviation, FLOOR_OF_TAU * rule.tau)
        low, high = max(low, middle - reach), min(high, middle + reach)
    return low, high


def _median(ordered: Sequence[float]) -> float:
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else 0.5 * (ordered[half - 1] + ordered[half])


def _evidence(excess: float, variance: float, degrees: int, rule: Rule) -> tuple[float, float]:
    """Z and log e of what lies beyond the margin. With few controls the variance is uncertain too, so the ratio is Student's."""
    z = t_to_z(excess / math.sqrt(variance), degrees)
    return z, log_e_value(z, variance, rule.tau)


class Member(NamedTuple):
    """One device's number, its kind, and the site it stands at."""

    kind: str
    site: str
    value: float


def compare_sites(canaries: Sequence[Member], controls: Sequence[Member], rule: Rule) -> Shift:
    """As `compare`, where canaries are whole sites: what a site shares (its network, its shifts, its weather) moves all its
    devices together, so the site is the unit. Each site gives the mean residual of its devices; `canaries` and `controls` of
    the answer count sites, and there is no comparison by kind."""
    judged, control = site_residuals(canaries, controls, rule)
    shown = site_residuals(canaries, controls, rule, shown=True)[0]
    n, m = len(judged), len(control)
    if n == 0 or m < MIN_CONTROLS_OF_KIND:
        return Shift(0, 0, len(canaries), 0.0, 0.0, 0.0, -math.inf, -math.inf, {})
    middle = math.fsum(control) / m
    spread = math.fsum((value - middle) ** 2 for value in control) / (m - 1)
    variance = max(spread, (FLOOR_OF_TAU * rule.tau) ** 2) * (1.0 / n + 1.0 / m)
    z, log_e = _evidence(math.fsum(judged) / n - middle, variance, m - 1, rule)
    return Shift(n, m, 0, math.fsum(shown) / n - middle, variance, z, log_e, log_e, {})


def site_residuals(
    canaries: Sequence[Member], controls: Sequence[Member], rule: Rule, *, shown: bool = False
) -> tuple[list[float], list[float]]:
    """The mean residual of each site's devices, of the canaries' sites (over the margin; without it where `shown` to people) and of
    the control's. Kinds with too few controls are left out."""
    of_kind = {
        kind: _Control.of(values, rule)
        for kind, values in by_kind(controls).items()
        if len(values) >= MIN_CONTROLS_OF_KIND
    }
    no_margin = replace(rule, margin=0.0)
    if not shown:
        return _site_means(canaries, of_kind, rule), _site_means(controls, of_kind, no_margin)
    # As a kind's estimate: what is beyond the limits is pulled in around the canaries' own middle.
    own = {kind: part.estimate(values) for kind, values in by_kind(canaries).items() if (part := of_kind.get(kind))}
    moved = [each._replace(value=each.value - own[each.kind]) for each in canaries if each.kind in own]
    residuals = _site_means(moved, of_kind, no_margin)
    mean = sum(own[each.kind] for each in moved) / len(moved) if moved else 0.0
    return [value + mean for value in residuals], _site_means(controls, of_kind, no_margin)


def by_kind(members: Sequence[Member]) -> dict[str, list[float]]:
    """The numbers of each kind, as `compare` takes them."""
    numbers: dict[str, list[float]] = {}
    for each in members:
        numbers.setdefault(each.kind, []).append(each.value)
    return numbers


def _site_means(members: Sequence[Member], of_kind: Mapping[str, _Control], rule: Rule) -> list[float]:
    residuals: dict[str, list[float]] = {}
    for each in members:
        if each.kind in of_kind:
            residuals.setdefault(each.site, []).append(of_kind[each.kind].excess(each.value, rule))
    return [math.fsum(found) / len(found) for _, found in sorted(residuals.items())]
