"""From rows of telemetry to windows of evidence, put together as they come so that each is read once.

What is kept of a device is small however long it is judged: one window for all before its swap, and at most `MAX_BINS` for what came
after, each over a span of time that doubles when there are too many. Which bin a row falls into follows from its time alone, so
rows may come in any order and twice as far as the reader tells them apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from sqlalchemy import Row, Select, Text, cast, select

from covey_contract.drift import OutputCounts
from covey_contract.histogram import Histogram
from covey_server.core.gates.evidence import Window, together
from covey_server.core.spec.gates import Gates
from covey_server.db.tables import TelemetryRow

BEFORE_MS = 3_600_000
# Of what came after, the last day counts; a longer soak does not need longer reading.
AFTER_MS = 86_400_000
MAX_BINS = 16


@dataclass(frozen=True)
class Needs:
    """What of the telemetry the gates ask for; the rest is not read."""

    latency: bool = False
    compute: bool = False
    outputs: bool = False
    resources: bool = False
    requests: bool = False

    @staticmethod
    def of(gates: Gates) -> Needs:
        measures = {gate.measure for _, gate in gates.latencies}
        conditions = bool(gates.expressions)
        return Needs(
            latency="end_to_end" in measures or conditions,
            compute="compute" in measures or conditions,
            outputs=gates.drift is not None or conditions,
            resources=conditions
            or any(gate is not None for gate in (gates.temperature, gates.throttling, gates.memory)),
            requests=gates.errors is not None or gates.silence is not None,
        )

    @property
    def anything(self) -> bool:
        return self != Needs()


def rows_query(needs: Needs) -> Select[Any]:
    """Rows as `Units.add` takes them. JSON comes as text, since only part of it is decoded."""
    row = TelemetryRow
    columns: list[Any] = [
        row.device,
        row.seq,
        row.part,
        row.start_ms,
        row.end_ms,
        row.received_ms,
        row.build,
        row.ok,
        row.failed,
        row.fallbacks,
    ]
    if needs.latency or needs.compute:
        columns.append(cast(row.histograms, Text).label("histograms"))
    if needs.outputs:
        columns.append(cast(row.outputs, Text).label("outputs"))
    if needs.resources:
        columns.append(cast(row.resources, Text).label("resources"))
    return select(*columns)


class _EndToEnd(msgspec.Struct):
    end_to_end: Histogram = Histogram()


class _Compute(msgspec.Struct):
    compute: Histogram = Histogram()


class _Resources(msgspec.Struct):
    control_rss_mb: float = 0.0
    gateway_rss_mb: float = 0.0
    runners_rss_mb: float = 0.0
    temperature_c: float | None = None
    throttled: bool | None = None


_end_to_end = msgspec.json.Decoder(_EndToEnd)
_compute = msgspec.json.Decoder(_Compute)
_outputs = msgspec.json.Decoder(dict[str, OutputCounts])
_resources = msgspec.json.Decoder(_Resources)


def window_of(row: Row[Any], needs: Needs) -> Window:
    """What one row says, as far as the gates need it. A fallback looked well to its caller, but this build failed it."""
    resources = _resources.decode(row.resources) if needs.resources and row.resources not in {None, "null"} else None
    memory = None
    if resources is not None:
        memory = resources.control_rss_mb + resources.gateway_rss_mb + resources.runners_rss_mb
    return Window(
        max(row.ok - row.fallbacks, 0),
        row.failed + row.fallbacks,
        _end_to_end.decode(row.histograms).end_to_end if needs.latency else Histogram(),
        _compute.decode(row.histograms).compute if needs.compute else Histogram(),
        _outputs.decode(row.outputs) if needs.outputs else {},
        0 if resources is None else 1,
        None if resources is None or resources.throttled is None else int(resources.throttled),
        None if resources is None else resources.temperature_c,
        memory or None,
    )


@dataclass
class Tally:
    """What is kept of one device: `swap_ms` and all times by the device's own clock."""

    swap_ms: int
    settle_ms: int
    digest_before: str | None
    digest_after: str
    before: tuple[Window, ...] = ()
    bins: dict[int, Window] = field(default_factory=dict)
    width_ms: int = 1
    first_ms: int | None = None  # when the first and the last window after began, since the swap
    last_ms: int = 0

    def add(self, rows: Iterable[Row[Any]], needs: Needs) -> bool:
        """Whether any of the rows counted."""
        before: list[Window] = []
        after: dict[int, list[Window]] = {}
        for row in rows:
            if self._is_before(row):
                before.append(window_of(row, needs))
            elif self._is_after(row):
                after.setdefault(row.start_ms - self.swap_ms, []).append(window_of(row, needs))
        if before:
            self.before = (together([*self.before, *before]),)
        if after:
            self._put(after)
        return bool(before or after)

    def _is_before(self, row: Row[Any]) -> bool:
        in_time = self.swap_ms - BEFORE_MS < row.end_ms <= self.swap_ms
        return bool(in_time and row.build == self.digest_before)

    def _is_after(self, row: Row[Any]) -> bool:
        in_time = row.end_ms > self.swap_ms and row.start_ms >= self.swap_ms + self.settle_ms
        return bool(in_time and row.build == self.digest_after)

    def _put(self, after: dict[int, list[Window]]) -> None:
        """`after`: windows by when they began, in ms since the swap."""
        self.last_ms = max(self.last_ms, *after)
        oldest = max(self.last_ms - AFTER_MS, 0)
        self.first_ms = max(min(after if self.first_ms is None else [self.first_ms, *after]), oldest)
        while self.last_ms // self.width_ms - self.first_ms // self.width_ms >= MAX_BINS:
            self._halve()
        placed: dict[int, list[Window]] = {index: [window] for index, window in self.bins.items()}
        for at, windows in after.items():
            placed.setdefault(at // self.width_ms, []).extend(windows)
        kept = {index: windows for index, windows in placed.items() if index >= self.first_ms // self.width_ms}
        self.bins = {index: together(windows) for index, windows in sorted(kept.items())}

    def _halve(self) -> None:
        self.width_ms *= 2
        halved: dict[int, list[Window]] = {}
        for index, window in self.bins.items():
            halved.setdefault(index // 2, []).append(window)
        self.bins = {index: together(windows) for index, windows in halved.items()}

    @property
    def after(self) -> tuple[Window, ...]:
        return tuple(window for _, window in sorted(self.bins.items()))


def clock_offset_ms(rows: Sequence[Row[Any]]) -> int:
    """How far the device's clock is behind the server's: the least time between a window's end and its arrival. Late reports
    make the others larger, none makes it smaller."""
    return min(int(row.received_ms - row.end_ms) for row in rows)
