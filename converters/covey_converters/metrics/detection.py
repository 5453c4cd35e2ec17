"""Detections: how many of the source's boxes the build finds again, and how many it makes up.

Boxes are decoded by a layout that the operator declares; there is no guessing at what a tensor's columns mean.

    boxes=0-3        the four columns of the box             format=xyxy | cxcywh | xywh (corner and size)
    scores=4-        the columns of class scores             classes=5  the column of the class's number, with one score column
    objectness=4     a column that every score is multiplied by
    axis=-1          the axis of the columns in the output's shape: 1 for [1, columns, anchors]
    output=NAME      of the boxes (default: the first output); scores_output=NAME where scores are an output of their own
    threshold=0.3    the lowest score of a detection
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from covey_contract.building import Accuracy
from covey_converters.errors import BadInputError
from covey_converters.metrics.judged import Judged
from covey_converters.parity import Outputs, usable
from covey_converters.samples import Samples

MATCH_IOU = 0.5
# Overlapping boxes of one class above this are one detection.
_SUPPRESS_IOU = 0.45
_MOST_BOXES = 1000
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Layout:
    """Where a detector's outputs hold what; see the module."""

    output: str
    scores_output: str
    axis: int
    boxes: slice
    format: str
    scores: slice
    objectness: int | None
    classes: int | None
    threshold: float


@dataclass(frozen=True)
class Detections:
    """`boxes` (n, 4) as two corners, `scores` (n,), `classes` (n,), best first."""

    boxes: Floats
    scores: Floats
    classes: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.scores)


def judge(
    options: Mapping[str, str], source: Outputs, build: Outputs, samples: Samples, budget: float
) -> Judged | None:
    """Recall of the source's detections, matched at IoU 0.5 within their class. What the build makes up counts against the same
    budget. None on random inputs in which the source sees nothing."""
    layout = read_layout(options, source)
    names = frozenset({layout.output, layout.scores_output})
    readable = all(usable(source[name], build[name]) for name in names)
    count = len(source[layout.output])
    wanted = made = matched = 0
    for index in range(count):
        theirs = detections(layout, {name: source[name][index] for name in names})
        wanted += len(theirs)
        if readable:
            ours = detections(layout, {name: build[name][index] for name in names})
            made += len(ours)
            matched += matches(theirs, ours)
    if not wanted:
        if samples.synthetic:
            return None
        raise BadInputError(
            f"metric detection: the source has no detection of at least {layout.threshold:g} in {count} samples, so none can be lost"
        )
    recall, precision = matched / wanted, matched / made if made else 0.0
    accuracy = Accuracy(
        metric=f"matched-box recall of {layout.output}",
        source=1.0,
        build=recall,
        samples=count,
        budget=budget,
        figures={"detections": (wanted, made), "precision": (1.0, round(precision, 6))},
    )
    invented = f"{made - matched} of {made} detections are not the source's; the budget is {budget:g}"
    return Judged(accuracy, names, (invented,) if made and 1 - precision > budget + 1e-9 else ())


def read_layout(options: Mapping[str, str], source: Outputs) -> Layout:
    """Raises `BadInputError` for a layout that is none, or that the outputs do not have."""
    output, axis = options.get("output", next(iter(source))), _number(options, "axis")
    layout = Layout(
        output=output,
        scores_output=options.get("scores_output", output),
        axis=-1 if axis is None else axis,
        boxes=_columns(options, "boxes", "0-3"),
        format=options.get("format", "xyxy"),
        scores=_columns(options, "scores", "4-" if "scores_output" not in options else "0-"),
        objectness=_number(options, "objectness"),
        classes=_number(options, "classes"),
        threshold=_threshold(options.get("threshold", "0.3")),
    )
    if layout.format not in {"xyxy", "cxcywh", "xywh"}:
        raise BadInputError(f"metric detection: format {layout.format[:40]!r} is none of xyxy, cxcywh, xywh")
    for name in (layout.output, layout.scores_output):
        if name not in source:
            raise BadInputError(f"metric detection: there is no output {name[:80]!r}; there are {', '.join(source)}")
    try:
        detections(layout, {name: source[name][0] for name in {layout.output, layout.scores_output}})
    except (ValueError, IndexError) as error:
        shape = list(source[layout.output].shape[1:])
        raise BadInputError(
            f"metric detection: the layout does not fit output {output!r} of shape {shape}: {error}"
        ) from error
    return layout


