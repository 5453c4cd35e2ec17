"""What a request's inputs and outputs look like, as counts, by the rules of `covey_contract.drift`.

It is on every request's way: some microseconds an output, whatever its size, since large ones are looked at in samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite

import numpy as np

from covey_agent.runner.protocol import InputFlag, Seen
from covey_agent.runner.tensors import Array
from covey_contract.drift import MAX_CLASSES, SCORE_BINS, InputReference, OutputKind, Reference, row_stride, stride

# Of a large input so many pieces of so many elements, evenly spread: whole cache lines, and far fewer than there are.
_PIECES, _PIECE = 64, 64


class Counter:
    """`reference` is of names that the build has; without one there is nothing to count."""

    def __init__(self, reference: Reference | None) -> None:
        reference = reference or Reference(samples=0)
        self._inputs = tuple(reference.inputs.items())
        self._outputs = tuple(
            (name, one.kind, np.array(one.edges, np.float64)) for name, one in reference.outputs.items()
        )

    def outputs(self, outputs: Mapping[str, Array]) -> tuple[Seen, ...]:
        return tuple(
            _values(outputs[name], edges) if kind is OutputKind.VALUES else _scores(outputs[name], kind)
            for name, kind, edges in self._outputs
        )

    def inputs(self, inputs: Mapping[str, Array]) -> tuple[int, ...]:
        """`InputFlag`s of each input."""
        return tuple(_flags(inputs[name], expected) for name, expected in self._inputs)


def _scores(output: Array, kind: OutputKind) -> Seen:
    rows = output.reshape(-1, output.shape[-1])
    rows = rows[:: row_stride(*rows.shape)]
    if len(rows) == 1:  # most requests; half the time of the general way
        return _one_row(rows[0], kind)
    top = rows.max(axis=1)
    if kind is OutputKind.LOGITS:
        with np.errstate(invalid="ignore"):  # of infinite logits; they count as no probability at all
            top = 1.0 / np.exp(rows - top[:, np.newaxis]).sum(axis=1)
    bins = np.fmin(np.fmax(top * SCORE_BINS, 0), SCORE_BINS - 1).astype(np.int64)  # to fmax NaN is nothing
    classes = np.minimum(rows.argmax(axis=1), MAX_CLASSES - 1)
    return Seen(classes=classes.tolist(), scores=bins.tolist())


def _one_row(row: Array, kind: OutputKind) -> Seen:
    index = int(row.argmax())
    score = float(row[index])
    if kind is OutputKind.LOGITS:
        score = 1.0 / float(np.exp(row - row[index]).sum()) if isfinite(score) else 0.0
    return Seen(classes=[min(index, MAX_CLASSES - 1)], scores=[int(min(max(score * SCORE_BINS, 0), SCORE_BINS - 1))])


def _values(output: Array, edges: Array) -> Seen:
    flat = output.reshape(-1)
    bins = np.searchsorted(edges, flat[:: stride(flat.size)], side="right")
    return Seen(values=np.bincount(bins, minlength=len(edges) + 1).tolist())


def _flags(array: Array, expected: InputReference) -> int:
    flat = array.reshape(-1)
    if not flat.size:
        return 0
    if flat.size > 4 * _PIECES * _PIECE:
        apart = flat.size // _PIECES
        flat = flat[: _PIECES * apart].reshape(_PIECES, apart)[:, :_PIECE]
    low, high = float(flat.min()), float(flat.max())  # both NaN if any is
    if low != low:  # noqa: PLR0124  # cheaper than math.isnan, and the meaning of NaN
        return int(InputFlag.NAN)
    flags = InputFlag.CONSTANT if low == high and array.size > 1 else InputFlag(0)
    if low < expected.low or high > expected.high:
        flags |= InputFlag.OUT_OF_RANGE
    return int(flags)
