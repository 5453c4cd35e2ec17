"""Yes or no, element by element: notes that are played, somebody who speaks, a tag that applies.

Each element of an output is a decision against a threshold; the figure is F1 (twice what both say yes to, over all that either says yes
to), with the source's decisions as the truth.

    output=NAME      (default: the first output)
    threshold=0.5    above it is yes
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from covey_contract.building import Accuracy
from covey_converters.errors import BadInputError
from covey_converters.evidence import Changed
from covey_converters.metrics.judged import Judged
from covey_converters.metrics.options import share
from covey_converters.parity import Outputs, usable
from covey_converters.samples import Samples

_THRESHOLD = 0.5


def judge(
    options: Mapping[str, str], source: Outputs, build: Outputs, samples: Samples, budget: float
) -> Judged | None:
    """None on random inputs on which the source says no to everything. Elements of one sample hang together, so that only an output of one
    element a sample is counted as evidence."""
    name = options.get("output", next(iter(source)))
    if name not in source:
        raise BadInputError(f"metric decisions: there is no output {name[:80]!r}; there are {', '.join(source)}")
    threshold = share("decisions", options, "threshold", _THRESHOLD)
    wanted = source[name].astype(np.float64) > threshold
    if not wanted.any():
        if samples.synthetic:
            return None
        raise BadInputError(
            f"metric decisions: the source has nothing above {threshold:g} in {len(samples)} samples, so nothing can be lost"
        )
    fits = usable(source[name], build[name])
    made = build[name].astype(np.float64) > threshold if fits else np.zeros_like(wanted)
    both = int((wanted & made).sum())
    accuracy = Accuracy(
        metric=f"F1 of decisions of {name}",
        source=1.0,
        build=2 * both / (int(wanted.sum()) + int(made.sum())),
        samples=len(samples),
        budget=budget,
        figures={"yes": (int(wanted.sum()), int(made.sum()))},
    )
    single = wanted[0].size == 1
    other = (wanted != made).reshape(len(wanted), -1)
    changed = Changed.of_answers(other[:, 0].tolist(), [False] * len(other)) if single else None
    return Judged(accuracy, frozenset({name}), (), changed)
