"""Boxes: how many of the source's boxes the build finds again, and how many it makes up.

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

from covey_converters.errors import BadInputError
from covey_converters.metrics.judged import Judged
from covey_converters.metrics.matching import Boxes, Tally, iou
from covey_converters.metrics.options import share, whole
from covey_converters.parity import Outputs, usable
from covey_converters.samples import Samples

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


_NONE = Boxes(np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64))


def judge(
    options: Mapping[str, str], source: Outputs, build: Outputs, samples: Samples, budget: float
) -> Judged | None:
    """Recall of the source's detections, matched at IoU 0.5 within their class. What the build makes up counts against the same
    budget. None on random inputs in which the source sees nothing."""
    layout = read_layout(options, source)
    names = frozenset({layout.output, layout.scores_output})
    readable, tally = all(usable(source[name], build[name]) for name in names), Tally()
    for index in range(len(samples)):
        theirs = detections(layout, {name: source[name][index] for name in names})
        tally.add(theirs, detections(layout, {name: build[name][index] for name in names}) if readable else _NONE)
    if not tally.wanted:
        if samples.synthetic:
            return None
        raise BadInputError(
            f"metric detection: the source has no detection of at least {layout.threshold:g} in {len(samples)} samples, so none can be "
            "lost"
        )
    return tally.judged(f"matched-box recall of {layout.output}", "detections", names, len(samples), budget)


def read_layout(options: Mapping[str, str], source: Outputs) -> Layout:
    """Raises `BadInputError` for a layout that is none, or that the outputs do not have."""
    output = options.get("output", next(iter(source)))
    layout = Layout(
        output=output,
        scores_output=options.get("scores_output", output),
        axis=whole("detection", options, "axis", -1),
        boxes=_columns(options, "boxes", "0-3"),
        format=options.get("format", "xyxy"),
        scores=_columns(options, "scores", "4-" if "scores_output" not in options else "0-"),
        objectness=_optional(options, "objectness"),
        classes=_optional(options, "classes"),
        threshold=share("detection", options, "threshold", 0.3),
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


def detections(layout: Layout, sample: Mapping[str, NDArray[np.generic]]) -> Boxes:
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
    found = Boxes(_corners(boxes[order], layout.format), best[order], classes[order].astype(np.int64))
    kept = _suppressed(found)
    return Boxes(found.boxes[kept], found.scores[kept], found.classes[kept])


def _rows(tensor: NDArray[np.generic], axis: int) -> Floats:
    """(candidates, columns)."""
    moved = np.moveaxis(tensor, axis, -1)
    return moved.reshape(-1, moved.shape[-1]).astype(np.float64)


def _corners(boxes: Floats, form: str) -> Floats:
    if form == "xyxy":
        return boxes
    corner = boxes[:, :2] - boxes[:, 2:] / 2 if form == "cxcywh" else boxes[:, :2]
    return np.concatenate([corner, corner + boxes[:, 2:]], axis=1)


def _suppressed(found: Boxes) -> list[int]:
    overlap = iou(found.boxes, found.boxes) * (found.classes[:, np.newaxis] == found.classes)
    kept: list[int] = []
    for index in range(len(found)):
        if not kept or overlap[index, kept].max() <= _SUPPRESS_IOU:
            kept.append(index)
    return kept


def _columns(options: Mapping[str, str], key: str, default: str) -> slice:
    """FIRST-LAST, FIRST- for all from there on, or one number."""
    match = re.fullmatch(r"(\d{1,5})(-(\d{1,5})?)?", options.get(key, default))
    if match is None:
        raise BadInputError(f"metric detection: {key}={options[key][:40]!r} is not FIRST-LAST")
    first = int(match[1])
    if match[2] is None:
        return slice(first, first + 1)
    return slice(first, int(match[3]) + 1 if match[3] else None)


def _optional(options: Mapping[str, str], key: str) -> int | None:
    return whole("detection", options, key, 0) if key in options else None
