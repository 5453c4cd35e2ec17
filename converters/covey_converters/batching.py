"""Builds that answer several requests at once: the source with its first dimension open, and the proof that each row is computed for itself.

Asked for by `max_batch`. A graph may mix its rows (a reshape that folds the batch into another dimension, a mean over it, ranges that are found
while running over all that came), and nothing in it says so. So it is tried: the answer of a row must be the one that it has alone, and must not
move when other rows come with it. What fails is built without, and the report says why.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from covey_contract.manifest import TensorSpec
from covey_converters.backend import Array, Built, Session, Source
from covey_converters.backends.onnx_session import OnnxRuntimeSession
from covey_converters.columns import worst_column
from covey_converters.prepare import clean_up
from covey_converters.samples import Samples

# What the same row may differ by, computed alone and with others: by kernels that add up in another order, and by INT8's rounding of what
# they give. Of a column's range, the mean over its values.
_SAME = {"fp32": 0.002, "fp16": 0.01, "int8": 0.03}
# By its company alone: the same kernels, the same place.
_COMPANY = 1e-5
_FOREIGN = 3.0  # how far beyond the samples' range the company goes
_TIMED = 5
_OPEN = "batch"

Arrays = dict[str, Array]


def opened(source: Source, max_batch: int, samples: Samples) -> tuple[Source, tuple[str, ...]]:
    """The source as one that takes up to `max_batch` rows at once, or as it is, with a note that says why."""
    if max_batch <= 1:
        return source, ()
    try:
        graph = _opened_graph(source)
        why = mixed(OnnxRuntimeSession(graph, threads=1), "fp32", samples, max_batch)
    except _Fixed as error:
        why = str(error)
    except Exception as error:  # noqa: BLE001  # a graph that was made for one row fails in as many ways as ONNX and its runtime have
        why = f"with its first dimension open it does not run: {' '.join(str(error).split())[:200]}"
    if why:
        return source, (without(why),)
    return replace(source, opened=graph, max_batch=max_batch), ()


def without(why: str) -> str:
    """The note of a build that could not be had with it."""
    return f"made without batching, though it was asked for: {why}"


class _Fixed(Exception):  # noqa: N818  # no error: the ordinary answer of a graph that was made for one row
    """The graph has no first dimension that requests could share."""


def _opened_graph(source: Source) -> Path:
    """Made once, then kept for the next recipe or target."""
    import onnx

    slim, plain = source.work / "open-slim.onnx", source.work / "open-plain.onnx"
    if not slim.exists() and not plain.exists():
        model = onnx.load(str(source.original))
        for spec in source.review.inputs:
            if spec.shape[:1] != (1,):
                first = (
                    f"the first dimension of input {spec.name!r} is {spec.shape[0]}"
                    if spec.shape
                    else f"input {spec.name!r} is one number"
                )
                raise _Fixed(f"{first}, where a row would be 1")
        if lost := [spec.name for spec in source.review.outputs if spec.shape[:1] != (1,)]:
            raise _Fixed(f"output {lost[0]!r} has not one row for one request")
        _open(model, {spec.name: spec for spec in source.review.inputs})
        clean_up(onnx.shape_inference.infer_shapes(model, data_prop=True), slim, plain)
    return slim if slim.exists() else plain


def _open(model: Any, inputs: dict[str, TensorSpec]) -> None:
    """In place: the first dimension of each input is open, the others are what the review found; all others are to be inferred anew."""
    for value in model.graph.input:
        if (spec := inputs.get(value.name)) is not None:
            for dim, size in zip(value.type.tensor_type.shape.dim, spec.shape, strict=True):
                dim.dim_value = size
            value.type.tensor_type.shape.dim[0].dim_param = _OPEN
    for value in (*model.graph.output, *model.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            dim.Clear()


def batched(built: Built, max_batch: int) -> Built:
    """The same build for callers who may send up to so many rows."""
    return replace(built, inputs=_rows(built.inputs), outputs=_rows(built.outputs), max_batch=max_batch)


def _rows(specs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    return tuple(msgspec.structs.replace(spec, shape=(-1, *spec.shape[1:])) for spec in specs)


def mixed(session: Session, precision: str, samples: Samples, count: int) -> str:
    """Why `count` rows may not be computed together; empty if each has the answer that it has alone, whoever comes with it."""
    chosen = samples.spread(count)
    rows = [{name: array[index % len(chosen)] for name, array in chosen.arrays.items()} for index in range(count)]
    together = session.run(_stacked(rows))
    alone = [_copied(session.run(row)) for row in rows]
    for name, answer in together.items():
        if answer.shape != (count, *alone[0][name].shape[1:]):
            return f"{count} rows give output {name!r} the shape {list(answer.shape)}"
        if apart := _apart(np.concatenate([one[name] for one in alone]), answer):
            what, error = apart
            if error > _SAME[precision]:
                return f"output {name!r} of a row among {count} differs from that of the row alone by {error:.1%} of {what}"
    return _moved_by_company(session, rows, _copied(together))


def _moved_by_company(session: Session, rows: Sequence[Arrays], together: Arrays) -> str:
    for place in (0, len(rows) - 1):
        for factor in (0.0, _FOREIGN):
            others = [row if index == place else _scaled(row, factor) for index, row in enumerate(rows)]
            for name, answer in session.run(_stacked(others)).items():
                want, got = (one[place].astype(np.float64) for one in (together[name], answer))
                scale = max(float(np.abs(want).max(initial=0.0)), 1e-6)
                if not np.abs(want - got).max(initial=0.0) <= _COMPANY * scale:  # written so that NaN fails
                    return f"output {name!r} of a row depends on the rows that come with it"
    return ""


def _scaled(row: Arrays, factor: float) -> Arrays:
    """Other company: nothing at all, or values that no sample has. Whole numbers may be indices: of these nothing but zero is safe."""
    return {
        name: (array.astype(np.float64) * factor).astype(array.dtype)
        if array.dtype.kind == "f"
        else np.zeros_like(array)
        for name, array in row.items()
    }


def _apart(alone: Array, together: Array) -> tuple[str, float] | None:
    """What the difference is measured by, and the difference; both (rows, …)."""
    a, b = alone.astype(np.float64)[:, np.newaxis], together.astype(np.float64)[:, np.newaxis]
    if (worst := worst_column(a, b)) is not None:
        return "a column's range", worst.error
    scale = max(float(np.abs(a).max(initial=0.0)), 1e-6)
    return "the largest value", float(np.abs(a - b).max(initial=0.0)) / scale


def _stacked(rows: Sequence[Arrays]) -> Arrays:
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def _copied(answers: Arrays) -> Arrays:
    return {name: answer.copy() for name, answer in answers.items()}


def pace(session: Session, samples: Samples, count: int) -> str:
    """How long a row takes alone and among `count`, in words."""
    row = next(iter(samples))
    alone, together = (_seconds(session, _stacked([row] * rows)) for rows in (1, count))
    return (
        f"takes up to {count} rows at once: a row took {1e3 * together / count:.3g} ms among {count}, {1e3 * alone:.3g} ms alone, with one "
        "thread on this machine"
    )


def _seconds(session: Session, inputs: Arrays) -> float:
    session.run(inputs)
    found = []
    for _ in range(_TIMED):
        began = time.perf_counter()
        session.run(inputs)
        found.append(time.perf_counter() - began)
    return min(found)
