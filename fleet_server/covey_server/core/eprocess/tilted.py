"""Evidence from the draw alone, for numbers of any distribution: an exponentially tilted sum.

Which devices became canaries was drawn, within kinds. If the new build makes no difference, the canaries' numbers are a draw without
replacement from those of both groups. For any tilt λ, exp(λ Σ x) over the n canaries is then on average at most the n-th power of the
mean of exp(λ x) over both groups (Hoeffding 1963, theorem 4: drawing with replacement spreads more), so their ratio is an
e-value, exact at each look whatever the numbers are like; the average over a few λ is one too. Where the numbers are nearly normal
it does what the mixture does; where a few devices have bursts of errors and most have none, the mixture halts too often and this
does not.

>>> quiet = {"pi": [0.0] * 95 + [2.0] * 5}
>>> math.exp(log_e_value({"pi": [0.0] * 9 + [2.0]}, quiet).overall) < 1.5
True
>>> math.exp(log_e_value({"pi": [2.0] * 8 + [0.0] * 2}, quiet).overall) > 1000
True
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from covey_server.core.eprocess.special import log_mean_exp

TILTS = (0.5, 1.0, 2.0, 4.0, 8.0)


@dataclass(frozen=True)
class Tilted:
    """log e-values: of all kinds together, of each kind, and their average as in `shift.compare`."""

    overall: float
    kinds: Mapping[str, float]

    @property
    def log_e(self) -> float:
        if not self.kinds:
            return self.overall
        return log_mean_exp([self.overall, log_mean_exp(self.kinds.values())])


def log_e_value(canaries: Mapping[str, Sequence[float]], controls: Mapping[str, Sequence[float]]) -> Tilted:
    """The evidence that the canaries' finite numbers are larger, by kind and overall."""
    parts = {
        kind: _log_ratios(numbers, controls[kind])
        for kind, numbers in sorted(canaries.items())
        if numbers and controls.get(kind)
    }
    if not parts:
        return Tilted(-math.inf, {})
    overall = log_mean_exp(sum(ratios) for ratios in zip(*parts.values(), strict=True))
    return Tilted(overall, {kind: log_mean_exp(ratios) for kind, ratios in parts.items()})


def _log_ratios(canaries: Sequence[float], controls: Sequence[float]) -> list[float]:
    """One for each tilt."""
    both = [*canaries, *controls]
    top, total = max(both), sum(canaries)
    ratios = []
    for tilt in TILTS:
        log_mean = tilt * top + math.log(sum(math.exp(tilt * (value - top)) for value in both) / len(both))
        ratios.append(tilt * total - len(canaries) * log_mean)
    return ratios
