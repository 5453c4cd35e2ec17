"""Signs anew before anything expires, and raises the alarm where it cannot: in the log, as a metric, and in the server's health."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy.exc import SQLAlchemyError

from covey_server.errors import ServerError
from covey_server.releases.catch_up import CatchUp
from covey_server.releases.policy import TIME_FORMAT
from covey_server.releases.releases import Releases

log = logging.getLogger(__name__)

_EVERY_S = 60.0
_ALARM_EVERY_MS = 3600_000
_PRUNE_EVERY_MS = 3600_000


class Upkeep:
    """A thread between `start` and `stop`."""

    def __init__(self, releases: Releases, catch_up: CatchUp | None = None, every_s: float = _EVERY_S) -> None:
        self._releases = releases
        self._catch_up = catch_up
        self._every_s = every_s
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._alarmed_ms: dict[str, int] = {}
        self._pruned_ms = 0

    def start(self) -> None:
        """The first round is done before anything else of the server begins: it may have been off for weeks."""
        self._ended.clear()
        self._round()
        self._thread = threading.Thread(target=self._run, name="releases-upkeep", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def tick(self) -> None:
        """One round."""
        renewed = self._releases.renew()
        if self._catch_up is not None and (number := self._catch_up.run()):
            log.info("released %d builds that were not released yet", number)
        if renewed:
            log.info("signed anew: %s", ", ".join(renewed[:8]) + (" …" if len(renewed) > 8 else ""))
        now_ms = int(self._releases.now().timestamp() * 1000)
        for row in self._releases.status():
            if row.alarm and now_ms - self._alarmed_ms.get(row.role, 0) >= _ALARM_EVERY_MS:
                self._alarmed_ms[row.role] = now_ms
                words = "has expired, and devices accept no release" if row.expired else "expires"
                hint = "its keys are not on this server: `covey-server keys renew --help`"
                log.error(
                    "ALARM: the metadata of %s %s (%s); %s", row.role, words, row.expires.strftime(TIME_FORMAT), hint
                )
        if now_ms - self._pruned_ms >= _PRUNE_EVERY_MS:
            self._pruned_ms = now_ms
            self._releases.prune()

    def _run(self) -> None:
        while not self._ended.wait(self._every_s):
            self._round()

    def _round(self) -> None:
        try:
            self.tick()
        except (ServerError, OSError, SQLAlchemyError) as error:
            log.error("the metadata of releases cannot be kept fresh: %s; trying again", error)


class ReleasesCollector(Collector):
    """For Prometheus: when each role's metadata expires."""

    def __init__(self, releases: Releases) -> None:
        self._releases = releases

    def collect(self) -> Iterator[Metric]:
        expires = GaugeMetricFamily(
            "covey_release_metadata_expires_timestamp_seconds",
            "When the metadata of a role of the repository of releases expires, as Unix time; a publisher's with its bins.",
            labels=["role"],
        )
        alarm = GaugeMetricFamily(
            "covey_release_metadata_alarm", "1 if it should have been signed anew long ago.", labels=["role"]
        )
        for row in self._releases.status():
            role = "~".join(row.role.split("~")[:2])
            expires.add_metric([role], row.expires.timestamp())
            alarm.add_metric([role], float(row.alarm))
        yield expires
        yield alarm
