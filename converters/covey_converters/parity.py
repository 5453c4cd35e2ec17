"""Does a build answer as its source does? Pure functions over the outputs of both on the same samples.

Cosine alone passes broken models, so with labels the task's own metric decides, within the model's budget. Without labels the
build is held to the thresholds below, which are a weaker promise, and the report says so.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from covey_contract.building import Accuracy, OutputParity

Outputs = Mapping[str, NDArray[np.generic]]  # by name: (n, *shape of the output)


# The error of an output that cannot be compared at all. Finite, because JSON has no infinity.
INCOMPARABLE = sys.float_info.max


@dataclass(frozen=True)
class Thresholds:
    """The lowest cosine similarity per output, with and without labels, and the lowest top-1 agreement without them."""

    cosine: float
    cosine_labelled: float
    agreement: float


THRESHOLDS = {
    "fp32": Thresholds(cosine=0.9999, cosine_labelled=0.999, agreement=0.999),
    "fp16": Thresholds(cosine=0.999, cosine_labelled=0.99, agreement=0.99),
    "int8": Thresholds(cosine=0.98, cosine_labelled=0.9, agreement=0.95),
}


def compare(source: Outputs, build: Outputs) -> dict[str, OutputParity]:
    """Errors of every output over all samples and elements; outputs as {name: (n, *shape)}."""
    return {name: _compare(source[name], build[name]) for name in source}


def _compare(source: NDArray[np.generic], build: NDArray[np.generic]) -> OutputParity:
    if source.shape != build.shape:
        return OutputParity(max_error=INCOMPARABLE, mean_error=INCOMPARABLE, cosine=0.0)
    a, b = source.astype(np.float64), build.astype(np.float64)
    if not np.isfinite(b).all():
        return OutputParity(max_error=INCOMPARABLE, mean_error=INCOMPARABLE, cosine=0.0)
    error = np.abs(a - b)
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    cosine = float(np.sum(a * b)) / norms if norms else float(np.array_equal(a, b))
    agreement = float(np.mean(_top1(a) == _top1(b))) if is_scores(source) else None
    return OutputParity(
        max_error=float(error.max(initial=0.0)),
        mean_error=float(error.mean()) if error.size else 0.0,
        cosine=min(cosine, 1.0),
        top1_agreement=agreement,
    )


def is_scores(output: NDArray[np.generic]) -> bool:
    """Whether an output, (n, *shape), is one row of at least two scores per sample, so that "the highest" means something."""
    return output.ndim >= 2 and output.shape[-1] >= 2 and output[0].size == output.shape[-1]


def _top1(scores: NDArray[np.generic]) -> NDArray[np.intp]:
    rows: NDArray[np.intp] = scores.reshape(len(scores), -1).argmax(axis=1)
    return rows


def top1_accuracy(source: Outputs, build: Outputs, labels: NDArray[np.int64] | None, budget: float) -> Accuracy | None:
    """Share of samples whose highest score is at the label, by the first output that has a score for every label."""
    if labels is None:
        return None
    for name, scores in source.items():
        if is_scores(scores) and scores.shape[-1] > int(labels.max(initial=0)):
            return Accuracy(
                metric=f"top-1 of {name}",
                source=float(np.mean(_top1(scores) == labels)),
                build=float(np.mean(_top1(build[name]) == labels)) if _usable(scores, build[name]) else 0.0,
                samples=len(labels),
                budget=budget,
            )
    return None


def _usable(source: NDArray[np.generic], build: NDArray[np.generic]) -> bool:
    return source.shape == build.shape and bool(np.isfinite(build.astype(np.float64)).all())


def objections(precision: str, parity: Mapping[str, OutputParity], accuracy: Accuracy | None) -> list[str]:
    """Why the build must not ship, each with its figure; empty if it may."""
    limits = THRESHOLDS[precision]
    found: list[str] = []
    for name, output in parity.items():
        floor = limits.cosine if accuracy is None else limits.cosine_labelled
        if output.max_error == INCOMPARABLE:
            found.append(f"output {name!r} has another shape than the source's, or NaN or infinite values")
        elif output.cosine < floor:
            found.append(f"output {name!r} has cosine {output.cosine:.4f} to the source; at least {floor} is needed")
        elif accuracy is None and output.top1_agreement is not None and output.top1_agreement < limits.agreement:
            found.append(
                f"output {name!r} agrees with the source's top-1 on {output.top1_agreement:.1%} of the samples; "
                f"at least {limits.agreement:.1%} is needed"
            )
    # Differences of whole samples: a drop of exactly the budget is within it, whatever floating point makes of it.
    if accuracy is not None and accuracy.drop > accuracy.budget + 1e-9:
        found.append(
            f"{accuracy.metric} falls by {accuracy.drop:.4f} ({accuracy.source:.4f} -> {accuracy.build:.4f} on "
            f"{accuracy.samples} samples); the budget is {accuracy.budget:g}"
        )
    return found


def stack(rows: Sequence[Mapping[str, NDArray[np.generic]]]) -> dict[str, NDArray[np.generic]]:
    """Outputs of n samples as one array per name. Where a sample's shape differs from the first one's, rows are padded with zeros."""
    return {name: _stack([row[name] for row in rows]) for name in rows[0]}


def _stack(arrays: Sequence[NDArray[np.generic]]) -> NDArray[np.generic]:
    if len({array.shape for array in arrays}) == 1:
        return np.stack(arrays)
    if len({array.ndim for array in arrays}) != 1:
        raise ValueError("the samples' outputs have different ranks")
    shape = tuple(max(sizes) for sizes in zip(*(array.shape for array in arrays), strict=True))
    padded = [
        np.pad(array, [(0, want - have) for have, want in zip(array.shape, shape, strict=True)]) for array in arrays
    ]
    return np.stack(padded)
