"""Anytime-valid evidence on the mean of something nearly normal: a one-sided half-normal mixture, and a confidence sequence.

An estimate with variance V, of which Z = estimate / √V, is looked at again and again while data come in. Mixed over shifts that
are half-normal with scale τ, the likelihood ratio against "no shift" is a nonnegative martingale with mean 1 where the estimate
gathers independent normal increments: so it passes 1/α at *any* look in at most a share α of cases (Ville). Here V is estimated
and the increments are only nearly normal, so the guarantee is asymptotic; `benchmarks/verdicts` shows how near it comes.

Sources: Robbins 1970; Howard, Ramdas, McAuliffe & Sekhon 2021 (confidence sequences); Lindon, Sanden & Shirikian 2022
(arXiv 2205.14762).
"""

from __future__ import annotations

import math

from covey_server.core.eprocess.special import log_normal_cdf


def log_e_value(z: float, variance: float, tau: float) -> float:
    """log of the e-value against "the shift is not above zero"; `tau` is the smallest shift that matters, in the units of √variance.

    >>> round(log_e_value(3.5, 1e-4, 0.05), 9)
    4.953222406
    """
    weight = tau * tau / (variance + tau * tau)
    return (
        math.log(2.0)
        + 0.5 * math.log(variance / (variance + tau * tau))
        + 0.5 * z * z * weight
        + log_normal_cdf(z * math.sqrt(weight))
    )


def radius(variance: float, tau: float, alpha: float) -> float:
    """Half the width of the confidence sequence around the estimate, in which the shift lies at all looks at once with
    probability 1 − `alpha`: where the two-sided normal mixture stays below 1/α."""
    ratio = tau * tau / variance
    return math.sqrt(variance * (1.0 + 1.0 / ratio) * (2.0 * math.log(1.0 / alpha) + math.log1p(ratio)))
