"""The registry's own tick: leases that expired are given back although no worker asks, and old console sessions are forgotten."""

from __future__ import annotations

import logging
import threading

from sqlalchemy import delete, select
from sqlalchemy.exc import SQLAlchemyError

from covey_server.bus import Bus
from covey_server.clock import Clock
from covey_server.db.engine import Database
from covey_server.db.tables import ConsoleSession
from covey_server.errors import ServerError
from covey_server.registry import builds

log = logging.getLogger(__name__)
_EVERY_S = 5.0


class Housekeeping:
    """A thread between `start` and `stop`."""

    def __init__(self, database: Database, clock: Clock, bus: Bus, attempts: int) -> None:
        self._database = database
        self._clock = clock
        self._bus = bus
        self._attempts = attempts
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._ended.clear()
        self._thread = threading.Thread(target=self._run, name="housekeeping", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def tick(self) -> None:
        """One round; writes only if there is something to do."""
        now_ms = self._clock()
        with self._database.reading() as session:
            expired = builds.any_expired(session, now_ms)
            old = session.scalar(select(ConsoleSession.kind).where(ConsoleSession.expires_ms <= now_ms).limit(1))
        if expired:
            with self._database.session() as session:
                changed = builds.release_expired(session, self._attempts, now_ms)
            for build_id in changed:
                log.warning("the lease on build %d expired", build_id)
                self._bus.publish("build", str(build_id))
        if old is not None:
            with self._database.session() as session:
                session.execute(delete(ConsoleSession).where(ConsoleSession.expires_ms <= now_ms))

    def _run(self) -> None:
        while not self._ended.wait(_EVERY_S):
            try:
                self.tick()
            except (SQLAlchemyError, ServerError) as error:
                # The next round tries again; the database may only be away for a moment.
                log.error("housekeeping: %s", error)
