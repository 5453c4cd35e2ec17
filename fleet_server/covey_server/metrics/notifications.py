"""Telling others, and the audit log's length."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from covey_server.db.tables import AuditEntry, Delivery, Notice, Webhook
from covey_server.notifications.outbox import PENDING, STATES


def collect(session: Session, now_ms: int) -> Iterator[Metric]:
    deliveries = GaugeMetricFamily(
        "covey_deliveries",
        "Deliveries of notices that are kept, by how they go and their state (dead: given up).",
        labels=["by", "state"],
    )
    by_mail = Delivery.webhook_id.is_(None)
    rows = session.execute(select(by_mail, Delivery.state, func.count()).group_by(by_mail, Delivery.state))
    found = {(bool(mailed), state): number for mailed, state, number in rows}
    for mailed, name in ((False, "webhook"), (True, "mail")):
        for state in STATES:
            deliveries.add_metric([name, state], found.get((mailed, state), 0))
    yield deliveries
    oldest = session.scalar(
        select(func.min(Notice.at_ms)).join(Delivery, Delivery.notice_id == Notice.id).where(Delivery.state == PENDING)
    )
    yield GaugeMetricFamily(
        "covey_delivery_oldest_seconds",
        "How long ago the oldest event happened that is still to be delivered; 0: there is none.",
        value=0.0 if oldest is None else max(0.0, (now_ms - oldest) / 1000),
    )
    off = session.scalar(select(func.count()).select_from(Webhook).where(Webhook.disabled_ms.is_not(None)))
    yield GaugeMetricFamily("covey_webhooks_disabled", "Webhooks that are disabled.", value=off or 0)
    entries = session.scalar(select(func.max(AuditEntry.id))) or 0
    yield CounterMetricFamily("covey_audit_entries", "Entries of the audit log.", value=entries)
