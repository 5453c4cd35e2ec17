"""What a build's inputs and outputs look like on the evaluation set: what devices' requests are compared with, to notice drift.

Counted by the rules of `covey_contract.drift`, which the devices' runners count by too; a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from covey_contract.drift import (
    MAX_CLASSES,
    MAX_EDGES,
    MAX_TENSORS,
    SCORE_BINS,
    InputReference,
    OutputCounts,
    OutputKind,
    OutputReference,
    Reference,
    merge,
    row_stride,
    stride,
)
from covey_converters.samples import Samples

Array = NDArray[np.generic]

# Bins of values hold about as many elements of the evaluation set each.
_VALUE_BINS = 20
# Rows of probabilities need not add up to one exactly, least of all in INT8.
_SUM_TOLERANCE = 0.02
# So much of an input's range is added on either side: the next good picture may be a little brighter.
_RANGE_MARGIN = 0.1
# Of the manifest's 64 KiB.
_MAX_BYTES = 32 * 1024


def reference_of(samples: Samples, answers: Sequence[Mapping[str, Array]]) -> Reference | None:
    """`answers[i]` are the build's outputs for sample i; outputs that would make the manifest too large are left out. None without real
    data: random inputs say nothing of real ones."""
    if samples.synthetic or not answers:
        return None
    classes = None if samples.labels is None else int(samples.labels.max()) + 1
    outputs: dict[str, OutputReference] = {}
    room = _MAX_BYTES
    for name in list(answers[0])[:MAX_TENSORS]:
        output = _output([answer[name] for answer in answers], classes)
        room -= len(msgspec.json.encode(output))
        if room >= 0:
            outputs[name] = output
    return Reference(
        samples=len(answers),
        outputs=outputs,
        inputs={name: _input(array) for name, array in list(samples.arrays.items())[:MAX_TENSORS]},
    )


def _input(array: Array) -> InputReference:
    low, high = float(array.min()), float(array.max())
    margin = (high - low) * _RANGE_MARGIN if array.dtype.kind == "f" else 0.0
    return InputReference(low=low - margin, high=high + margin)


def _output(arrays: Sequence[Array], classes: int | None) -> OutputReference:
    kind = _kind(arrays, classes)
    if kind is not OutputKind.VALUES:
        return OutputReference(kind=kind, counts=merge(_scores(array, kind) for array in arrays))
    sampled = [_sampled(array) for array in arrays]
    edges = _edges(np.concatenate(sampled))
    return OutputReference(kind=kind, counts=merge(_values(values, edges) for values in sampled), edges=tuple(edges))


def _kind(arrays: Sequence[Array], classes: int | None) -> OutputKind:
    """Class scores are probabilities that add up to one, or one row a sample that has the evaluation's labels among its columns."""
    first = arrays[0]
    columns = first.shape[-1] if first.ndim else 0
    if columns < 2 or any(array.dtype.kind != "f" or array.shape[-1] != columns for array in arrays):
        return OutputKind.VALUES
    rows = np.concatenate([array.reshape(-1, columns) for array in arrays]).astype(np.float64)
    if not rows.size:
        return OutputKind.VALUES
    unit = rows.min() >= 0 and rows.max() <= 1 + _SUM_TOLERANCE
    if unit and np.abs(rows.sum(axis=1) - 1).max() <= _SUM_TOLERANCE:
        return OutputKind.PROBABILITIES
    if classes is not None and classes <= columns and all(array.size == columns for array in arrays):
        return OutputKind.PROBABILITIES if unit else OutputKind.LOGITS
    return OutputKind.VALUES


def _scores(array: Array, kind: OutputKind) -> OutputCounts:
    rows = array.reshape(-1, array.shape[-1])
    rows = rows[:: row_stride(*rows.shape)]
    top = rows.max(axis=1)
    if kind is OutputKind.LOGITS:
        top = 1.0 / np.exp(rows - top[:, np.newaxis]).sum(axis=1)
    bins = (top * SCORE_BINS).clip(0, SCORE_BINS - 1).astype(np.int64)
    names, counts = np.unique(np.minimum(rows.argmax(axis=1), MAX_CLASSES - 1), return_counts=True)
    return OutputCounts(
        count=len(rows),
        classes=dict(zip(names.tolist(), counts.tolist(), strict=True)),
        scores=tuple(np.bincount(bins, minlength=SCORE_BINS).tolist()) if len(rows) else (),
    )


def _sampled(array: Array) -> Array:
    flat = array.reshape(-1)
    return flat[:: stride(flat.size)]


def _edges(values: Array) -> list[float]:
    """Quantiles; where there are few different values, the middle between each two."""
    finite = np.unique(values.astype(np.float64))
    finite = finite[np.isfinite(finite)]
    if len(finite) == 0:
        return []
    if len(finite) == 1:  # below, at and above the only one
        only = float(finite[0])
        return [only, float(np.nextafter(only, np.inf))]
    if len(finite) <= MAX_EDGES:
        middles: list[float] = ((finite[1:] + finite[:-1]) / 2).tolist()
        return middles
    quantiles = np.quantile(values.astype(np.float64), np.arange(1, _VALUE_BINS) / _VALUE_BINS)
    edges: list[float] = np.unique(quantiles[np.isfinite(quantiles)]).tolist()
    return edges


def _values(sampled: Array, edges: Sequence[float]) -> OutputCounts:
    bins = np.searchsorted(np.array(edges, np.float64), sampled, side="right")
    return OutputCounts(
        count=len(sampled), values=tuple(np.bincount(bins, minlength=len(edges) + 1).tolist()) if len(sampled) else ()
    )
