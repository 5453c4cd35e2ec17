"""Builds and the queue of them."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily, Metric
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from covey_server.db.tables import Build


def collect(session: Session, now_ms: int) -> Iterator[Metric]:
    builds = GaugeMetricFamily("covey_builds", "Builds, by target and state.", labels=["target", "state"])
    queue = 0
    for target, state, number in session.execute(
        select(Build.target, Build.state, func.count()).group_by(Build.target, Build.state)
    ):
        builds.add_metric([target, state], number)
        queue += number if state == "queued" else 0
    yield builds
    yield GaugeMetricFamily("covey_build_queue_length", "Builds that wait for a worker.", value=queue)
    # Those for which no builder has come yet wait for hardware, and are no sign of trouble.
    oldest = session.scalar(select(func.min(Build.created_ms)).where(Build.state == "queued", Build.waiting_for == ""))
    yield GaugeMetricFamily(
        "covey_build_queue_oldest_seconds",
        "How long the oldest build has waited that a worker could do; 0: there is none.",
        value=0.0 if oldest is None else max(0.0, (now_ms - oldest) / 1000),
    )
