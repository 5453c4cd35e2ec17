"""Numbers in the options of a metric; a wrong one is a `BadInputError` that names it."""

from __future__ import annotations

import re
from collections.abc import Mapping

from covey_converters.errors import BadInputError


def whole(metric: str, options: Mapping[str, str], key: str, default: int) -> int:
    text = options.get(key, str(default))
    if not re.fullmatch(r"-?\d{1,5}", text):
        raise BadInputError(f"metric {metric}: {key}={text[:40]!r} is not a whole number")
    return int(text)


def share(metric: str, options: Mapping[str, str], key: str, default: float) -> float:
    """Between 0 and 1, without either."""
    text = options.get(key, str(default))
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1:
        raise BadInputError(f"metric {metric}: {key}={text[:40]!r} is not between 0 and 1")
    return value
