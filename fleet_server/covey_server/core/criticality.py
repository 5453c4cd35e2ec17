"""How much hangs on a device: the label `criticality`, a word or a number, and `site`, as the numbers and names planning sorts by.

>>> criticality_of({"criticality": "high"}), criticality_of({"criticality": "7"}), criticality_of({})
(75, 7, 50)
"""

from __future__ import annotations

import re
from collections.abc import Mapping

LABEL = "criticality"
SITE_LABEL = "site"
WORDS = {"low": 25, "medium": 50, "high": 75, "critical": 100}
MEDIUM = WORDS["medium"]  # of a device of which nothing is said
MOST = 100


def criticality_of(labels: Mapping[str, str]) -> int:
    """0 (nothing hangs on it) to 100. Raises `ValueError` for a label that is neither a word of `WORDS` nor such a number."""
    text = labels.get(LABEL)
    if text is None:
        return MEDIUM
    if text in WORDS:
        return WORDS[text]
    if re.fullmatch(r"\d{1,3}", text, re.ASCII) and int(text) <= MOST:
        return int(text)
    raise ValueError(f"{text[:64]!r} is none of {', '.join(WORDS)} and no whole number from 0 to {MOST}")
