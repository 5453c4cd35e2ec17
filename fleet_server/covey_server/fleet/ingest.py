"""The thread that stores what devices say: many messages a transaction, acknowledged only once they are committed.

A device keeps a report or a telemetry record until it is acknowledged, so a batch that cannot be stored is not lost.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from covey_contract.facts import Facts
from covey_contract.messages import Ack, CommandKind, Hello, Reply
from covey_contract.topics import Down
from covey_contract.wire import encode
from covey_server import logs
from covey_server.bus import Bus
from covey_server.clock import Clock
from covey_server.db.engine import Database
from covey_server.fleet.counters import Counters
from covey_server.fleet.inbox import Incoming
from covey_server.fleet.precedence import Precedence
from covey_server.fleet.records import Outcome, store, store_facts
from covey_server.fleet.sql import chunks
from covey_server.fleet.traffic import Traffic

log = logging.getLogger(__name__)

# While more comes than can be stored, batches grow to this, and many words of one device cost little more than the last.
BATCH = 1000
BATCH_S = 0.05
_ACK_SEQS = 500


class Desk(Protocol):
    """Where replies go and facts are asked for."""

    def deliver(self, device: str, reply: Reply) -> None: ...

    def tell(self, device: str, kind: CommandKind) -> None: ...


class Greeter(Protocol):
    """What reconciliation wants to hear of."""

    def hello(self, device: str, hello: Hello) -> None: ...


class Ingest:
    """`profile_of` matches facts to a firmware profile and says why; `send` hands bytes to the link."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        bus: Bus,
        counters: Counters,
        traffic: Traffic,
        messages: queue.Queue[Incoming],
        send: Callable[[str, Down, bytes], bool],
        desk: Desk,
        greeter: Greeter,
        profile_of: Callable[[Facts], tuple[str | None, str]],
        precedence: Precedence,
    ) -> None:
        self._database = database
        self._clock = clock
        self._bus = bus
        self._counters = counters
        self._traffic = traffic
        self._messages = messages
        self._send = send
        self._desk = desk
        self._greeter = greeter
        self._profile_of = profile_of
        self._precedence = precedence
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, name="covey-ingest", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Returns when what is queued has been stored."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(10.0)

    def _run(self) -> None:
        while True:
            batch = self._next_batch()
            if batch:
                self._precedence.give_way()
                self.take(batch)
            elif self._stopping.is_set():
                return

    def _next_batch(self) -> list[Incoming]:
        try:
            batch = [self._messages.get(timeout=0.25)]
        except queue.Empty:
            return []
        deadline = time.monotonic() + BATCH_S
        while len(batch) < BATCH:
            try:
                batch.append(self._messages.get(timeout=max(0.0, deadline - time.monotonic())))
            except queue.Empty:
                break
        return batch

    def take(self, batch: Sequence[Incoming]) -> None:
        """Store, then tell. A batch that fails is tried in halves, so that one message never costs another."""
        try:
            with self._database.session() as session:
                outcome = store(session, batch, self._clock())
                for device, facts in outcome.facts:
                    store_facts(session, device, facts, *self._profile_of(facts))
        except Exception:  # the seam of this thread: it must outlive any message and any state of the disk
            if len(batch) > 1:
                log.warning("a batch of %d messages could not be stored; trying halves", len(batch), exc_info=True)
                half = len(batch) // 2
                self.take(batch[:half])
                self.take(batch[half:])
                return
            with logs.about(device=batch[0].device):
                log.exception("a %s of %s could not be stored", type(batch[0].message).__name__, batch[0].device)
            self._counters.add("covey_messages_refused_total", reason="not_stored")
            return
        self._counters.add("covey_ingest_batches_total")
        self._tell(outcome)

    def _tell(self, outcome: Outcome) -> None:
        for device, seqs in outcome.acks.items():
            for part in chunks(sorted(set(seqs)), _ACK_SEQS):
                self._send(device, Down.ACK, encode(Ack(seqs=tuple(part))))
        for device, hello in outcome.hellos.items():
            self._greeter.hello(device, hello)
        for device in outcome.facts_wanted:
            self._desk.tell(device, CommandKind.FACTS)
        for device, reply in outcome.replies:
            self._desk.deliver(device, reply)
        for topic, keys in (
            ("device", outcome.devices),
            ("assignment", outcome.assignments),
            ("telemetry", outcome.telemetry),
        ):
            for key in keys:
                self._bus.publish(topic, key)
        self._traffic.note_windows(outcome.windows)
        self._traffic.note_swaps(outcome.ended)
        for reason, number in (("unknown_device", outcome.ignored), ("foreign_assignment", outcome.foreign)):
            if number:
                self._counters.add("covey_messages_refused_total", number, reason=reason)
        if outcome.duplicates:
            self._counters.add("covey_messages_duplicate_total", outcome.duplicates)
