"""What devices have answered and how fast since this server began to listen, and how their swaps ended; for `/metrics`.

Counted when a record is stored for the first time, so that each request counts once, and kept in memory: Prometheus takes a
server that begins anew for what it is. Latencies go into buckets at every half octave, which are bounds of the devices' own
histograms as well, so that no count has to be guessed into one.
"""

from __future__ import annotations

import bisect
import math
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from covey_contract.histogram import Histogram
from covey_contract.messages import BuildWindow
from covey_server.fleet.columns import clamp

# Seconds: from 0.12 ms to 8 s, each √2 times the one before.
_EXPONENTS = tuple(half / 2 for half in range(-26, 7))
BOUNDS = tuple(2.0**exponent for exponent in _EXPONENTS)
# Builds that are told apart; a device could name as many as it likes.
MAX_BUILDS = 2000
_MAX_MODELS = 500
OTHER = "other"


@dataclass
class Totals:
    """Of one build: requests answered, failed, and answered by the build before; latencies by bucket, the last without a bound."""

    ok: int = 0
    failed: int = 0
    fallbacks: int = 0
    buckets: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    seconds: float = 0.0

    def add(self, other: Totals) -> None:
        self.ok += other.ok
        self.failed += other.failed
        self.fallbacks += other.fallbacks
        self.seconds += other.seconds
        self.buckets = [mine + more for mine, more in zip(self.buckets, other.buckets, strict=True)]


class Traffic:
    """Thread-safe. Builds are told by their digests."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._totals: OrderedDict[str, Totals] = OrderedDict()  # the one heard of longest ago first
        self._swaps: defaultdict[tuple[str, str], int] = defaultdict(int)
        self._models: set[str] = set()

    def note_windows(self, windows: Iterable[BuildWindow]) -> None:
        """Windows of telemetry that were not stored before."""
        with self._lock:
            for window in windows:
                totals = self._of(window.build)
                totals.ok += clamp(window.ok)
                totals.failed += sum(map(clamp, window.errors.values()))
                totals.fallbacks += clamp(window.fallbacks)
                spread(window.end_to_end, totals.buckets)
                totals.seconds += window.end_to_end.sum

    def note_swaps(self, ended: Iterable[tuple[str, str]]) -> None:
        """Deployments that have ended: model, and the state that they ended in."""
        with self._lock:
            for model, state in ended:
                if model not in self._models and len(self._models) >= _MAX_MODELS:
                    model = OTHER
                self._models.add(model)
                self._swaps[model, state] += 1

    def totals(self) -> dict[str, Totals]:
        """By build digest; a copy."""
        with self._lock:
            made = {}
            for build, totals in self._totals.items():
                made[build] = Totals()
                made[build].add(totals)
            return made

    def swaps(self) -> dict[tuple[str, str], int]:
        """By model and state."""
        with self._lock:
            return dict(self._swaps)

    def _of(self, build: str) -> Totals:
        found = self._totals.get(build)
        if found is None:
            if len(self._totals) >= MAX_BUILDS:
                # The one that has been silent longest goes; were it the other way, a liar could shut out all that come later.
                self._totals.popitem(last=False)
            found = self._totals[build] = Totals()
        self._totals.move_to_end(build)
        return found


def spread(histogram: Histogram, buckets: list[int]) -> None:
    """Add a histogram's counts to `buckets`, one for each of `BOUNDS` and one beyond.

    Exact where the histogram has at least two buckets an octave (scale 1); of a coarser one each count goes to the bucket that
    holds all of its own.

    >>> buckets = [0] * (len(BOUNDS) + 1)
    >>> spread(Histogram(scale=1, count=3, sum=2.2, min=0.6, max=0.8, offset=-2, counts=(1, 2)), buckets)
    >>> [(round(bound, 3), count) for bound, count in zip(BOUNDS, buckets) if count]
    [(0.707, 1), (1.0, 2)]
    """
    buckets[0] += histogram.zero_count
    step = math.ldexp(1.0, -histogram.scale)
    for index, count in enumerate(histogram.counts, start=histogram.offset + 1):
        if count:
            exponent = index * step  # of the upper edge, as a power of two
            # A hair less, or rounding would put an edge that is a bound beyond it.
            buckets[bisect.bisect_left(_EXPONENTS, exponent - 1e-9)] += count
