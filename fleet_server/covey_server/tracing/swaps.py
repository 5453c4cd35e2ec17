"""What became of each order, told as spans once its deployment has ended: issued, sent, and every step that the device reported.

    deploy digits 1.1 on press-7        issued → ended
      send                              issued → sent
      fetching, verifying, …            from one report of the device to its next, by the device's clock

Its parent is the build, whose parent is the push: one trace. Told from what the database keeps, so that a server that was
started anew meanwhile loses nothing; a hint that is lost under a great load loses the spans of one order.
"""

from __future__ import annotations

import logging
import threading
import time
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from covey_contract.lifecycle import BAD, FINAL
from covey_server.bus import Bus
from covey_server.db.engine import Database
from covey_server.db.tables import AssignmentRow, Build, Campaign, ReportRow, Version
from covey_server.fleet.sql import chunks
from covey_server.tracing.spans import Attribute, Past, Tracing

log = logging.getLogger(__name__)

_GATHER_S = 0.5
_WAIT_S = 0.25
_TOLD = 20_000
_MAX_STEPS = 100
_FINAL = frozenset(str(state) for state in FINAL)
_BAD = frozenset(str(state) for state in BAD)


class SwapTracer:
    """A thread between `start` and `stop`. `ratio`: the share of orders that is told, the same ones however often one looks."""

    def __init__(self, database: Database, bus: Bus, tracing: Tracing, ratio: float) -> None:
        self._database, self._bus, self._tracing, self._ratio = database, bus, tracing, ratio
        self._told: OrderedDict[str, None] = OrderedDict()
        self._ended = threading.Event()
        self._ready = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Returns once it listens."""
        self._ended.clear()
        self._ready.clear()
        self._thread = threading.Thread(target=self._run, name="swap-tracer", daemon=True)
        self._thread.start()
        self._ready.wait()

    def stop(self) -> None:
        """Tells what it has heard of, then what is traced is sent."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._tracing.stop()

    def tell(self, assignments: Sequence[str]) -> int:
        """Tell of those of these orders whose deployments have ended and were not told before; how many."""
        wanted = [one for one in dict.fromkeys(assignments) if one not in self._told and _chosen(one, self._ratio)]
        if not wanted:
            return 0
        with self._database.reading() as session:
            rows = [
                row for part in chunks(wanted) for row in session.execute(_query().where(AssignmentRow.id.in_(part)))
            ]
            steps: dict[str, list[Any]] = {}
            for part in chunks([row.id for row in rows]):
                reports = session.execute(
                    select(ReportRow.assignment, ReportRow.state, ReportRow.at_ms, ReportRow.reason, ReportRow.detail)
                    .where(ReportRow.device.in_({row.device for row in rows}), ReportRow.assignment.in_(part))
                    .order_by(ReportRow.assignment, ReportRow.seq)
                )
                for report in reports:
                    steps.setdefault(report.assignment, []).append(report)
        for row in rows:
            self._tell(row, steps.get(row.id, [])[:_MAX_STEPS])
            self._told[row.id] = None
        while len(self._told) > _TOLD:
            self._told.popitem(last=False)
        return len(rows)

    def _tell(self, row: Any, steps: Sequence[Any]) -> None:
        common: dict[str, Attribute] = {
            "covey.device": row.device,
            "covey.model": row.model,
            "covey.version": row.version,
            "covey.assignment": row.id,
        }
        if row.campaign is not None:
            common["covey.campaign"] = row.campaign
        ended_ms = max([row.updated_ms, row.issued_ms, *(step.at_ms for step in steps)])
        whole = Past(
            f"deploy {row.model} {row.version} on {row.device}",
            row.issued_ms,
            ended_ms,
            {**common, "covey.kind": row.kind, "covey.target": row.target, "covey.outcome": row.state},
            f"{row.state}: {row.reason} {row.detail}".strip() if row.state in _BAD else "",
        )
        parent = self._tracing.past(whole, row.build_trace or row.version_trace)
        if row.sent_ms is not None:
            self._tracing.past(Past("send", row.issued_ms, row.sent_ms, common), parent)
        for step, following in zip(steps, [*steps[1:], None], strict=True):
            end_ms = step.at_ms if following is None else following.at_ms
            problem = f"{step.reason} {step.detail}".strip() if step.state in _BAD else ""
            self._tracing.past(Past(step.state, step.at_ms, end_ms, common, problem), parent)

    def _run(self) -> None:
        with self._bus.subscribe() as hints:
            self._ready.set()
            while not self._ended.is_set():
                heard = self._gather(hints.get)
                try:
                    self.tell(heard)
                except SQLAlchemyError as error:
                    log.error("deployments could not be traced: %s", error)

    def _gather(self, get: Any) -> list[str]:
        """What is heard of within a while, since many orders move together."""
        heard: list[str] = []
        deadline = time.monotonic() + _GATHER_S
        while (left := deadline - time.monotonic()) > 0 and not self._ended.is_set():
            hint = get(min(left, _WAIT_S))
            if hint is not None and hint[0] == "assignment":
                heard.append(hint[1])
        return heard


def _chosen(assignment: str, ratio: float) -> bool:
    return zlib.crc32(assignment.encode()) < ratio * (1 << 32)


def _query() -> Any:
    return (
        select(
            AssignmentRow.id,
            AssignmentRow.device,
            AssignmentRow.model,
            AssignmentRow.kind,
            AssignmentRow.issued_ms,
            AssignmentRow.sent_ms,
            AssignmentRow.updated_ms,
            AssignmentRow.state,
            AssignmentRow.reason,
            AssignmentRow.detail,
            Version.name.label("version"),
            Version.traceparent.label("version_trace"),
            Build.traceparent.label("build_trace"),
            Build.target,
            Campaign.name.label("campaign"),
        )
        .join(Version, Version.id == AssignmentRow.version_id)
        .join(Build, Build.id == AssignmentRow.build_id)
        .outerjoin(Campaign, Campaign.id == AssignmentRow.campaign_id)
        .where(AssignmentRow.state.in_(_FINAL))
    )
