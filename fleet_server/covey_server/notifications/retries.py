"""When a delivery that failed is tried again: ten attempts within about three days, the first ones soon, then further apart.

The pauses are those that the Standard Webhooks specification gives as its example, each with up to a tenth more by chance, so
that many that failed together do not come back together.
"""

from __future__ import annotations

from collections.abc import Callable

PAUSES_S = (5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400)
ATTEMPTS = len(PAUSES_S) + 1
MAX_RETRY_AFTER_S = 86_400
_JITTER = 0.1


def next_pause_ms(attempts: int, chance: Callable[[], float], retry_after_s: int | None = None) -> int | None:
    """How long to wait after the `attempts`-th attempt has failed; None: give up. `chance` draws from [0, 1).

    >>> [next_pause_ms(n, lambda: 0.0) for n in (1, 2, 9, 10)]
    [5000, 300000, 86400000, None]
    >>> next_pause_ms(1, lambda: 0.5, retry_after_s=60)
    63000
    """
    if attempts >= ATTEMPTS:
        return None
    pause_s = max(PAUSES_S[attempts - 1], min(retry_after_s or 0, MAX_RETRY_AFTER_S))
    return round(pause_s * 1000 * (1 + _JITTER * chance()))
