"""Figures in reasons: short, and never so short that two that differ look alike."""

from __future__ import annotations

import math


def written(value: float, digits: int = 3) -> str:
    """With at least `digits` significant digits, without exponent or trailing zeros.

    >>> written(14.21), written(9.1), written(1210.4), written(0.0415), written(0)
    ('14.2', '9.1', '1,210', '0.0415', '0')
    """
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value)))) if value else 0
    text = f"{value:,.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def apart(first: float, second: float, digits: int = 3) -> tuple[str, str]:
    """Both, with as many digits as it takes to tell them apart.

    >>> apart(1210.4, 900), apart(9.1021, 9.1018)
    (('1,210', '900'), ('9.1021', '9.1018'))
    """
    enough = (n for n in range(digits, 17) if written(first, n) != written(second, n))
    shown = next(enough, digits)
    return written(first, shown), written(second, shown)
