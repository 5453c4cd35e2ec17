"""Does a build answer as its source does? Pure functions over the outputs of both on the same samples.

Cosine alone passes broken models, so the task's own metric decides (`covey_converters.metrics`), within the model's budget. What no
metric looks at is held to the thresholds below, column by column, which is a weaker promise, and the report says so.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from covey_contract.building import Accuracy, OutputParity
from covey_converters import evidence
from covey_converters.columns import worst_column
from covey_converters.evidence import Changed

Outputs = Mapping[str, NDArray[np.generic]]  # by name: (n, *shape of the output)


# The error of an output that cannot be compared at all. Finite, because JSON has no infinity.
INCOMPARABLE = sys.float_info.max
_EVEN = 0.5  # a probability above it is a yes


@dataclass(frozen=True)
class Thresholds:
    """The lowest cosine similarity of an output without a metric of its own and with one; without one also the lowest top-1
    agreement, the lowest F1 of decisions where the output is a map of probabilities, and the highest error of a column relative to its
    range."""

    cosine: float
    cosine_judged: float
    agreement: float
    decisions: float
    column: float


THRESHOLDS = {
    "fp32": Thresholds(cosine=0.9999, cosine_judged=0.999, agreement=0.999, decisions=0.999, column=0.01),
    "fp16": Thresholds(cosine=0.999, cosine_judged=0.99, agreement=0.99, decisions=0.99, column=0.03),
    "int8": Thresholds(cosine=0.98, cosine_judged=0.9, agreement=0.95, decisions=0.95, column=0.15),
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
    agreement = float(np.mean(a.argmax(axis=-1) == b.argmax(axis=-1))) if is_scores(source) or _is_rows(a) else None
    worst = worst_column(source, build)
    decided = agreement is None and _is_probabilities(a)
    return OutputParity(
        max_error=float(error.max(initial=0.0)),
        mean_error=float(error.mean()) if error.size else 0.0,
        cosine=min(cosine, 1.0),
        top1_agreement=agreement,
        decisions=_decided_alike(a, b) if decided else None,
        column_error=None if worst is None else worst.error,
        column=None if worst is None else (worst.axis, worst.column),
    )


def is_scores(output: NDArray[np.generic]) -> bool:
    """Whether an output, (n, *shape), is one row of at least two scores per sample, so that "the highest" means something."""
    return output.ndim >= 2 and output.shape[-1] >= 2 and output[0].size == output.shape[-1]


def _is_rows(output: NDArray[np.float64]) -> bool:
    """Whether it is rows of probabilities: one per character, token or time step."""
    if output.shape[-1:] in {(), (0,), (1,)} or not output.size or output.min() < 0 or output.max() > 1 + 1e-3:
        return False
    return bool(np.abs(output.sum(axis=-1) - 1).max() < 1e-2)


def _is_probabilities(output: NDArray[np.float64]) -> bool:
    """Whether each element may be a probability of its own, some of them more likely than not."""
    return bool(output.size) and bool(output.min() >= 0) and bool(_EVEN < output.max() <= 1 + 1e-6)


def _decided_alike(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """F1 of what is more likely than not, `a` being the truth; one element more or less is no finding."""
    wanted, made = a > _EVEN, b > _EVEN
    wrong = int((wanted != made).sum())
    return 1.0 if wrong <= 1 < int(wanted.sum()) else 1 - wrong / (int(wanted.sum()) + int(made.sum()))


def top1(scores: NDArray[np.generic]) -> NDArray[np.intp]:
    """(n,): the number of each sample's highest score."""
    rows: NDArray[np.intp] = scores.reshape(len(scores), -1).argmax(axis=1)
    return rows


def usable(source: NDArray[np.generic], build: NDArray[np.generic]) -> bool:
    """Whether a build's output can be judged at all: of the source's shape, and finite."""
    return source.shape == build.shape and bool(np.isfinite(build.astype(np.float64)).all())


def objections(
    precision: str,
    parity: Mapping[str, OutputParity],
    accuracy: Accuracy | None,
    judged: Collection[str] = (),
    changed: Changed | None = None,
) -> list[str]:
    """Why the build must not ship, each with its figure; empty if it may. `judged`: the outputs that `accuracy` is of; `changed`: the
    single decisions behind it."""
    limits = THRESHOLDS[precision]
    found: list[str] = []
    for name, output in parity.items():
        if output.max_error == INCOMPARABLE:
            found.append(f"output {name!r} has another shape than the source's, or NaN or infinite values")
        elif name in judged:
            if output.cosine < limits.cosine_judged:
                found.append(_too_far(name, output.cosine, limits.cosine_judged))
        else:
            found += _unjudged(name, output, limits)
    # Differences of whole samples: a drop of exactly the budget is within it, whatever floating point makes of it.
    if accuracy is not None and accuracy.drop > accuracy.budget + 1e-9:
        found.append(
            f"{accuracy.metric} falls by {accuracy.drop:.4f} ({accuracy.source:.4f} -> {accuracy.build:.4f} on "
            f"{accuracy.samples} samples); the budget is {accuracy.budget:g}"
        )
    elif accuracy is not None and changed is not None and (few := evidence.objection(changed, accuracy.budget)):
        found.append(f"{accuracy.metric}: {few}")
    return found


def _unjudged(name: str, output: OutputParity, limits: Thresholds) -> list[str]:
    found: list[str] = []
    if output.cosine < limits.cosine:
        found.append(_too_far(name, output.cosine, limits.cosine))
    if output.top1_agreement is not None and output.top1_agreement < limits.agreement:
        found.append(
            f"output {name!r} agrees with the source's top-1 on {output.top1_agreement:.1%} of the samples; "
            f"at least {limits.agreement:.1%} is needed"
        )
    if output.decisions is not None and output.decisions < limits.decisions:
        found.append(
            f"output {name!r} says yes and no as the source does with F1 {output.decisions:.4f}; at least {limits.decisions} is needed "
            "(a metric of the task would judge it better: --metric)"
        )
    if output.column is not None and output.column_error is not None and output.column_error > limits.column:
        axis, column = output.column
        found.append(
            f"output {name!r} differs in column {column} of axis {axis} by {output.column_error:.1%} of the column's range; "
            f"at most {limits.column:.0%} is allowed"
        )
    return found


def _too_far(name: str, cosine: float, floor: float) -> str:
    return f"output {name!r} has cosine {cosine:.4f} to the source; at least {floor} is needed"


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
