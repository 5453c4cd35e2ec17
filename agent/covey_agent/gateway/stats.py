"""What one build did: the window since the last `Collect`, and totals for the protocol's statistics.

Memory is bounded whether anybody collects or not: a histogram has a bounded number of buckets, errors are counted by a fixed
set of codes, and `Statistics` forgets the oldest builds that are no longer held.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection
from dataclasses import dataclass, field

from covey_agent.gateway.tally import Tally
from covey_agent.runner.protocol import Result
from covey_contract.histogram import Recorder
from covey_contract.manifest import MAX_BATCH, Manifest
from covey_contract.messages import BuildWindow

MAX_BUILDS = 32
# Counted at once; so many more are held in memory, each of some hundred bytes.
NOTED = 64
# Upper bounds, in seconds, of what scrapers see; the histograms that go to the server are finer.
DURATION_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


@dataclass
class Totals:
    """Since the build was first loaded. Times in seconds."""

    ok: int = 0
    failed: int = 0
    queue_s: float = 0.0
    compute_s: float = 0.0
    end_to_end_s: float = 0.0
    last_ms: int = 0
    fallbacks: int = 0
    computations: int = 0
    batches: dict[int, int] = field(default_factory=dict)
    errors: dict[str, int] = field(default_factory=dict)
    durations: list[int] = field(default_factory=lambda: [0] * (len(DURATION_BOUNDS_S) + 1))  # of answered requests


@dataclass
class BuildStats:
    """Requests count for the build that was asked first; `fallbacks` are those of them that the previous build answered.

    What a request adds is noted in its time and counted later, many at once: before anybody looks, or when `NOTED` have come together.
    """

    build: str
    manifest: Manifest
    probation: bool = False
    ok: int = 0
    fallbacks: int = 0
    computations: int = 0  # also those that answered for another build
    errors: dict[str, int] = field(default_factory=dict)
    batches: dict[int, int] = field(default_factory=dict)  # inferences by rows, where rows may go together
    queue: Recorder = field(default_factory=Recorder)
    compute: Recorder = field(default_factory=Recorder)
    end_to_end: Recorder = field(default_factory=Recorder)

    def __post_init__(self) -> None:
        self._totals = Totals()
        self._lifetime = Recorder()
        self._tally = Tally(self.manifest.reference)
        self._answered: list[tuple[float, float, bool, int]] = []
        self._computed: list[tuple[Result, int]] = []

    @property
    def totals(self) -> Totals:
        self._count()
        return self._totals

    @property
    def lifetime(self) -> Recorder:
        """Compute since the build was loaded."""
        self._count()
        return self._lifetime

    def loaded(self) -> None:
        """Anew, in another process."""
        self._count()
        self._lifetime.reset()

    def answered(self, *, queue_s: float, end_to_end_s: float, fallback: bool, now_ms: int) -> None:
        self._answered.append((queue_s, end_to_end_s, fallback, now_ms))
        if len(self._answered) >= NOTED:
            self._count()

    def computed(self, result: Result, rows: int = 1) -> None:
        """One inference, of so many rows."""
        self._computed.append((result, rows))
        if len(self._computed) >= NOTED:
            self._count()

    def _count(self) -> None:
        for answer in self._answered:
            self._count_answer(*answer)
        self._answered.clear()
        for result, rows in self._computed:
            self._count_computation(result, rows)
        self._computed.clear()

    def _count_answer(self, queue_s: float, end_to_end_s: float, fallback: bool, now_ms: int) -> None:  # noqa: FBT001
        self.ok += 1
        self.fallbacks += fallback
        self.queue.record(queue_s)
        self.end_to_end.record(end_to_end_s)
        totals = self._totals
        totals.ok += 1
        totals.fallbacks += fallback
        totals.queue_s += queue_s
        totals.end_to_end_s += end_to_end_s
        totals.durations[bisect_left(DURATION_BOUNDS_S, end_to_end_s)] += 1
        totals.last_ms = now_ms

    def _count_computation(self, result: Result, rows: int) -> None:
        self.computations += 1
        totals = self._totals
        if self.manifest.max_batch > 1 and 1 <= rows <= MAX_BATCH:
            self.batches[rows] = self.batches.get(rows, 0) + 1
            totals.batches[rows] = totals.batches.get(rows, 0) + 1
        totals.computations += 1
        totals.compute_s += result.compute_s
        self.compute.record(result.compute_s)
        self._lifetime.record(result.compute_s)
        self._tally.add(result)

    def failed(self, code: str) -> None:
        self.errors[code] = self.errors.get(code, 0) + 1
        self._totals.failed += 1
        self._totals.errors[code] = self._totals.errors.get(code, 0) + 1

    @property
    def is_empty(self) -> bool:
        self._count()
        return not (self.ok or self.errors or self.computations)

    def take(self, *, probation: bool) -> BuildWindow:
        """The window so far; a new one begins, in probation or not."""
        self._count()
        outputs, inputs = self._tally.take()
        window = BuildWindow(
            model=self.manifest.model,
            version=self.manifest.version,
            build=self.build,
            probation=self.probation or probation,
            ok=self.ok,
            errors=dict(self.errors),
            fallbacks=self.fallbacks,
            batches=dict(sorted(self.batches.items())),
            queue=self.queue.snapshot(),
            compute=self.compute.snapshot(),
            end_to_end=self.end_to_end.snapshot(),
            outputs=outputs,
            inputs=inputs,
        )
        self.probation = probation
        self.ok = self.fallbacks = self.computations = 0
        self.errors.clear()
        self.batches.clear()
        for recorder in (self.queue, self.compute, self.end_to_end):
            recorder.reset()
        return window


class Statistics:
    """Of all builds of one model, also of those that were ended since the last `Collect`."""

    def __init__(self) -> None:
        self._builds: dict[str, BuildStats] = {}

    def of(self, build: str, manifest: Manifest) -> BuildStats:
        stats = self._builds.get(build)
        if stats is None:
            stats = self._builds[build] = BuildStats(build, manifest)
        return stats

    def all(self) -> list[BuildStats]:
        return list(self._builds.values())

    def take(self, *, held: Collection[str], in_probation: str | None) -> list[BuildWindow]:
        """The windows in which something happened. Builds that are no longer held are forgotten afterwards."""
        windows = [
            stats.take(probation=build == in_probation) for build, stats in self._builds.items() if not stats.is_empty
        ]
        self._builds = {build: stats for build, stats in self._builds.items() if build in held}
        return windows

    def forget_old(self, held: Collection[str]) -> None:
        """Keep to `MAX_BUILDS` though nobody collects."""
        gone = [build for build in self._builds if build not in held]
        for build in gone[: max(len(self._builds) - MAX_BUILDS, 0)]:
            del self._builds[build]
