"""`GET /metrics` for Prometheus: the fleet, builds, campaigns and traffic as the database shows them, and this process.

Counted anew at each scrape by a few aggregates; what devices measured is read for the last minutes only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec
from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from covey_contract.histogram import Histogram, merge
from covey_server.clock import Clock
from covey_server.core.engine import CampaignState
from covey_server.db.engine import Database
from covey_server.db.tables import AssignmentRow, Build, Campaign, Device, Reported, TelemetryRow, Version
from covey_server.fleet.counters import HELP, Counters
from covey_server.releases.upkeep import ReleasesCollector
from covey_server.services import Use

router = APIRouter(tags=["metrics"])

LATENCY_WINDOW_MS = 300_000
QUANTILES = (0.5, 0.95, 0.99)
# Newest windows that one scrape reads at most for the latencies.
MAX_WINDOWS = 20_000


@router.get("/metrics", include_in_schema=False)
def metrics(use: Use) -> Response:
    """Prometheus text. No authentication: it names models, versions and numbers, no devices."""
    registry = CollectorRegistry(auto_describe=False)
    ProcessCollector(registry=registry)
    registry.register(FleetCollector(use.database, use.clock, use.fleet.counters if use.fleet else None))
    if use.releases is not None:
        registry.register(ReleasesCollector(use.releases))
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


class FleetCollector(Collector):
    """All of Covey's own metrics."""

    def __init__(self, database: Database, clock: Clock, counters: Counters | None) -> None:
        self._database, self._clock, self._counters = database, clock, counters

    def collect(self) -> Iterable[Metric]:
        with self._database.reading() as session:
            yield from _devices(session)
            yield from _builds(session)
            yield from _campaigns(session)
            yield from _requests(session)
            yield _latency(session, self._clock())
        if self._counters is not None:
            yield from _counted(self._counters)


def _devices(session: Session) -> Iterator[Metric]:
    devices = GaugeMetricFamily(
        "covey_devices",
        "Enrolled devices, by firmware profile, connection, and whether they are simulated.",
        labels=["profile", "online", "simulated"],
    )
    groups = select(Device.profile, Device.online, Device.simulated, func.count()).where(Device.revoked_ms.is_(None))
    for profile, online, simulated, number in session.execute(
        groups.group_by(Device.profile, Device.online, Device.simulated)
    ):
        devices.add_metric([profile or "none", _word(online), _word(simulated)], number)
    yield devices
    running = GaugeMetricFamily(
        "covey_devices_running",
        "Devices by the model and version that they report as active.",
        labels=["model", "version"],
    )
    rows = session.execute(
        select(Reported.model, Version.name, func.count())
        .join(Build, Build.digest == Reported.active)
        .join(Version, Version.id == Build.version_id)
        .group_by(Reported.model, Version.name)
    )
    for model, version, number in rows:
        running.add_metric([model, version], number)
    yield running
    orders = GaugeMetricFamily(
        "covey_assignments", "Assignments ever issued, by kind and state.", labels=["kind", "state"]
    )
    for kind, state, number in session.execute(
        select(AssignmentRow.kind, AssignmentRow.state, func.count()).group_by(AssignmentRow.kind, AssignmentRow.state)
    ):
        orders.add_metric([kind, state], number)
    yield orders


def _builds(session: Session) -> Iterator[Metric]:
    builds = GaugeMetricFamily("covey_builds", "Builds, by target and state.", labels=["target", "state"])
    queue = 0
    for target, state, number in session.execute(
        select(Build.target, Build.state, func.count()).group_by(Build.target, Build.state)
    ):
        builds.add_metric([target, state], number)
        queue += number if state == "queued" else 0
    yield builds
    yield GaugeMetricFamily("covey_build_queue_length", "Builds that wait for a worker.", value=queue)


def _campaigns(session: Session) -> Iterator[Metric]:
    campaigns = GaugeMetricFamily("covey_campaigns", "Campaigns, by state.", labels=["state"])
    rows = session.execute(select(Campaign.state, func.count()).group_by(Campaign.state))
    found = {state: number for state, number in rows}  # noqa: C416 - a row is not the pair that dict() is typed for
    for state in CampaignState:
        campaigns.add_metric([state.value], found.get(state.value, 0))
    yield campaigns


def _requests(session: Session) -> Iterator[Metric]:
    rows = session.execute(
        select(
            TelemetryRow.model,
            TelemetryRow.version,
            func.sum(TelemetryRow.ok),
            func.sum(TelemetryRow.failed),
            func.sum(TelemetryRow.fallbacks),
        ).group_by(TelemetryRow.model, TelemetryRow.version)
    ).all()
    words = "by model and version, as far back as telemetry is kept"
    labels = ["model", "version"]
    requests = CounterMetricFamily(
        "covey_inference_requests", f"Requests that devices answered, {words}.", labels=labels
    )
    errors = CounterMetricFamily(
        "covey_inference_errors", f"Requests that failed for their caller, {words}.", labels=labels
    )
    fallbacks = CounterMetricFamily(
        "covey_inference_fallbacks",
        f"Requests that a new build failed and the previous one answered, {words}.",
        labels=labels,
    )
    for model, version, ok, failed, fell_back in rows:
        requests.add_metric([model, version], ok + failed)
        errors.add_metric([model, version], failed)
        fallbacks.add_metric([model, version], fell_back)
    yield from (requests, errors, fallbacks)


def _latency(session: Session, now_ms: int) -> Metric:
    """A summary over the last minutes. Build by build, since that is how telemetry is found quickly."""
    summary = Metric(
        "covey_inference_latency_seconds",
        f"End-to-end latency on the devices over the last {LATENCY_WINDOW_MS // 1000} s, by model and version.",
        "summary",
    )
    active = select(Reported.active).where(Reported.active.is_not(None)).distinct()
    rows = session.execute(
        select(TelemetryRow.model, TelemetryRow.version, TelemetryRow.histograms["end_to_end"])
        .where(TelemetryRow.build.in_(active), TelemetryRow.end_ms > now_ms - LATENCY_WINDOW_MS)
        .order_by(TelemetryRow.end_ms.desc())
        .limit(MAX_WINDOWS)
    )
    windows: dict[tuple[str, str], list[Histogram]] = {}
    for model, version, latency in rows:
        if latency:
            windows.setdefault((model, version), []).append(msgspec.convert(latency, Histogram))
    for (model, version), histograms in sorted(windows.items()):
        merged = merge(histograms)
        labels = {"model": model, "version": version}
        for quantile in QUANTILES:
            summary.add_sample(summary.name, {**labels, "quantile": str(quantile)}, merged.quantile(quantile))
        summary.add_sample(f"{summary.name}_sum", labels, merged.sum)
        summary.add_sample(f"{summary.name}_count", labels, merged.count)
    return summary


def _counted(counters: Counters) -> Iterator[Metric]:
    """The fleet service's own counters: delivery, messages, enrolments."""
    families = {name: Metric(name.removesuffix("_total"), text, "counter") for name, text in HELP.items()}
    for sample in counters.snapshot():
        families[sample.name].add_sample(sample.name, sample.labels, sample.value)
    return iter(families.values())


def _word(value: bool) -> str:
    return "true" if value else "false"
