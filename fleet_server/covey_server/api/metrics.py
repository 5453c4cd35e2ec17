"""`GET /metrics` for Prometheus."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from covey_server.metrics.exporter import Exporter
from covey_server.releases.upkeep import ReleasesCollector
from covey_server.services import Services, Use

router = APIRouter(tags=["metrics"])


@router.get("/metrics", include_in_schema=False)
def metrics(request: Request, use: Use) -> Response:
    """Prometheus text. No authentication: it names models, versions, campaigns and numbers, no devices and no people."""
    found = getattr(request.app.state, "exporter", None)
    if not isinstance(found, Exporter):
        found = request.app.state.exporter = _exporter(use)
    return Response(found.text(), media_type=CONTENT_TYPE_LATEST)


def _exporter(use: Services) -> Exporter:
    more: list[Collector] = [] if use.releases is None else [ReleasesCollector(use.releases)]
    fleet = use.fleet
    return Exporter(
        use.database,
        use.clock,
        None if fleet is None else fleet.counters,
        None if fleet is None else fleet.traffic,
        more,
    )
