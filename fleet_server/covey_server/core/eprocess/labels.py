"""Does something happen to more canaries than to control devices? Evidence from the draw itself.

Which devices became canaries was drawn, within kinds. If the new build makes no difference, then of the T devices of a kind that it
happened to (they crashed, fell silent, run hot), any were as likely to be the canaries: their number X is hypergeometric. For an odds
ratio θ the e-value is θ^X / E[θ^X], times over kinds, averaged over a few θ. It needs no model of how often such things happen,
nor many of them, and is exact at each look; over looks it is the likelihood ratio of a sequence of draws as long as T is small
against the devices there are.

Sources: Ter Schure, Pérez-Ortiz, Ly & Grünwald 2021 (the safe logrank test, arXiv 2011.06931); Fisher's exact test.

>>> round(math.exp(log_e_value({"pi": (3, 50, 0, 950)})), 1) > 100
True
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from covey_server.core.eprocess.special import log_mean_exp

ODDS_RATIOS = (2.0, 4.0, 8.0, 16.0, 32.0)

# Of one kind: canaries that it happened to, canaries, control devices that it happened to, control devices.
Table = tuple[int, int, int, int]


def log_e_value(tables: Mapping[str, Table]) -> float:
    """log of the e-value against "it happens to canaries no more than to the control"."""
    return log_mean_exp(
        sum(_log_ratio(table, math.log(odds)) for _, table in sorted(tables.items())) for odds in ODDS_RATIOS
    )


def _log_ratio(table: Table, log_odds: float) -> float:
    x, n, y, m = table
    if not (0 <= x <= n and 0 <= y <= m):
        raise ValueError(f"{x} of {n} canaries, {y} of {m} control devices")
    total = x + y
    if total == 0 or n == 0 or m == 0:
        return 0.0
    low, high = max(0, total - m), min(n, total)
    terms = [_log_choose(n, k) + _log_choose(m, total - k) + k * log_odds for k in range(low, high + 1)]
    top = max(terms)
    log_sum = top + math.log(math.fsum(math.exp(term - top) for term in terms))
    return x * log_odds - (log_sum - _log_choose(n + m, total))


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
