"""Boxes that are found again: what detections and regions have in common.

A box of the source counts as kept if the build has one of the same class that overlaps it by at least half (intersection over union);
each box is used once. What the build makes up counts against the same budget.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from covey_contract.building import Accuracy
from covey_converters import evidence
from covey_converters.evidence import Changed
from covey_converters.metrics.judged import Judged

MATCH_IOU = 0.5
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Boxes:
    """`boxes` (n, 4) as two corners, `scores` (n,), `classes` (n,), best first."""

    boxes: Floats
    scores: Floats
    classes: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.scores)


@dataclass
class Tally:
    """Of each sample: what the source has, what the build has, and what both have."""

    wanted_in: list[int] = field(default_factory=list)
    made_in: list[int] = field(default_factory=list)
    matched_in: list[int] = field(default_factory=list)

    def add(self, wanted: Boxes, made: Boxes) -> None:
        self.wanted_in.append(len(wanted))
        self.made_in.append(len(made))
        self.matched_in.append(matches(wanted, made))

    @property
    def wanted(self) -> int:
        return sum(self.wanted_in)

    def judged(self, metric: str, what: str, outputs: frozenset[str], samples: int, budget: float) -> Judged:
        """By recall; `what` is the plural of what is counted."""
        made, matched = sum(self.made_in), sum(self.matched_in)
        recall, precision = matched / self.wanted, matched / made if made else 0.0
        accuracy = Accuracy(
            metric=metric,
            source=1.0,
            build=recall,
            samples=samples,
            budget=budget,
            figures={what: (self.wanted, made), "precision": (1.0, round(precision, 6))},
        )
        objections: list[str] = []
        if made and 1 - precision > budget + 1e-9:
            objections = [f"{made - matched} of {made} {what} are not the source's; the budget is {budget:g}"]
        elif few := evidence.objection(_missing(self.matched_in, self.made_in), budget):
            objections = [f"{what} that are not the source's: {few}"]
        return Judged(accuracy, outputs, tuple(objections), _missing(self.matched_in, self.wanted_in))


def _missing(matched: Sequence[int], of: Sequence[int]) -> Changed:
    lost = tuple(all_ - found for all_, found in zip(of, matched, strict=True))
    return Changed(lost, (0,) * len(lost), tuple(of))


def matches(wanted: Boxes, made: Boxes) -> int:
    """How many of `wanted` have a partner of their class in `made`; each is used once, the best overlap first."""
    overlap = iou(wanted.boxes, made.boxes) * (wanted.classes[:, np.newaxis] == made.classes)
    count = 0
    while overlap.size and overlap.max() >= MATCH_IOU:
        row, column = np.unravel_index(overlap.argmax(), overlap.shape)
        overlap[row, :], overlap[:, column] = 0.0, 0.0
        count += 1
    return count


def iou(a: Floats, b: Floats) -> Floats:
    """Intersection over union: (n, 4) and (m, 4) as corners -> (n, m)."""
    low = np.maximum(a[:, np.newaxis, :2], b[np.newaxis, :, :2])
    high = np.minimum(a[:, np.newaxis, 2:], b[np.newaxis, :, 2:])
    common = np.prod(np.clip(high - low, 0, None), axis=2)
    areas = [np.prod(np.clip(boxes[:, 2:] - boxes[:, :2], 0, None), axis=1) for boxes in (a, b)]
    union = areas[0][:, np.newaxis] + areas[1] - common
    shares: Floats = np.divide(common, union, out=np.zeros_like(common), where=union > 0)
    return shares
