"""How much a sample can say: a budget is kept only if the samples bear it.

That a build lost 5 of 90 boxes does not show that it loses no more than 6 %: with 90 boxes a build that loses a tenth looks like that
one time in eight. So beside the drop itself its one-sided 95 % upper bound counts, and must stay within twice the budget; only a
build that lost nothing passes on fewer samples, and the report says that they were few. Pure.

    >>> round(upper_bound(Changed(lost=0, gained=0, trials=149)), 4)
    0.0199
    >>> objection(Changed(lost=5, gained=0, trials=90), 0.06) is None
    True
    >>> objection(Changed(lost=5, gained=0, trials=60), 0.09) is None
    True
    >>> objection(Changed(lost=3, gained=0, trials=60), 0.05)
    '3 of 60 lost: up to 12.4 % may be (95 % confidence), which is more than twice the budget of 0.05'
"""

from __future__ import annotations

import math
from dataclasses import dataclass

CONFIDENCE = 0.95
# The upper bound may reach this many times the budget.
MARGIN = 2.0
_Z = 1.6448536269514722  # of the normal distribution at CONFIDENCE, one-sided
_STEPS = 60  # of bisection: to the last bit


@dataclass(frozen=True)
class Changed:
    """Of `trials` single decisions (answers, boxes, characters): `lost` are right at the source alone, `gained` at the build alone."""

    lost: int
    gained: int
    trials: int


def upper_bound(changed: Changed) -> float:
    """Of the true drop (lost - gained) / trials, at 95 %: Clopper and Pearson's exact bound (Biometrika 26, 1934) of what was lost all in
    all; where something was gained too, at least Agresti and Min's for paired proportions (Stat. Med. 24, 2005), which is approximate."""
    if changed.trials <= 0:
        return 1.0
    exact = _clopper_pearson(max(changed.lost - changed.gained, 0), changed.trials)
    if not changed.gained:
        return exact
    lost, gained, trials = changed.lost + 0.5, changed.gained + 0.5, changed.trials + 2.0
    drop = (lost - gained) / trials
    return max(exact, min(drop + _Z * math.sqrt(max(lost + gained - (lost - gained) ** 2 / trials, 0.0)) / trials, 1.0))


def objection(changed: Changed, budget: float) -> str | None:
    """Why these samples do not bear out that the budget is kept; None if they do, or if nothing was lost all in all."""
    net = changed.lost - changed.gained
    bound = upper_bound(changed)
    if net <= 0 or budget <= 0 or bound <= MARGIN * budget + 1e-9:
        return None
    what = f"{changed.lost} of {changed.trials} lost" + (f", {changed.gained} gained" if changed.gained else "")
    return (
        f"{what}: up to {100 * bound:.1f} % may be (95 % confidence), which is more than twice the budget of {budget:g}"
    )


def needed(budget: float) -> int:
    """The fewest trials that bear a budget at all, if nothing is lost."""
    limit = MARGIN * budget
    return 1 if limit >= CONFIDENCE else math.ceil(math.log(1 - CONFIDENCE) / math.log1p(-limit))


def too_few(trials: int, budget: float) -> str | None:
    """A note for the report where even a build without a loss could lose more than twice its budget."""
    if budget <= 0 or trials >= needed(budget):
        return None
    bound = upper_bound(Changed(0, 0, trials))
    return (
        f"{trials} decisions are few for a budget of {budget:g}: at least {needed(budget)} are needed; a build passes only if it loses "
        f"none, and may still lose {100 * bound:.0f} % of others"
    )


def _clopper_pearson(lost: int, trials: int) -> float:
    """The largest share of losses under which so few as `lost` of `trials` still come in one sample of twenty."""
    if lost >= trials:
        return 1.0
    low, high = lost / trials, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if _at_most(lost, trials, middle) > 1 - CONFIDENCE else (low, middle)
    return high


def _at_most(lost: int, trials: int, share: float) -> float:
    """Probability of `lost` losses or fewer among `trials`."""
    if share <= 0:
        return 1.0
    if share >= 1:
        return float(lost >= trials)
    logs = (
        math.lgamma(trials + 1)
        - math.lgamma(count + 1)
        - math.lgamma(trials - count + 1)
        + count * math.log(share)
        + (trials - count) * math.log1p(-share)
        for count in range(lost + 1)
    )
    return math.fsum(math.exp(value) for value in logs)
