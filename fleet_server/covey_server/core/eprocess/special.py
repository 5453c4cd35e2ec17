"""The few special functions that the tests need, in pure Python; SciPy agrees to the digits that the unit tests name.

The server imports neither NumPy nor SciPy, and a look needs only a handful of calls.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import NormalDist

_NORMAL = NormalDist()
_TINY = 1e-300
_MAX_TERMS = 10_000


def log_normal_cdf(x: float) -> float:
    """log Φ(x), also where Φ itself is too small for a float.

    Far in the tail by the asymptotic series of Mills' ratio (Abramowitz & Stegun 26.2.12).
    """
    if x > -30.0:
        return math.log(0.5 * math.erfc(-x / math.sqrt(2.0)))
    inverse = 1.0 / (x * x)
    series = 1.0 - inverse * (1.0 - 3.0 * inverse * (1.0 - 5.0 * inverse))
    return -0.5 * x * x - math.log(-x) - 0.5 * math.log(2.0 * math.pi) + math.log(series)


def log_mean_exp(values: Iterable[float]) -> float:
    """log of the mean of e-values that are given as logarithms; −inf for none."""
    kept = list(values)
    top = max(kept, default=-math.inf)
    if math.isinf(top):
        return top
    return top + math.log(math.fsum(math.exp(value - top) for value in kept) / len(kept))


def log_beta(a: float, b: float) -> float:
    """log of the beta function."""
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def log_incomplete_beta(a: float, b: float, x: float) -> float:
    """log I_x(a, b), the regularised incomplete beta function; −inf where it is zero.

    The continued fraction of DLMF 8.17.22 by Lentz's method; the symmetry I_x(a, b) = 1 − I_{1−x}(b, a) where it converges slowly.
    """
    if x <= 0.0:
        return -math.inf
    if x >= 1.0:
        return 0.0
    if x > (a + 1.0) / (a + b + 2.0):
        other = log_incomplete_beta(b, a, 1.0 - x)
        return math.log1p(-math.exp(other)) if other < 0.0 else -math.inf
    front = a * math.log(x) + b * math.log1p(-x) - log_beta(a, b) - math.log(a)
    return front + math.log(_beta_fraction(a, b, x))


def _beta_fraction(a: float, b: float, x: float) -> float:
    c, d = 1.0, 1.0 - (a + b) * x / (a + 1.0)
    d = 1.0 / (d if abs(d) > _TINY else _TINY)
    value = d
    for m in range(1, _MAX_TERMS):
        for numerator in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1.0 + numerator * d
            d = 1.0 / (d if abs(d) > _TINY else _TINY)
            c = 1.0 + numerator / c
            c = c if abs(c) > _TINY else _TINY
            value *= c * d
        if abs(c * d - 1.0) < 1e-14:
            break
    return value


def t_to_z(t: float, degrees: float) -> float:
    """The normal deviate with the same tail as Student's `t` with so many degrees of freedom.

    What cannot be told from zero in a float is mapped by Wallace's approximation (1959).
    """
    if not math.isfinite(degrees) or t == 0.0:
        return t
    log_two_tails = log_incomplete_beta(degrees / 2.0, 0.5, degrees / (degrees + t * t))
    tail = 0.5 * math.exp(log_two_tails)
    if tail > _TINY:
        z = -_NORMAL.inv_cdf(tail)
    else:
        z = (8 * degrees + 1) / (8 * degrees + 3) * math.sqrt(degrees * math.log1p(t * t / degrees))
    return math.copysign(z, t)
