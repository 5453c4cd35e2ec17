"""Windows added up: what each build did since this process first heard of it. Pure.

Sums that only grow need no queue: while a collector is away nothing is lost but the steps in between, and memory is bounded by the number
of builds.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from covey_contract.histogram import Histogram, merge
from covey_contract.messages import BuildWindow, Resources, Telemetry

MAX_BUILDS = 32
_MAX_OUTCOMES = 32  # besides `ok`
_OTHER = "other"


@dataclass
class BuildSeries:
    """Times in Unix milliseconds."""

    model: str
    version: str
    build: str
    start_ms: int
    end_ms: int
    outcomes: dict[str, int] = field(default_factory=lambda: {"ok": 0})
    fallbacks: int = 0
    batches: dict[int, int] = field(default_factory=dict)  # inferences by rows
    queue: Histogram = field(default_factory=Histogram)
    compute: Histogram = field(default_factory=Histogram)
    end_to_end: Histogram = field(default_factory=Histogram)

    def add(self, window: BuildWindow, end_ms: int) -> None:
        self.end_ms = max(self.end_ms, end_ms)
        self._count("ok", window.ok)
        for code, count in window.errors.items():
            self._count(code, count)
        self.fallbacks += window.fallbacks
        for rows, count in window.batches.items():
            self.batches[rows] = self.batches.get(rows, 0) + count
        self.queue = merge([self.queue, window.queue])
        self.compute = merge([self.compute, window.compute])
        self.end_to_end = merge([self.end_to_end, window.end_to_end])

    def _count(self, outcome: str, count: int) -> None:
        if outcome not in self.outcomes and len(self.outcomes) > _MAX_OUTCOMES:
            outcome = _OTHER
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + count


class Series:
    """Of all builds, and what the agent's processes used last."""

    def __init__(self) -> None:
        self._builds: dict[str, BuildSeries] = {}
        self.resources: Resources | None = None
        self.end_ms = 0

    def add(self, told: Telemetry) -> None:
        for window in told.windows:
            series = self._builds.get(window.build)
            if series is None:
                self._make_room()
                series = BuildSeries(window.model, window.version, window.build, told.start_ms, told.end_ms)
                self._builds[window.build] = series
            series.add(window, told.end_ms)
        if told.resources is not None:
            self.resources, self.end_ms = told.resources, told.end_ms

    def builds(self) -> list[BuildSeries]:
        return list(self._builds.values())

    def _make_room(self) -> None:
        """Forget the build that was heard of longest ago; should it come again, its sums begin anew, with a new start."""
        if len(self._builds) >= MAX_BUILDS:
            del self._builds[min(self._builds, key=lambda build: self._builds[build].end_ms)]
