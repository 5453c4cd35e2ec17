"""How much a sample can say: a budget is kept only if the samples bear it.

That a build lost 4 of 233 regions does not show that it loses no more than 3 %: on other pages the same build lost 16 of 281. So beside the
drop itself its one-sided 95 % upper bound counts, and must stay within twice the budget; only a build that lost nothing passes on fewer
samples, and the report says that they were few.

The unit is the sample, not the single decision: boxes of one picture are lost together, and counting them as if each had come by itself
promises too much. Pure.

    >>> single = Changed.of_answers(lost=[False] * 149, gained=[False] * 149)
    >>> round(upper_bound(single), 4)
    0.0199
    >>> objection(Changed(lost=(1,) * 3 + (0,) * 57, gained=(0,) * 60, trials=(1,) * 60), 0.05)
    '3 of 60 lost: up to 12.4 % may be (95 % confidence), which is more than twice the budget of 0.05'
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

CONFIDENCE = 0.95
# The upper bound may reach this many times the budget.
MARGIN = 2.0
_Z = 1.6448536269514722  # of the normal distribution at CONFIDENCE, one-sided
_STEPS = 60  # of bisection: to the last bit


@dataclass(frozen=True)
class Changed:
    """Single decisions (answers, boxes, characters) by sample: how many there are, how many are right at the source alone (lost), and at the
    build alone (gained)."""

    lost: tuple[int, ...]
    gained: tuple[int, ...]
    trials: tuple[int, ...]

    @classmethod
    def of_answers(cls, lost: Iterable[bool], gained: Iterable[bool]) -> Changed:
        """One answer a sample."""
        gone = tuple(map(int, lost))
        return cls(gone, tuple(map(int, gained)), (1,) * len(gone))

    @property
    def net(self) -> int:
        return sum(self.lost) - sum(self.gained)


def upper_bound(changed: Changed) -> float:
    """Of the true drop (lost - gained) / trials, at 95 %; the larger of two.

    Clopper and Pearson's exact bound (Biometrika 26, 1934) takes each decision for one of its own. The ratio estimator's (Cochran, Sampling
    Techniques, 6.3) takes each sample for one, and is approximate: it is asked of the samples and of one more, of mean size, that lost
    everything, without which few samples with no loss at all would bound it at nothing.
    """
    trials = sum(changed.trials)
    if trials <= 0:
        return 1.0
    exact = _clopper_pearson(min(max(changed.net, 0), trials), trials)
    size = trials / len(changed.trials)
    drops = [*(lost - gained for lost, gained in zip(changed.lost, changed.gained, strict=True)), size]
    sizes = [*changed.trials, size]
    share, total, count = sum(drops) / sum(sizes), sum(sizes), len(sizes)
    spread = math.fsum((drop - share * one) ** 2 for drop, one in zip(drops, sizes, strict=True))
    by_sample = share + _Z * math.sqrt(count / (count - 1) * spread) / total
    return min(max(exact, by_sample), 1.0)


def objection(changed: Changed, budget: float) -> str | None:
    """Why these samples do not bear out that the budget is kept; None if they do, or if nothing was lost all in all."""
    bound = upper_bound(changed)
    if changed.net <= 0 or budget <= 0 or bound <= MARGIN * budget + 1e-9:
        return None
    gained = f", {sum(changed.gained)} gained" if any(changed.gained) else ""
    return (
        f"{sum(changed.lost)} of {sum(changed.trials)} lost{gained}: up to {100 * bound:.1f} % may be (95 % confidence), which is more "
        f"than twice the budget of {budget:g}"
    )


def needed(budget: float) -> int:
    """The fewest single answers that bear a budget at all, if nothing is lost."""
    limit = MARGIN * budget
    return 1 if limit >= CONFIDENCE else math.ceil(math.log(1 - CONFIDENCE) / math.log1p(-limit))


def too_few(changed: Changed, budget: float) -> str | None:
    """A note for the report where even a build without a loss could lose more than twice its budget."""
    nothing = (0,) * len(changed.trials)
    bound = upper_bound(Changed(nothing, nothing, changed.trials))
    if budget <= 0 or bound <= MARGIN * budget + 1e-9:
        return None
    return (
        f"{sum(changed.trials)} decisions in {len(changed.trials)} samples are few for a budget of {budget:g}: about {needed(budget)} samples "
        f"are needed; a build passes only if it loses none, and may still lose {100 * bound:.0f} % of others"
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
