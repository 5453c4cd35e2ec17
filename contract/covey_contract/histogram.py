"""Base-2 exponential histograms as OpenTelemetry defines them: mergeable, exact counts, known relative error.

Bucket `i` of scale `s` holds values in (base^i, base^(i+1)] with base = 2^(2^-s). At scale 4 a bucket is 4.4 % wide.
Source: OpenTelemetry metrics data model, "ExponentialHistogram".

>>> histogram = Recorder()
>>> for milliseconds in range(1, 101): histogram.record(milliseconds / 1000)
>>> round(histogram.snapshot().quantile(0.5), 3)
0.05
"""

from __future__ import annotations

import math
from operator import add
from typing import Annotated

import msgspec

from covey_contract.errors import HistogramError

DEFAULT_SCALE = 4
MAX_BUCKETS = 1024
_NEAR = 8 * MAX_BUCKETS

Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]


class Histogram(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A finished histogram of non-negative values (seconds, unless a field says otherwise).

    `counts[i]` counts the values in bucket `offset + i`. Decoding refuses one whose counts do not add up.
    """

    scale: Annotated[int, msgspec.Meta(ge=-10, le=20)] = DEFAULT_SCALE
    count: Count = 0
    sum: float = 0.0
    min: float = 0.0
    max: float = 0.0
    zero_count: Count = 0
    offset: Annotated[int, msgspec.Meta(ge=-(1 << 30), le=1 << 30)] = 0
    counts: tuple[Count, ...] = ()

    def __post_init__(self) -> None:
        if len(self.counts) > MAX_BUCKETS:
            raise ValueError(f"{len(self.counts)} buckets; at most {MAX_BUCKETS}")
        if self.zero_count + sum(self.counts) != self.count:
            raise ValueError("the histogram's buckets do not add up to its count")
        if not all(math.isfinite(value) and value >= 0 for value in (self.sum, self.min, self.max)):
            raise ValueError("the histogram's sum, min and max must be finite and not negative")

    def quantile(self, q: float) -> float:
        """The q-quantile, log-linear within its bucket and never outside [min, max]; NaN if empty."""
        if not 0 <= q <= 1:
            raise HistogramError(f"quantile {q} is not between 0 and 1")
        if self.count == 0:
            return math.nan
        rank = q * self.count
        seen = self.zero_count
        if rank <= seen:
            return self.min
        step = math.ldexp(1.0, -self.scale)
        for index, count in enumerate(self.counts, start=self.offset):
            if count and rank <= seen + count:
                value = math.pow(2.0, _bounded((index + (rank - seen) / count) * step))
                return min(max(value, self.min), self.max)
            seen += count
        return self.max

    def count_above(self, bound: float) -> float:
        """How many values lie above `bound`, log-linear within the bucket that holds it."""
        if bound <= 0:
            return float(self.count - self.zero_count)
        position = math.log2(bound) * math.ldexp(1.0, self.scale) - self.offset
        whole = math.floor(position)
        above = float(sum(self.counts[max(whole + 1, 0) :]))
        if 0 <= whole < len(self.counts):
            above += self.counts[whole] * (1 - (position - whole))
        return above

    @property
    def mean(self) -> float:
        return self.sum / self.count if self.count else math.nan


def merge(histograms: list[Histogram]) -> Histogram:
    """The histogram of all values of all; of the lowest scale among them, or lower if it would need too many buckets."""
    filled = [histogram for histogram in histograms if histogram.count]
    if not filled:
        return Histogram()
    scale = min(histogram.scale for histogram in filled)
    buckets = _sums([histogram for histogram in filled if histogram.scale == scale])
    for histogram in filled:
        if histogram.scale != scale:
            _add(histogram, histogram.scale - scale, buckets)
    return _build(
        scale,
        buckets,
        zero_count=sum(histogram.zero_count for histogram in filled),
        total=sum(histogram.sum for histogram in filled),
        low=min(histogram.min for histogram in filled),
        high=max(histogram.max for histogram in filled),
    )


def _sums(alike: list[Histogram]) -> dict[int, int]:
    """The buckets of histograms of one scale together; as rows of one table where they lie near, which is ten times as fast."""
    first = min((histogram.offset for histogram in alike if histogram.counts), default=0)
    last = max((histogram.offset + len(histogram.counts) for histogram in alike if histogram.counts), default=0)
    buckets: dict[int, int] = {}
    if last - first > _NEAR:
        for histogram in alike:
            _add(histogram, 0, buckets)
        return buckets
    sums = [0] * (last - first)
    for histogram in alike:
        start = histogram.offset - first
        end = start + len(histogram.counts)
        if histogram.counts:
            sums[start:end] = map(add, sums[start:end], histogram.counts)
    return {index: count for index, count in enumerate(sums, start=first) if count}


def _add(histogram: Histogram, shift: int, buckets: dict[int, int]) -> None:
    for index, count in enumerate(histogram.counts, start=histogram.offset):
        if count:
            buckets[index >> shift] = buckets.get(index >> shift, 0) + count


class Recorder:
    """Takes values one at a time, 0.4 µs each; `snapshot` gives the histogram so far, `reset` starts anew."""

    def __init__(self, scale: int = DEFAULT_SCALE) -> None:
        self._scale = scale
        self._factor = math.ldexp(1.0, scale)
        self.reset()

    def reset(self) -> None:
        self._buckets: dict[int, int] = {}
        self._zero_count = 0
        self._sum = 0.0
        self._min = math.inf
        self._max = 0.0

    def record(self, value: float) -> None:
        """Count a value; negative ones (a clock that stepped back) count as zero."""
        if value > 0.0:
            index = math.ceil(math.log2(value) * self._factor) - 1
            self._buckets[index] = self._buckets.get(index, 0) + 1
            self._sum += value
        else:
            value = 0.0
            self._zero_count += 1
        if value < self._min:
            self._min = value
        if value > self._max:
            self._max = value

    def snapshot(self) -> Histogram:
        if not self._buckets and not self._zero_count:
            return Histogram(scale=self._scale)
        return _build(
            self._scale, self._buckets, zero_count=self._zero_count, total=self._sum, low=self._min, high=self._max
        )


def _build(scale: int, buckets: dict[int, int], *, zero_count: int, total: float, low: float, high: float) -> Histogram:
    while buckets and max(buckets) - min(buckets) >= MAX_BUCKETS:
        coarser: dict[int, int] = {}
        for index, count in buckets.items():
            coarser[index >> 1] = coarser.get(index >> 1, 0) + count
        buckets, scale = coarser, scale - 1
    first = min(buckets, default=0)
    counts = tuple(buckets.get(index, 0) for index in range(first, max(buckets, default=first - 1) + 1))
    return Histogram(
        scale=scale,
        count=zero_count + sum(counts),
        sum=total,
        min=low,
        max=high,
        zero_count=zero_count,
        offset=first,
        counts=counts,
    )


def _bounded(exponent: float) -> float:
    """Hostile offsets must not overflow; values this far out are clamped to [min, max] anyway."""
    return min(max(exponent, -1022.0), 1023.0)