def detections(layout: Layout, sample: Mapping[str, NDArray[np.generic]]) -> Detections:
    """Of one sample, {name: tensor}: decoded, above the threshold, overlapping ones suppressed."""
    rows, score_rows = _rows(sample[layout.output], layout.axis), _rows(sample[layout.scores_output], layout.axis)
    boxes, scores = rows[:, layout.boxes], score_rows[:, layout.scores]
    if boxes.shape[1] != 4 or not scores.shape[1] or len(boxes) != len(scores):
        raise ValueError(f"{boxes.shape[1]} box columns and {scores.shape[1]} score columns")
    if layout.objectness is not None:
        scores = scores * rows[:, layout.objectness, np.newaxis]
    classes = scores.argmax(axis=1) if layout.classes is None else rows[:, layout.classes].round().astype(np.int64)
    best = scores.max(axis=1)
    order = np.argsort(-best, kind="stable")[:_MOST_BOXES]
    order = order[best[order] >= layout.threshold]
    found = Detections(_corners(boxes[order], layout.format), best[order], classes[order].astype(np.int64))
    kept = _suppressed(found)
    return Detections(found.boxes[kept], found.scores[kept], found.classes[kept])


def matches(wanted: Detections, made: Detections) -> int:
    """How many of `wanted` have a partner of their class in `made` at IoU 0.5; each is used once, the best overlap first."""
    overlap = _iou(wanted.boxes, made.boxes) * (wanted.classes[:, np.newaxis] == made.classes)
    count = 0
    while overlap.size and overlap.max() >= MATCH_IOU:
        row, column = np.unravel_index(overlap.argmax(), overlap.shape)
        overlap[row, :], overlap[:, column] = 0.0, 0.0
        count += 1
    return count


def _rows(tensor: NDArray[np.generic], axis: int) -> Floats:
    """(candidates, columns)."""
    moved = np.moveaxis(tensor, axis, -1)
    return moved.reshape(-1, moved.shape[-1]).astype(np.float64)


def _corners(boxes: Floats, form: str) -> Floats:
    if form == "xyxy":
        return boxes
    corner = boxes[:, :2] - boxes[:, 2:] / 2 if form == "cxcywh" else boxes[:, :2]
    return np.concatenate([corner, corner + boxes[:, 2:]], axis=1)


def _suppressed(found: Detections) -> list[int]:
    overlap = _iou(found.boxes, found.boxes) * (found.classes[:, np.newaxis] == found.classes)
    kept: list[int] = []
    for index in range(len(found)):
        if not kept or overlap[index, kept].max() <= _SUPPRESS_IOU:
            kept.append(index)
    return kept


def _iou(a: Floats, b: Floats) -> Floats:
    """(n, 4) and (m, 4) as corners -> (n, m)."""
    low = np.maximum(a[:, np.newaxis, :2], b[np.newaxis, :, :2])
    high = np.minimum(a[:, np.newaxis, 2:], b[np.newaxis, :, 2:])
    common = np.prod(np.clip(high - low, 0, None), axis=2)
    areas = [np.prod(np.clip(boxes[:, 2:] - boxes[:, :2], 0, None), axis=1) for boxes in (a, b)]
    union = areas[0][:, np.newaxis] + areas[1] - common
    shares: Floats = np.divide(common, union, out=np.zeros_like(common), where=union > 0)
    return shares


def _columns(options: Mapping[str, str], key: str, default: str) -> slice:
    """FIRST-LAST, FIRST- for all from there on, or one number."""
    match = re.fullmatch(r"(\d{1,5})(-(\d{1,5})?)?", options.get(key, default))
    if match is None:
        raise BadInputError(f"metric detection: {key}={options[key][:40]!r} is not FIRST-LAST")
    first = int(match[1])
    if match[2] is None:
        return slice(first, first + 1)
    return slice(first, int(match[3]) + 1 if match[3] else None)


def _number(options: Mapping[str, str], key: str) -> int | None:
    if key not in options:
        return None
    if not re.fullmatch(r"-?\d{1,5}", options[key]):
        raise BadInputError(f"metric detection: {key}={options[key][:40]!r} is not a whole number")
    return int(options[key])


def _threshold(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1:
        raise BadInputError(f"metric detection: threshold {text[:40]!r} is not between 0 and 1")
    return value
