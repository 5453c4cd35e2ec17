"""Forgetting: telemetry and reports older than they are kept, a slice at a time so that no write is long."""

from __future__ import annotations

from sqlalchemy import delete, select, tuple_

from covey_server.db.engine import Database
from covey_server.db.tables import ReportRow, TelemetryRow

_SLICE = 2000


def prune(database: Database, *, telemetry_before_ms: int, reports_before_ms: int) -> int:
    """Delete at most a slice of each; returns how many rows went."""
    gone = 0
    with database.session() as session:
        old = select(TelemetryRow.device, TelemetryRow.seq, TelemetryRow.part)
        old = old.where(TelemetryRow.received_ms < telemetry_before_ms).limit(_SLICE)
        keys = [tuple(row) for row in session.execute(old)]
        if keys:
            columns = tuple_(TelemetryRow.device, TelemetryRow.seq, TelemetryRow.part)
            session.execute(delete(TelemetryRow).where(columns.in_(keys)).execution_options(synchronize_session=False))
            gone += len(keys)
        stale = select(ReportRow.device, ReportRow.seq).where(ReportRow.received_ms < reports_before_ms).limit(_SLICE)
        pairs = [tuple(row) for row in session.execute(stale)]
        if pairs:
            columns2 = tuple_(ReportRow.device, ReportRow.seq)
            session.execute(delete(ReportRow).where(columns2.in_(pairs)).execution_options(synchronize_session=False))
            gone += len(pairs)
    return gone
