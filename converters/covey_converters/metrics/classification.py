"""Classes: accuracy, and macro-averaged precision, recall and F1, against the evaluation's labels."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from covey_contract.building import Accuracy
from covey_converters.errors import BadInputError
from covey_converters.evidence import Changed
from covey_converters.metrics.judged import Judged
from covey_converters.parity import Outputs, is_scores, top1, usable
from covey_converters.samples import Samples

_FIGURES = ("accuracy", "precision", "recall", "f1")


def judge(
    options: Mapping[str, str], source: Outputs, build: Outputs, samples: Samples, budget: float
) -> Judged | None:
    """By `figure` (default accuracy) of `output` (default: the first one with a score for every label). None without labels."""
    labels, figure = samples.labels, options.get("figure", "accuracy")
    if figure not in _FIGURES:
        raise BadInputError(f"metric classification: figure {figure[:40]!r} is none of {', '.join(_FIGURES)}")
    if labels is None:
        if options:
            raise BadInputError("metric classification needs an evaluation with 'labels'")
        return None
    name = _output(options.get("output"), source, labels)
    if name is None:
        return None
    found = figures(labels, top1(source[name]))
    got = figures(labels, top1(build[name])) if usable(source[name], build[name]) else dict.fromkeys(_FIGURES, 0.0)
    accuracy = Accuracy(
        metric=f"top-1 of {name}" if figure == "accuracy" else f"macro {figure} of {name}",
        source=found[figure],
        build=got[figure],
        samples=len(labels),
        budget=budget,
        figures={key: (round(found[key], 6), round(got[key], 6)) for key in _FIGURES},
    )
    return Judged(accuracy, frozenset({name}), (), _changed(labels, source[name], build[name]))


def _changed(labels: NDArray[np.int64], source: NDArray[np.generic], build: NDArray[np.generic]) -> Changed:
    before = top1(source) == labels
    after = top1(build) == labels if usable(source, build) else np.zeros_like(before)
    return Changed.of_answers((before & ~after).tolist(), (after & ~before).tolist())


def _output(wanted: str | None, source: Outputs, labels: NDArray[np.int64]) -> str | None:
    fits = [
        name for name, scores in source.items() if is_scores(scores) and scores.shape[-1] > int(labels.max(initial=0))
    ]
    if wanted is None:
        return fits[0] if fits else None
    if wanted not in fits:
        raise BadInputError(
            f"metric classification: output {wanted[:80]!r} is not a row of scores with one for every label"
        )
    return wanted


def figures(labels: NDArray[np.int64], predicted: NDArray[np.intp]) -> dict[str, float]:
    """Accuracy, and means over all classes that occur among labels or predictions; a class that is never predicted has precision 0.

    >>> figures(np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1]))["recall"]
    0.75
    """
    classes = np.union1d(labels, predicted)
    right = np.array([np.sum((labels == one) & (predicted == one)) for one in classes], dtype=np.float64)
    given = np.array([np.sum(predicted == one) for one in classes], dtype=np.float64)
    there = np.array([np.sum(labels == one) for one in classes], dtype=np.float64)
    precision, recall = right / np.maximum(given, 1), right / np.maximum(there, 1)
    f1 = 2 * right / np.maximum(given + there, 1)
    return {
        "accuracy": float(np.mean(labels == predicted)),
        "precision": float(precision.mean()),
        "recall": float(recall.mean()),
        "f1": float(f1.mean()),
    }
