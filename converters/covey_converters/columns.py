"""The error of an output column by column, each against the column's own range.

One tensor may mix boxes (0 to 320) with scores (0 to 1). Over the whole tensor the scores count for nothing: a detector that
lost 59 of its 61 detections had cosine 0.9996 to its source. A column of its own shows it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Columns beyond these numbers are places (pixels, anchors), not kinds of value.
_MOST_LAST = 512
_MOST_INNER = 256
# A probability that never leaves this much of [0, 1] says nothing, however its quantisation comes out.
_PROBABILITY = 0.05
# A column that hardly moves is held to this part of its own magnitude.
_STILL = 0.05
# From so many columns on, a row is taken for values of one kind (class scores, an embedding), of which some may hardly move on few
# samples: each is held to at least this part of the range of all.
_ONE_KIND = 10
_OF_ALL = 0.1
# Beyond this an error says no more; it stays finite, because JSON has no infinity.
_MOST_ERROR = 1000.0


@dataclass(frozen=True)
class Worst:
    """The column with the largest error: `axis` of the output's shape, without the axis of samples."""

    axis: int
    column: int
    error: float  # relative to the column's range


def worst_column(source: NDArray[np.generic], build: NDArray[np.generic]) -> Worst | None:
    """Over the axes that may hold columns; `source` and `build` as (n, *shape). None if there are no columns.

    The error of a column is the larger of two means of |difference|: over all its values, and over the values where the source's
    sample lies farthest from the column's mean, because what matters in a column may be rare (one detection among 2,000 anchors).
    """
    found: Worst | None = None
    for axis in _axes(source):
        a = _by_column(source, axis)
        errors = _errors(a, np.abs(a - _by_column(build, axis)))
        column = int(errors.argmax())
        if found is None or errors[column] > found.error:
            found = Worst(axis - 1, column, float(errors[column]))
    return found


def mean_error(source: NDArray[np.generic], build: NDArray[np.generic]) -> float:
    """Of all columns, each relative to its own range; without columns, relative to the output's length."""
    errors = [
        _errors(a, np.abs(a - _by_column(build, axis))) for axis in _axes(source) for a in (_by_column(source, axis),)
    ]
    if errors:
        return float(np.concatenate(errors).mean())
    a = source.astype(np.float64)
    return float(np.linalg.norm(a - build.astype(np.float64)) / max(float(np.linalg.norm(a)), 1e-30))


def _axes(output: NDArray[np.generic]) -> list[int]:
    """The last axis, and the one behind the batch: detectors come as [1, anchors, columns] and as [1, columns, anchors]."""
    if output.ndim < 2 or not output.size:
        return []
    last, rank = output.ndim - 1, output.ndim
    axes = [last] if rank < 5 and (output.shape[last] <= _MOST_LAST or output[0].size == output.shape[last]) else []
    if rank >= 4 and output.shape[2] <= _MOST_INNER:
        axes.append(2)
    return [axis for axis in dict.fromkeys(axes) if output.shape[axis] > 1]


def _by_column(output: NDArray[np.generic], axis: int) -> NDArray[np.float64]:
    """(n, values, columns)."""
    moved = np.moveaxis(output, axis, -1).astype(np.float64)
    return moved.reshape(len(output), -1, moved.shape[-1])


def _errors(a: NDArray[np.float64], difference: NDArray[np.float64]) -> NDArray[np.float64]:
    low, high = a.min(axis=(0, 1)), a.max(axis=(0, 1))
    scale = np.maximum(high - low, _STILL * np.maximum(np.abs(low), np.abs(high)))
    if a.shape[1] == 1 and a.shape[2] >= _ONE_KIND:
        scale = np.maximum(scale, _OF_ALL * float(a.max() - a.min()))
    scale = np.where((low >= 0) & (high <= 1), np.maximum(scale, _PROBABILITY), scale)
    peaks = np.abs(a - a.mean(axis=(0, 1))).argmax(axis=1, keepdims=True)
    at_peaks = np.take_along_axis(difference, peaks, axis=1).mean(axis=(0, 1))
    error = np.maximum(difference.mean(axis=(0, 1)), at_peaks)
    relative: NDArray[np.float64] = np.minimum(error / np.maximum(scale, 1e-30), _MOST_ERROR)
    return relative
