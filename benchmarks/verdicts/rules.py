"""The rules that are compared, all on the same figures of the same devices.

`Ours` calls the server's own code (`covey_server.core.gates`). The others are what the field uses, in our own few lines:
thresholds on pooled percentiles, Kayenta's Mann-Whitney test on series of minutes, a t-test on devices without correction, and the
limits on failed devices of hawkBit, Azure Device Update and AWS IoT Jobs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, stdtr

from benchmarks.verdicts.fleet import Floats, Ints
from benchmarks.verdicts.recording import SCALE, Span
from covey_server.core.eprocess import labels
from covey_server.core.eprocess.shift import Member
from covey_server.core.gates import alpha_each
from covey_server.core.gates.errors import error_shift, tolerated, weigh_errors
from covey_server.core.gates.latency import MARGIN, MAX_RATIO, TOLERATED_SLOW, log_exceedance, weigh_latency
from covey_server.core.gates.weighing import Looked, Numbers
from covey_server.core.spec.gates import ErrorGate, Gates, LatencyGate, SilenceGate

QUANTILE = 0.99
LATENCY = LatencyGate(quantile=QUANTILE)
ERRORS = ErrorGate(max_rate=0.003)
# The limit on errors of the rules that are nothing but limits: at 0.3 % they halt many campaigns in which nothing changed.
ERROR_LIMIT = 0.005
# The campaign that is judged; where devices crash, it watches for silence too.
GATES = Gates(latency=LATENCY, errors=ERRORS)
WITH_SILENCE = Gates(latency=LATENCY, errors=ERRORS, silence=SilenceGate())


@dataclass(frozen=True)
class Side:
    """One group at one look: each device's kind, site, log quantiles, requests beyond its own earlier quantile, requests and
    failures after and before; and which of them were lost."""

    kind: Ints
    site: Ints
    log_before: Floats
    log_after: Floats
    above: Floats
    requests: Ints
    failed: Ints
    requests_before: Ints
    failed_before: Ints
    lost: npt.NDArray[np.bool_]

    def rows(self, which: Ints | npt.NDArray[np.bool_]) -> Side:
        return Side(*(getattr(self, name)[which] for name in self.__dataclass_fields__))


def side(kind: Ints, site: Ints, before: Span, after: Span, lost: npt.NDArray[np.bool_] | None = None) -> Side:
    log_before = before.log_quantile(QUANTILE)
    return Side(
        kind,
        site,
        log_before,
        after.log_quantile(QUANTILE),
        after.above(log_before),
        after.requests,
        after.failed,
        before.requests,
        before.failed,
        np.zeros(len(kind), bool) if lost is None else lost,
    )


@dataclass
class Pools:
    """All requests of a group thrown together, minute by minute, as rules with requests for units see them."""

    before: npt.NDArray[Any]
    minutes: list[npt.NDArray[Any]] = field(default_factory=list)
    _series: list[float] = field(default_factory=list)

    def last(self, count: int) -> npt.NDArray[Any]:
        recent: npt.NDArray[Any] = np.sum(self.minutes[-count:], axis=0)
        return recent

    def series(self) -> list[float]:
        """Each minute's ln p99, less that of the hour before."""
        before = pool_quantile(self.before, QUANTILE)
        self._series += [pool_quantile(each, QUANTILE) - before for each in self.minutes[len(self._series) :]]
        return self._series


POOL_BUCKETS = 600
_POOL_ZERO = 300


def pool(span: Span) -> npt.NDArray[Any]:
    """One histogram of all devices. What lies below a device's cut is put into its first bucket."""
    index = np.clip(span.first[:, None] + np.arange(span.counts.shape[1]) - 1 + _POOL_ZERO, 0, POOL_BUCKETS - 1)
    return np.bincount(index.ravel(), weights=span.counts.ravel(), minlength=POOL_BUCKETS)


