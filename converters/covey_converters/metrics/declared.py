"""How a metric is declared, in one line of text.

classification                              accuracy at the labels; `figure=f1` (precision, recall) judges by that one
detection:boxes=0-3,scores=4-,format=cxcywh boxes decoded from an output, matched with the source's
regions:threshold=0.3                       connected regions of a map, matched with the source's
characters:blank=0                          sequences read by CTC, by character error rate
decisions:threshold=0.5                     each element against a threshold, by F1
embedding                                   cosine of each sample and agreement of neighbours
package.module:function                     a function of the operator's own, see `covey_converters.metrics.custom`
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from covey_converters.errors import BadInputError

CUSTOM = "custom"
_MAX_LENGTH = 300
_ENTRY_POINT = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)
_OPTIONS = {
    "classification": {"figure", "output"},
    "detection": {"output", "axis", "boxes", "format", "scores", "scores_output", "objectness", "classes", "threshold"},
    "regions": {"output", "threshold", "smallest"},
    "characters": {"output", "blank"},
    "decisions": {"output", "threshold"},
    "embedding": {"output"},
}


@dataclass(frozen=True)
class Declared:
    """`kind` is one of the names above, or `CUSTOM` with the entry point in `options["function"]`."""

    kind: str
    options: dict[str, str] = field(default_factory=dict)


def parse(text: str) -> Declared:
    """Raises `BadInputError` with the part that is wrong.

    >>> parse("detection:boxes=0-3,scores=4-")
    Declared(kind='detection', options={'boxes': '0-3', 'scores': '4-'})
    >>> parse("my_metrics:word_accuracy")
    Declared(kind='custom', options={'function': 'my_metrics:word_accuracy'})
    """
    kind, _, rest = text.strip().partition(":")
    if len(text) <= _MAX_LENGTH and kind in _OPTIONS:
        return Declared(kind, _options(kind, rest))
    if len(text) <= _MAX_LENGTH and _ENTRY_POINT.fullmatch(text.strip()):
        return Declared(CUSTOM, {"function": text.strip()})
    raise BadInputError(
        f"metric {text[:80]!r} is none of {', '.join(_OPTIONS)}, nor a Python entry point module:function"
    )


def _options(kind: str, text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for pair in filter(None, text.split(",")):
        key, equals, value = (part.strip() for part in pair.partition("="))
        if not equals or key not in _OPTIONS[kind] or key in found:
            raise BadInputError(
                f"metric {kind}: {pair.strip()[:80]!r} is no option; there are {', '.join(sorted(_OPTIONS[kind]))}"
            )
        found[key] = value
    return found
