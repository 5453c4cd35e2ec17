"""Regions of a map: how many of the source's the build finds again. For text finders, masks and heat maps.

A region is what hangs together (by edges, not corners) above a threshold in a map of scores, [1, 1, height, width] or any shape with
no more than two sizes above 1; regions are compared by the boxes around them. A map's own numbers say little: one column of pixels is
like another, and a build whose map had cosine 0.99 to its source lost one region of sixteen.

    output=NAME      of the map (default: the first output)
    threshold=0.3    the lowest score inside a region
    smallest=24      the fewest pixels of a region
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from covey_converters.errors import BadInputError
from covey_converters.metrics.judged import Judged
from covey_converters.metrics.matching import Boxes, Tally
from covey_converters.metrics.options import share, whole
from covey_converters.parity import Outputs, usable
from covey_converters.samples import Samples

_THRESHOLD, _SMALLEST = 0.3, 24


def judge(
    options: Mapping[str, str], source: Outputs, build: Outputs, samples: Samples, budget: float
) -> Judged | None:
    """By recall of the source's regions. None on random inputs in which the source sees nothing."""
    name = options.get("output", next(iter(source)))
    if name not in source:
        raise BadInputError(f"metric regions: there is no output {name[:80]!r}; there are {', '.join(source)}")
    threshold = share("regions", options, "threshold", _THRESHOLD)
    smallest = whole("regions", options, "smallest", _SMALLEST)
    if sum(size > 1 for size in source[name].shape[1:]) > 2:
        raise BadInputError(f"metric regions: output {name!r} of shape {list(source[name].shape[1:])} is no map")
    readable, tally = usable(source[name], build[name]), Tally()
    for index in range(len(source[name])):
        found = regions(build[name][index], threshold, smallest) if readable else _NONE
        tally.add(regions(source[name][index], threshold, smallest), found)
    if not tally.wanted:
        if samples.synthetic:
            return None
        raise BadInputError(
            f"metric regions: the source has no region above {threshold:g} in {len(samples)} samples, so none can be lost"
        )
    return tally.judged(f"matched-region recall of {name}", "regions", frozenset({name}), len(samples), budget)


def regions(scores: NDArray[np.generic], threshold: float, smallest: int) -> Boxes:
    """Of one sample's map. Boxes as (left, top, right, bottom) in pixels."""
    from scipy import ndimage

    sizes = [size for size in scores.shape if size > 1]
    numbered, _ = ndimage.label(scores.reshape([1] * (2 - len(sizes)) + sizes).astype(np.float64) > threshold)
    pixels = np.bincount(numbered.ravel())
    boxes = [
        (box[1].start, box[0].start, box[1].stop, box[0].stop)
        for number, box in enumerate(ndimage.find_objects(numbered), 1)
        if pixels[number] >= smallest
    ]
    return _boxes(boxes)


def _boxes(corners: list[tuple[int, int, int, int]]) -> Boxes:
    count = len(corners)
    return Boxes(np.array(corners, np.float64).reshape(count, 4), np.ones(count), np.zeros(count, np.int64))


_NONE = _boxes([])