def pool_quantile(counts: npt.NDArray[Any], q: float) -> float:
    """ln seconds."""
    reached = np.cumsum(counts)
    rank = q * reached[-1]
    bucket = int(np.searchsorted(reached, rank))
    part = (rank - (reached[bucket] - counts[bucket])) / max(counts[bucket], 1)
    return float((bucket - _POOL_ZERO + part) / SCALE * math.log(2))


@dataclass(frozen=True)
class Look:
    """What a rule sees at one look. `silence`: whether the campaign watches for it; `by_site`: whether the sites are the units."""

    canaries: Side
    controls: Side
    canary_pools: Pools | None = None
    control_pools: Pools | None = None
    silence: bool = False
    by_site: bool = False


Rule = Callable[[Look], bool]


# --- ours ---------------------------------------------------------------------------------------------------------


def _members(group: Side, values: list[float | None]) -> tuple[Member, ...]:
    kinds, sites = map(str, group.kind.tolist()), map(str, group.site.tolist())
    lost = group.lost.tolist()
    told = [math.inf if is_lost else value for is_lost, value in zip(lost, values, strict=True)]
    return tuple(
        Member(kind, site, value) for kind, site, value in zip(kinds, sites, told, strict=True) if value is not None
    )


def _shifts(group: Side) -> list[float | None]:
    shift = group.log_after - group.log_before
    return [value if math.isfinite(value) else None for value in shift.tolist()]


def _exceedances(group: Side) -> list[float | None]:
    known = np.isfinite(group.log_after - group.log_before)
    return [
        log_exceedance(above, requests, QUANTILE) if is_known else None
        for above, requests, is_known in zip(group.above.tolist(), group.requests.tolist(), known.tolist(), strict=True)
    ]


def _error_shifts(group: Side) -> list[float | None]:
    return [
        error_shift(*numbers)
        for numbers in zip(
            group.failed_before.tolist(),
            group.requests_before.tolist(),
            group.failed.tolist(),
            group.requests.tolist(),
            strict=True,
        )
    ]


def _numbers(look: Look, of: Callable[[Side], list[float | None]]) -> Numbers:
    gone = int(look.canaries.lost.sum())
    return Numbers(
        _members(look.canaries, of(look.canaries)),
        _members(look.controls, of(look.controls)),
        {"silent": gone} if gone else {},
    )


def latency_evidence(look: Look) -> Looked:
    """What the latency gate has found so far."""
    return weigh_latency(LATENCY, _numbers(look, _shifts), _numbers(look, _exceedances), by_site=look.by_site)


def ours(look: Look) -> bool:
    """As `covey_server.core.gates.judge` does: each gate by its own evidence, with its share of α."""
    boundary = -math.log(alpha_each(WITH_SILENCE if look.silence else GATES))
    if latency_evidence(look).log_e >= boundary:
        return True
    rate = float(look.canaries.failed.sum()) / max(int(look.canaries.requests.sum()), 1)
    lost = {"silent": int(look.canaries.lost.sum())} if look.canaries.lost.any() else {}
    # What is tolerated needs no weighing.
    if not tolerated(ERRORS, rate, lost):
        errors = _numbers(look, _error_shifts)
        if weigh_errors(errors, by_site=look.by_site).log_e >= boundary:
            return True
    return look.silence and labels.log_e_value(_tables(look)) >= boundary


def _tables(look: Look) -> dict[str, labels.Table]:
    tables = {}
    for kind in np.unique(look.canaries.kind).tolist():
        canaries, controls = look.canaries.kind == kind, look.controls.kind == kind
        tables[str(kind)] = (
            int(look.canaries.lost[canaries].sum()),
            int(canaries.sum()),
            int(look.controls.lost[controls].sum()),
            int(controls.sum()),
        )
    return tables


def ours_by_threshold(look: Look) -> bool:
    """The simple choice, with its own limits: more than a tenth of the devices half as slow again as in their own past, or too
    many errors."""
    shift = look.canaries.log_after - look.canaries.log_before
    slow = int((shift[np.isfinite(shift)] > math.log(MAX_RATIO)).sum())
    return slow > math.floor(TOLERATED_SLOW * len(shift)) or _errors_above(look)


