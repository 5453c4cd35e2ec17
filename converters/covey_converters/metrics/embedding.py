"""Embeddings: does each sample keep its place, and its neighbours?"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from covey_contract.building import Accuracy
from covey_converters.errors import BadInputError
from covey_converters.metrics.judged import Judged
from covey_converters.parity import Outputs, usable
from covey_converters.samples import Samples

# Of neighbours, all pairs are compared.
_MOST_SAMPLES = 512
_FEWEST_SAMPLES = 3
# The order of neighbours moves more easily than the vectors do: it may lose this many times the budget.
_RANK_MARGIN = 10
Floats = NDArray[np.float64]


def judge(options: Mapping[str, str], source: Outputs, build: Outputs, samples: Samples, budget: float) -> Judged:
    """By the mean cosine of each sample's vector to the source's; and the order of all other samples by their similarity to one,
    compared with the source's order (Spearman), may not lose more than ten times the budget."""
    name = options.get("output") or next((name for name, array in source.items() if array.dtype.kind == "f"), "")
    if name not in source:
        raise BadInputError(f"metric embedding: there is no output {name[:80]!r}; there are {', '.join(source)}")
    if len(samples) < _FEWEST_SAMPLES:
        raise BadInputError(f"metric embedding needs at least {_FEWEST_SAMPLES} samples, to compare neighbours")
    a = _vectors(source[name])
    b = _vectors(build[name]) if usable(source[name], build[name]) else np.zeros_like(a)
    cosines = np.sum(a * b, axis=1)
    order = rank_agreement(a[:_MOST_SAMPLES], b[:_MOST_SAMPLES])
    accuracy = Accuracy(
        metric=f"cosine per sample of {name}",
        source=1.0,
        build=float(cosines.mean()),
        samples=len(samples),
        budget=budget,
        figures={"lowest cosine": (1.0, round(float(cosines.min()), 6)), "rank agreement": (1.0, round(order, 6))},
    )
    floor = 1 - _RANK_MARGIN * budget
    line = (
        f"neighbours keep their order to {order:.4f} (rank correlation with the source's); at least {floor:g} is needed"
    )
    return Judged(accuracy, frozenset({name}), (line,) if order < floor - 1e-9 else ())


def rank_agreement(a: Floats, b: Floats) -> float:
    """Mean Spearman correlation over samples of their similarities to all others; rows are unit vectors."""
    apart = ~np.eye(len(a), dtype=bool)
    ranks = [_ranks((rows @ rows.T)[apart].reshape(len(a), -1)) for rows in (a, b)]
    centred = [one - one.mean(axis=1, keepdims=True) for one in ranks]
    norms = np.linalg.norm(centred[0], axis=1) * np.linalg.norm(centred[1], axis=1)
    return float(np.mean(np.sum(centred[0] * centred[1], axis=1) / np.maximum(norms, 1e-30)))


def _ranks(rows: Floats) -> Floats:
    return rows.argsort(axis=1, kind="stable").argsort(axis=1).astype(np.float64)


def _vectors(output: NDArray[np.generic]) -> Floats:
    """(n, d), each of length one; a vector of zeros stays so."""
    rows = output.reshape(len(output), -1).astype(np.float64)
    unit: Floats = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)
    return unit
