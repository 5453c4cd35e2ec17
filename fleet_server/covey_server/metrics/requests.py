"""What devices answer, how fast, and how their swaps end. Names come from the server's own tables, never from devices."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from sqlalchemy import select
from sqlalchemy.orm import Session

from covey_server.db.tables import Build, Version
from covey_server.fleet.sql import chunks
from covey_server.fleet.traffic import BOUNDS, Totals, Traffic

# Versions that are told apart; of more, those that have answered most.
MAX_VERSIONS = 200
UNKNOWN = ("unknown", "unknown")
_LABELS = ["model", "version"]
_LE = [*(format(bound, ".6g") for bound in BOUNDS), "+Inf"]


def collect(session: Session, traffic: Traffic) -> Iterator[Metric]:
    answered = CounterMetricFamily(
        "covey_inference_requests", "Requests that devices answered, since this server started.", labels=_LABELS
    )
    failed = CounterMetricFamily(
        "covey_inference_errors", "Those of them that failed for their caller.", labels=_LABELS
    )
    fallbacks = CounterMetricFamily(
        "covey_inference_fallbacks",
        "Those of them that a new build failed and the previous one answered.",
        labels=_LABELS,
    )
    latency = HistogramMetricFamily(
        "covey_inference_latency_seconds",
        "From a request's arrival on its device to its answer, since this server started.",
        labels=_LABELS,
    )
    for (model, version), totals in by_version(session, traffic.totals()).items():
        names = [model, version]
        answered.add_metric(names, totals.ok + totals.failed)
        failed.add_metric(names, totals.failed)
        fallbacks.add_metric(names, totals.fallbacks)
        latency.add_metric(names, list(zip(_LE, accumulate(totals.buckets), strict=True)), totals.seconds)
    yield from (answered, failed, fallbacks, latency)
    swaps = CounterMetricFamily(
        "covey_swaps",
        "Deployments that ended on a device, by model and how (active: swapped), since this server started.",
        labels=["model", "outcome"],
    )
    for (model, state), number in sorted(traffic.swaps().items()):
        swaps.add_metric([model, state], number)
    yield swaps


def by_version(session: Session, builds: dict[str, Totals]) -> dict[tuple[str, str], Totals]:
    """The totals of all builds of each version; builds that are not the server's are `UNKNOWN`."""
    names: dict[str, tuple[str, str]] = {}
    for part in chunks(sorted(builds)):
        rows = session.execute(
            select(Build.digest, Version.model, Version.name)
            .join(Version, Version.id == Build.version_id)
            .where(Build.digest.in_(part))
        )
        names.update({digest: (model, version) for digest, model, version in rows if digest is not None})
    summed: dict[tuple[str, str], Totals] = {}
    for digest, totals in builds.items():
        summed.setdefault(names.get(digest, UNKNOWN), Totals()).add(totals)
    busiest = sorted(summed, key=lambda name: summed[name].ok + summed[name].failed, reverse=True)[:MAX_VERSIONS]
    return {name: summed[name] for name in sorted(busiest)}
