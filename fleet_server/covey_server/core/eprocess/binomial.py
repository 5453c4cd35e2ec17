"""Evidence that a share lies above a base rate: the beta-binomial e-process, for installs that fail.

The prior is Beta(½, 4½) cut off below the base rate, so it favours rates well above nothing and below a half; e is the mean
likelihood under it over the likelihood at the base rate. For a true rate at or below the base rate it is a nonnegative
supermartingale in the order in which outcomes come. Source: Robbins 1970; Howard et al. 2021, section 3 (conjugate mixtures).
"""

from __future__ import annotations

import math

from covey_server.core.eprocess.special import log_beta, log_incomplete_beta

PRIOR = (0.5, 4.5)


def log_e_value(failed: int, tried: int, base_rate: float) -> float:
    """log of the e-value against "the rate is at most `base_rate`" after `failed` of `tried`."""
    if not 0 < base_rate < 1:
        raise ValueError(f"the base rate {base_rate} is not between 0 and 1")
    if not 0 <= failed <= tried:
        raise ValueError(f"{failed} failed of {tried}")
    a, b = PRIOR
    after = _log_above(a + failed, b + tried - failed, base_rate) + log_beta(a + failed, b + tried - failed)
    before = _log_above(a, b, base_rate) + log_beta(a, b)
    at_base = failed * math.log(base_rate) + (tried - failed) * math.log1p(-base_rate)
    return after - before - at_base


def least_to_halt(tried: int, base_rate: float, alpha: float) -> int:
    """The least number of failures among `tried` that halts; `tried + 1` if none does."""
    boundary = math.log(1.0 / alpha)
    return next((x for x in range(tried + 1) if log_e_value(x, tried, base_rate) >= boundary), tried + 1)


def _log_above(a: float, b: float, x: float) -> float:
    """log of the part of Beta(a, b) above x."""
    return log_incomplete_beta(b, a, 1.0 - x)
