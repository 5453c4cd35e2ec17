"""How fast and how well: windows of telemetry merged into figures and into charts.

Every query goes by an index. Counts are exact however large the fleet is, the database adds them up; quantiles need the windows
themselves, so that of a fleet with too many of them the newest of each build are taken, as many as its part of all windows, and
`Spell` says how far they reach back.
Latency is end to end, as callers see it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from sqlalchemy import Text, cast, func, select
from sqlalchemy.orm import Session

from covey_contract.histogram import Histogram, merge
from covey_server.db.tables import TelemetryRow

MAX_WINDOWS = 2000
LEAST_OF_BUILD = 4
_CLOCK_WINDOWS = 5


@dataclass(frozen=True)
class Window:
    """One build in one window of one device, with what the console shows of it."""

    device: str
    build: str
    version: str
    start_ms: int
    end_ms: int
    received_ms: int
    ok: int
    failed: int
    fallbacks: int
    latency: Histogram
    batches: dict[int, int] = field(default_factory=dict)  # inferences by their rows, where rows may go together


@dataclass(frozen=True)
class Tally:
    """Exact counts of some windows."""

    windows: int = 0
    ok: int = 0
    failed: int = 0
    fallbacks: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.windows + other.windows,
            self.ok + other.ok,
            self.failed + other.failed,
            self.fallbacks + other.fallbacks,
        )


@dataclass(frozen=True)
class Spell:
    """The last so many ms by builds: the exact counts of each, and windows enough for quantiles, the oldest of which begins at
    `since_ms`."""

    tallies: dict[str, Tally]
    windows: list[Window]
    since_ms: int


@dataclass(frozen=True)
class Health:
    """Figures over some windows. Times in ms; None where there were no requests."""

    requests: int = 0
    failed: int = 0
    fallbacks: int = 0
    p50_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None

    @property
    def error_rate(self) -> float | None:
        return self.failed / self.requests if self.requests else None


@dataclass(frozen=True)
class Together:
    """How many rows were computed at once: on average, and at most."""

    mean: float
    most: int


@dataclass
class Chart:
    """What the page's script draws: one x axis in Unix seconds, lines in ms, and marks with words."""

    label: str
    times: list[float] = field(default_factory=list)
    lines: list[dict[str, Any]] = field(default_factory=list)
    marks: list[dict[str, Any]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return {"label": self.label, "t": self.times, "lines": self.lines, "marks": self.marks}


def windows(
    session: Session,
    *,
    builds: Sequence[str],
    devices: Sequence[str] = (),
    since_ms: int,
    until_ms: int | None = None,
    limit: int = MAX_WINDOWS,
) -> list[Window]:
    """The newest windows of some builds (digests), of all devices or some, that ended in the time; oldest first."""
    if not builds:
        return []
    query = select(*_COLUMNS).where(TelemetryRow.end_ms > since_ms).order_by(TelemetryRow.end_ms.desc()).limit(limit)
    if until_ms is not None:
        query = query.where(TelemetryRow.end_ms <= until_ms)
    if devices:
        # An expression, so that the index by device is taken: that by build holds the windows of the whole fleet.
        query = query.where(TelemetryRow.device.in_(devices), (TelemetryRow.build + "").in_(builds))
    else:
        query = query.where(TelemetryRow.build.in_(builds))
    return [_window(row) for row in reversed(session.execute(query).all())]


def windows_of(session: Session, device: str, limit: int) -> list[Window]:
    """The newest windows of a device in the order in which it measured them, whatever its clock did meanwhile."""
    query = (
        select(*_COLUMNS)
        .where(TelemetryRow.device == device)
        .order_by(TelemetryRow.seq.desc(), TelemetryRow.part.desc())
        .limit(limit)
    )
    return [_window(row) for row in reversed(session.execute(query).all())]


def behind_ms(found: Sequence[Window]) -> int:
    """How far a device's clock is behind ours, by what came of it last; a record that waited on the device may make it seem
    more, never less, so that the quickest of the newest counts."""
    return min((one.received_ms - one.end_ms for one in found[-_CLOCK_WINDOWS:]), default=0)


def lately(session: Session, builds: Sequence[str], now_ms: int, span_ms: int, limit: int = MAX_WINDOWS) -> Spell:
    """The builds' figures of the last `span_ms`, by the devices' clocks."""
    since_ms = now_ms - span_ms
    rows = session.execute(
        select(
            TelemetryRow.build,
            func.count(),
            func.sum(TelemetryRow.ok),
            func.sum(TelemetryRow.failed),
            func.sum(TelemetryRow.fallbacks),
        )
        .where(TelemetryRow.build.in_(builds), TelemetryRow.end_ms > since_ms)
        .group_by(TelemetryRow.build)
    )
    tallies = {build: Tally(count, ok, failed, fallbacks) for build, count, ok, failed, fallbacks in rows}
    total = sum(one.windows for one in tallies.values())
    if total <= limit:
        return Spell(tallies, windows(session, builds=builds, since_ms=since_ms, limit=limit), since_ms)
    # Of each build its part, the newest first, as the index has them.
    found: list[Window] = []
    reach_ms = now_ms
    for build, tally in tallies.items():
        part = max(math.ceil(limit * tally.windows / total), LEAST_OF_BUILD)
        taken = windows(session, builds=[build], since_ms=since_ms, limit=part)
        found += taken
        reach_ms = min(reach_ms, taken[0].start_ms if taken else now_ms)
    return Spell(tallies, found, max(reach_ms, since_ms))


def rows_together(found: Iterable[Window]) -> Together | None:
    """None where no build counts its rows."""
    inferences = rows = most = 0
    for one in found:
        for count, number in one.batches.items():
            inferences, rows, most = inferences + number, rows + count * number, max(most, count)
    return Together(rows / inferences, most) if inferences else None


def health(found: Iterable[Window]) -> Health:
    """The figures over all of these windows together."""
    held = list(found)
    counted = sum((Tally(1, one.ok, one.failed, one.fallbacks) for one in held), Tally())
    return health_of(merge([one.latency for one in held]), counted)


def health_of(whole: Histogram, counted: Tally) -> Health:
    has = whole.count > 0
    return Health(
        requests=counted.ok + counted.failed,
        failed=counted.failed,
        fallbacks=counted.fallbacks,
        p50_ms=whole.quantile(0.5) * 1000 if has else None,
        p95_ms=whole.quantile(0.95) * 1000 if has else None,
        p99_ms=whole.quantile(0.99) * 1000 if has else None,
    )


@dataclass(frozen=True)
class Curve:
    """One group of a chart: the windows of some builds (digests), on some devices or on all."""

    name: str
    builds: frozenset[str]
    devices: frozenset[str] | None = None

    def holds(self, window: Window) -> bool:
        return window.build in self.builds and (self.devices is None or window.device in self.devices)


def chart(
    found: Sequence[Window],
    groups: Sequence[Curve],
    label: str,
    quantile: float = 0.99,
    points: int = 120,
) -> Chart:
    """For each group the median and the quantile over time, in at most `points` steps, none shorter than a window usually is."""
    drawn = Chart(label)
    if not found:
        return drawn
    first, last = min(one.end_ms for one in found), max(one.end_ms for one in found)
    usual = sorted(one.end_ms - one.start_ms for one in found)[len(found) // 2]
    step = max(math.ceil(max((last - first + 1) / points, usual) / 1000) * 1000, 1000)
    starts = list(range(first - first % step, last + 1, step))
    drawn.times = [round((start + step / 2) / 1000, 1) for start in starts]
    for curve in groups:
        buckets: defaultdict[int, list[Histogram]] = defaultdict(list)
        for one in found:
            if one.latency.count and curve.holds(one):
                buckets[one.end_ms - one.end_ms % step].append(one.latency)
        if not buckets:
            continue
        merged = {start: merge(held) for start, held in buckets.items()}
        for q, kind in ((0.5, "median"), (quantile, "quantile")):
            values = [round(merged[start].quantile(q) * 1000, 4) if start in merged else None for start in starts]
            text = f"p{q * 100:g}"
            drawn.lines.append(
                {
                    "name": f"{curve.name} {text}",
                    "group": curve.name,
                    "kind": kind,
                    "quantile": text,
                    "values": values,
                }
            )
    return drawn


class _Measured(msgspec.Struct):
    """Of a row's histograms the one that is shown, and the sizes of batches; the others are not decoded."""

    end_to_end: Histogram = Histogram()
    batches: dict[int, int] = {}


_DECODER = msgspec.json.Decoder(_Measured)
_COLUMNS = (
    TelemetryRow.device,
    TelemetryRow.build,
    TelemetryRow.version,
    TelemetryRow.start_ms,
    TelemetryRow.end_ms,
    TelemetryRow.received_ms,
    TelemetryRow.ok,
    TelemetryRow.failed,
    TelemetryRow.fallbacks,
    cast(TelemetryRow.histograms, Text).label("histograms"),
)


def _window(row: Any) -> Window:
    """Of a row of `_COLUMNS`."""
    try:
        told = _DECODER.decode(row.histograms)
    except msgspec.MsgspecError:
        told = _Measured()
    return Window(
        device=row.device,
        build=row.build,
        version=row.version,
        start_ms=row.start_ms,
        end_ms=row.end_ms,
        received_ms=row.received_ms,
        ok=row.ok,
        failed=row.failed,
        fallbacks=row.fallbacks,
        latency=told.end_to_end,
        batches=told.batches,
    )
