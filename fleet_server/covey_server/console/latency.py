"""How fast and how well: windows of telemetry merged into figures and into charts.

Every query goes by an index and has a limit; a fleet too large for it is judged by its newest windows, and `since_ms` says how
far back those reach. Latency is end to end, as callers see it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from sqlalchemy import select
from sqlalchemy.orm import Session

from covey_contract.histogram import Histogram, merge
from covey_server.db.tables import TelemetryRow

MEASURE = "end_to_end"
MAX_WINDOWS = 2000


@dataclass(frozen=True)
class Window:
    """One build in one window of one device, with what the console shows of it."""

    device: str
    build: str
    version: str
    start_ms: int
    end_ms: int
    ok: int
    failed: int
    fallbacks: int
    latency: Histogram


@dataclass(frozen=True)
class Health:
    """Figures over some windows. Times in ms; None where there were no requests."""

    requests: int = 0
    failed: int = 0
    fallbacks: int = 0
    p50_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None
    since_ms: int | None = None
    devices: int = 0

    @property
    def error_rate(self) -> float | None:
        return self.failed / self.requests if self.requests else None


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
    builds: Sequence[str] = (),
    device: str | None = None,
    since_ms: int,
    limit: int = MAX_WINDOWS,
) -> list[Window]:
    """The newest windows of one device or of some builds (digests) that ended after `since_ms`, oldest first."""
    query = select(TelemetryRow).where(TelemetryRow.end_ms > since_ms).order_by(TelemetryRow.end_ms.desc()).limit(limit)
    if device is not None:
        query = query.where(TelemetryRow.device == device)
    if builds:
        query = query.where(TelemetryRow.build.in_(builds))
    elif device is None:
        return []
    return [_window(row) for row in reversed(session.scalars(query).all())]


def health(found: Iterable[Window]) -> Health:
    """The figures over all of these windows together."""
    held = list(found)
    whole = merge([one.latency for one in held])
    has = whole.count > 0
    return Health(
        requests=sum(one.ok + one.failed for one in held),
        failed=sum(one.failed for one in held),
        fallbacks=sum(one.fallbacks for one in held),
        p50_ms=whole.quantile(0.5) * 1000 if has else None,
        p95_ms=whole.quantile(0.95) * 1000 if has else None,
        p99_ms=whole.quantile(0.99) * 1000 if has else None,
        since_ms=min((one.start_ms for one in held), default=None),
        devices=len({one.device for one in held}),
    )


def health_by_version(found: Iterable[Window]) -> dict[str, Health]:
    grouped: defaultdict[str, list[Window]] = defaultdict(list)
    for one in found:
        grouped[one.version].append(one)
    return {version: health(held) for version, held in grouped.items()}


def chart(
    found: Sequence[Window], groups: Sequence[tuple[str, frozenset[str]]], label: str, points: int = 120
) -> Chart:
    """For each group (a name and its builds' digests) the p50 and p99 over time, in at most `points` steps."""
    drawn = Chart(label)
    if not found:
        return drawn
    first, last = found[0].end_ms, found[-1].end_ms
    step = max(math.ceil((last - first + 1) / points / 1000) * 1000, 1000)
    starts = list(range(first - first % step, last + 1, step))
    drawn.times = [round((start + step / 2) / 1000, 1) for start in starts]
    for name, builds in groups:
        buckets: defaultdict[int, list[Histogram]] = defaultdict(list)
        for one in found:
            if one.build in builds and one.latency.count:
                buckets[one.end_ms - one.end_ms % step].append(one.latency)
        if not buckets:
            continue
        merged = {start: merge(held) for start, held in buckets.items()}
        for quantile, kind in ((0.5, "p50"), (0.99, "p99")):
            values = [
                round(merged[start].quantile(quantile) * 1000, 4) if start in merged else None for start in starts
            ]
            drawn.lines.append({"name": f"{name} {kind}", "group": name, "kind": kind, "values": values})
    return drawn


def _window(row: TelemetryRow) -> Window:
    try:
        latency = msgspec.convert(row.histograms.get(MEASURE) or {}, Histogram)
    except msgspec.ValidationError:
        latency = Histogram()
    return Window(
        device=row.device,
        build=row.build,
        version=row.version,
        start_ms=row.start_ms,
        end_ms=row.end_ms,
        ok=row.ok,
        failed=row.failed,
        fallbacks=row.fallbacks,
        latency=latency,
    )
