"""All of Covey's metrics, put together at a scrape, and kept for the next one if that comes soon.

Counts over whole tables are set-based, and are made anew only after `FRESH_S` seconds, or after twenty times as long as making
them took: so whoever scrapes, and however often and of however large a fleet, has a twentieth of one thread at most.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import InfoMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy.orm import Session

from covey_server import __version__
from covey_server.clock import Clock
from covey_server.db.engine import Database
from covey_server.fleet.counters import HELP, Counters
from covey_server.fleet.traffic import Traffic
from covey_server.metrics import builds, campaigns, devices, notifications, requests

FRESH_S = 5.0
_SHARE = 20.0


class Exporter:
    """Renders the text; thread-safe. `more` are the collectors of other parts of the server."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        counters: Counters | None,
        traffic: Traffic | None,
        more: Iterable[Collector] = (),
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self._registry)
        self._registry.register(_FleetCollector(database, clock, counters, traffic))
        for collector in more:
            self._registry.register(collector)
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._text = b""
        self._good_until = 0.0

    def text(self) -> bytes:
        """In Prometheus' text format."""
        with self._lock:  # whoever comes while it is being made has the same
            began = self._monotonic()
            if not self._text or began >= self._good_until:
                self._text = generate_latest(self._registry)
                took = self._monotonic() - began
                self._good_until = began + took + max(FRESH_S, _SHARE * took)
            return self._text


class _FleetCollector(Collector):
    def __init__(self, database: Database, clock: Clock, counters: Counters | None, traffic: Traffic | None) -> None:
        self._database, self._clock, self._counters, self._traffic = database, clock, counters, traffic
        self._told = campaigns.EventCounts()

    def collect(self) -> Iterator[Metric]:
        yield InfoMetricFamily("covey_server", "This server.", value={"version": __version__})
        with self._database.reading() as session:
            yield from self._of_database(session, self._clock())
        if self._counters is not None:
            yield from _counted(self._counters)

    def _of_database(self, session: Session, now_ms: int) -> Iterator[Metric]:
        yield from devices.collect(session, now_ms)
        yield from builds.collect(session, now_ms)
        yield from campaigns.collect(session)
        yield self._told.collect(session)
        yield from notifications.collect(session, now_ms)
        if self._traffic is not None:
            yield from requests.collect(session, self._traffic)


def _counted(counters: Counters) -> Iterator[Metric]:
    """The fleet service's own counters: delivery, messages, enrolments."""
    families = {name: Metric(name.removesuffix("_total"), text, "counter") for name, text in HELP.items()}
    for sample in counters.snapshot():
        families[sample.name].add_sample(sample.name, sample.labels, sample.value)
    return iter(families.values())
