"""Lines of text, or any sequence by connectionist temporal classification (CTC): are the same characters read?

Each row of scores, [1, steps, classes], is read greedily: the best class of each step, repetitions and blanks dropped. The figure is one
minus the build's character error rate (Levenshtein's distance over the length) against what the source reads.

    output=NAME      of the scores (default: the first output)
    blank=0          the class that stands for nothing; -1 is the last one
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from covey_contract.building import Accuracy
from covey_converters.errors import BadInputError
from covey_converters.evidence import Changed
from covey_converters.metrics.judged import Judged
from covey_converters.metrics.options import whole
from covey_converters.parity import Outputs, usable
from covey_converters.samples import Samples


def judge(
    options: Mapping[str, str], source: Outputs, build: Outputs, samples: Samples, budget: float
) -> Judged | None:
    """None on random inputs in which the source reads nothing."""
    name = options.get("output", next(iter(source)))
    if name not in source:
        raise BadInputError(f"metric characters: there is no output {name[:80]!r}; there are {', '.join(source)}")
    classes = source[name].shape[-1]
    blank = whole("characters", options, "blank", 0)
    if source[name].ndim < 3 or not -classes <= blank < classes:
        raise BadInputError(
            f"metric characters: output {name!r} of shape {list(source[name].shape[1:])} is no row of scores a step with class {blank}"
        )
    wanted = [read(scores, blank) for scores in source[name]]
    made = (
        [read(scores, blank) for scores in build[name]] if usable(source[name], build[name]) else [[] for _ in wanted]
    )
    count = sum(map(len, wanted))
    if not count:
        if samples.synthetic:
            return None
        raise BadInputError(f"metric characters: the source reads nothing in {len(samples)} samples")
    wrong_in = [edits(one, other) for one, other in zip(wanted, made, strict=True)]
    wrong = sum(wrong_in)
    accuracy = Accuracy(
        metric=f"characters of {name} as the source reads them",
        source=1.0,
        build=1 - wrong / count,
        samples=len(samples),
        budget=budget,
        figures={"characters": (count, sum(map(len, made)))},
    )
    return Judged(accuracy, frozenset({name}), (), _changed(wrong_in, wanted))


def _changed(wrong: Sequence[int], wanted: Sequence[Sequence[int]]) -> Changed:
    lengths = tuple(map(len, wanted))
    lost = tuple(min(edited, length) for edited, length in zip(wrong, lengths, strict=True))
    return Changed(lost, (0,) * len(lengths), lengths)


def read(scores: NDArray[np.generic], blank: int) -> list[int]:
    """The classes of one sample's scores (…, steps, classes), read greedily."""
    rows = scores.reshape(-1, scores.shape[-1])
    best, nothing = rows.argmax(axis=-1).tolist(), blank % scores.shape[-1]
    return [one for one, before in zip(best, [nothing, *best], strict=False) if one not in (nothing, before)]


def edits(one: Sequence[int], other: Sequence[int]) -> int:
    """Levenshtein's distance.

    >>> edits([1, 2, 3], [1, 3, 4])
    2
    """
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        diagonal, row[0] = row[0], i
        for j, b in enumerate(other, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (a != b))
    return row[-1]