def _errors_above(look: Look) -> bool:
    canaries = look.canaries
    rate = canaries.failed.sum() / max(canaries.requests.sum(), 1)
    before = canaries.failed_before.sum() / max(canaries.requests_before.sum(), 1)
    return bool(rate > ERROR_LIMIT and rate > before)


# --- the field's --------------------------------------------------------------------------------------------------


def pooled(ratio: float, minutes: int, *, own_past: bool = False) -> Rule:
    def rule(look: Look) -> bool:
        assert look.canary_pools is not None
        assert look.control_pools is not None
        now = pool_quantile(look.canary_pools.last(minutes), QUANTILE)
        other = look.canary_pools.before if own_past else look.control_pools.last(minutes)
        return now - pool_quantile(other, QUANTILE) > math.log(ratio) or _errors_above(look)

    return rule


def mann_whitney(look: Look) -> bool:
    """Kayenta compares series of a metric, one value a minute; here p99 of all requests of a group over that of its own hour
    before, from the fifth minute on, at 1 %."""
    assert look.canary_pools is not None
    assert look.control_pools is not None
    canary, control = look.canary_pools.series(), look.control_pools.series()
    if len(canary) < 5:
        return _errors_above(look)
    n, m = len(canary), len(control)
    ranks = np.empty(n + m)
    ranks[np.argsort(np.array(canary + control))] = np.arange(1, n + m + 1)  # no two are equal
    u = ranks[:n].sum() - n * (n + 1) / 2
    z = (u - n * m / 2 - 0.5) / math.sqrt(n * m * (n + m + 1) / 12)
    return bool(ndtr(-z) < 0.01) or _errors_above(look)


def t_test(look: Look) -> bool:
    """Welch's on devices, kinds apart, at 1 % each minute without correction for looking again."""
    canary, control = (group.log_after - group.log_before for group in (look.canaries, look.controls))
    for kind in np.unique(look.controls.kind):
        inside = look.controls.kind == kind
        middle = np.median(control[inside])
        control = np.where(inside, control - middle, control)
        canary = np.where(look.canaries.kind == kind, canary - middle, canary)
    canary, control = canary[np.isfinite(canary)], control[np.isfinite(control)]
    a, b = canary.var(ddof=1) / len(canary), control.var(ddof=1) / len(control)
    t = (canary.mean() - control.mean()) / math.sqrt(a + b)
    degrees = (a + b) ** 2 / (a**2 / (len(canary) - 1) + b**2 / (len(control) - 1))
    return bool(stdtr(degrees, -t) < 0.01) or _errors_above(look)


def failed_devices(share: float, *, least_failed: int = 1, least_reached: int = 1) -> Rule:
    """Limits on devices that report that their update failed: lost ones, and those whose own error share passes 2 % and five
    times what it was. What a device does not call a failure, these services do not see."""

    def rule(look: Look) -> bool:
        canaries = look.canaries
        rate = canaries.failed / np.maximum(canaries.requests, 1)
        before = canaries.failed_before / np.maximum(canaries.requests_before, 1)
        failed = int((canaries.lost | ((rate > 0.02) & (rate > 5 * before))).sum())
        reached = len(rate)
        return failed >= least_failed and reached >= least_reached and failed > share * reached

    return rule


RULES: dict[str, Rule] = {
    "covey_e_process": ours,
    "covey_threshold_50pct": ours_by_threshold,
    "pooled_p99_10pct": pooled(1.10, 1),
    "pooled_p99_20pct_5min": pooled(1.20, 5),
    "own_past_10pct_5min": pooled(1.10, 5, own_past=True),
    "kayenta_mann_whitney": mann_whitney,
    "t_test_uncorrected": t_test,
    "hawkbit_5pct_failed": failed_devices(0.05),
    "azure_5pct_and_10_failed": failed_devices(0.05, least_failed=10),
    "aws_5pct_of_10": failed_devices(0.0499, least_reached=10),
}

assert MARGIN == 1.0, "the table says what is tolerated"
