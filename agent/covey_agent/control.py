"""The control loop: one thread that takes one event after the other and is the only one to decide anything.

Events come from the MQTT link, from jobs and from time. What it does with them is elsewhere (deployments, serving, commands);
here is the order in which it happens. Whatever arrives, however hostile, the loop goes on.
"""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from covey_agent import __version__, durable
from covey_agent.asks import AskFolder
from covey_agent.book import Book
from covey_agent.commands import Commands
from covey_agent.core.acceptance import Machine
from covey_agent.core.state import status_of
from covey_agent.core.telemetry import records
from covey_agent.deployments import Deployments
from covey_agent.errors import GatewayError, StepError
from covey_agent.gateway_process import GatewayProcess
from covey_agent.gateway_watch import GatewayWatch
from covey_agent.jobs import Finished
from covey_agent.link import Arrived, Connected, Disconnected, LinkEvent
from covey_agent.measure import Meter
from covey_agent.outbox import Outbox
from covey_agent.renewal import Renewal
from covey_agent.renewal_relay import RenewalRelay
from covey_agent.serving import Serving
from covey_agent.settings import Settings
from covey_agent.supervisor import Supervisor
from covey_agent.tap import Tap
from covey_agent.trusted_clock import TrustedClock
from covey_agent.tuf.relay import Relay
from covey_contract.blocks import decode_block
from covey_contract.enrolment import RenewReply
from covey_contract.errors import ContractError
from covey_contract.messages import Ack, Broadcast, Hello, MetadataPart, Status, Telemetry
from covey_contract.reasons import Reason
from covey_contract.topics import Down, Up, is_broadcast, parse_down
from covey_contract.wire import Message, decode

log = logging.getLogger(__name__)

# A block is 64 KiB: as many events as make 16 MB at most.
INBOX = 256


class Speaker(Protocol):
    """The one thing that the loop wants of the link."""

    def send(self, what: Up, message: Message, qos: int = 1) -> bool: ...

    def send_bytes(self, what: Up, body: bytes, qos: int = 1) -> bool: ...


class GatewayGone:
    """The gateway's process has ended."""


class Inbox:
    """Where other threads put events. Those of the link are dropped when it is full, those of our own jobs never."""

    def __init__(self) -> None:
        self._queue: queue.Queue[LinkEvent | Finished | GatewayGone] = queue.Queue()

    def offer(self, event: LinkEvent) -> bool:
        if isinstance(event, Arrived) and self._queue.qsize() >= INBOX:
            return False
        self._queue.put(event)
        return True

    def finished(self, event: Finished) -> None:
        self._queue.put(event)

    def gateway_gone(self) -> None:
        self._queue.put(GatewayGone())

    def take(self, timeout_s: float) -> LinkEvent | Finished | GatewayGone | None:
        try:
            return self._queue.get(timeout=max(0.0, timeout_s))
        except queue.Empty:
            return None


class Control:
    """`run` until `stop` is called."""

    def __init__(
        self,
        device: str,
        settings: Settings,
        *,
        boot_id: str,
        last_exit: Reason,
        inbox: Inbox,
        link: Speaker,
        book: Book,
        outbox: Outbox,
        gateway: GatewayProcess,
        serving: Serving,
        deployments: Deployments,
        commands: Commands,
        machine: Callable[[], Machine],
        meter: Meter,
        supervisor: Supervisor,
        asks: AskFolder,
        clock: TrustedClock,
        relay: Relay,
        renewal: Renewal,
        renewal_relay: RenewalRelay,
        tap: Tap,
    ) -> None:
        self._device = device
        self._tap = tap
        self._settings = settings
        self._boot_id = boot_id
        self._last_exit = last_exit
        self._inbox = inbox
        self._link = link
        self._book = book
        self._outbox = outbox
        self._gateway = gateway
        self._serving = serving
        self._deployments = deployments
        self._commands = commands
        self._machine = machine
        self._meter = meter
        self._supervisor = supervisor
        self._asks = asks
        self._clock = clock
        self._watch = GatewayWatch(inbox.gateway_gone)
        self._relay = relay
        self._renewal = renewal
        self._renewal_relay = renewal_relay
        self._connected = False
        self._stopping = False
        self._next_poll = 0.0
        self._next_heartbeat = 0.0
        self._next_telemetry = 0.0
        self._next_outbox = 0.0

    def stop(self) -> None:
        """May be called from a signal handler."""
        self._stopping = True

    def run(self) -> None:
        self._next_telemetry = time.monotonic() + self._settings.telemetry_interval_s
        self._renewal.start(time.monotonic())
        self._tell_state()
        if self._last_exit not in (Reason.STARTED, Reason.STOPPED):
            self._deployments.tell_again(self._outbox.newest_reports())
        self._supervisor.ready()
        while not self._stopping:
            now = time.monotonic()
            self._supervisor.alive(now)
            due = min(self._next_poll, self._next_heartbeat, self._next_telemetry, self._next_outbox)
            event = self._inbox.take(min(due - now, 1.0))
            try:
                self._handle(event, time.monotonic())
                self._timers(time.monotonic())
            except Exception:  # the seam that keeps the device alive: reported, and on with the next event
                log.exception("an event could not be handled")
                time.sleep(0.2)  # never a hot loop, whatever is wrong

    def _handle(self, event: LinkEvent | Finished | GatewayGone | None, now: float) -> None:
        if isinstance(event, Arrived):
            self._arrived(event, now)
        elif isinstance(event, Finished):
            self._deployments.finished(event)
            self._next_poll = now
        elif isinstance(event, GatewayGone):
            self._next_poll = now
        elif isinstance(event, Connected):
            self._connected = True
            self._renewal.connected(now, trial=event.trial, refused=event.refused)
            self._link.send(Up.TIME, self._clock.ask(), qos=0)
            self._hello()
            self._outbox.connected()
            self._next_heartbeat = now + self._settings.heartbeat_s
            self._next_outbox = self._next_poll = now
            self._tell_state()
        elif isinstance(event, Disconnected):
            self._connected = False
            self._tell_state()

    def _arrived(self, event: Arrived, now: float) -> None:
        try:
            what = parse_down(event.topic)
            if what is Down.BLOCK:
                self._deployments.block(decode_block(event.payload), broadcast=is_broadcast(event.topic))
            elif what is Down.BROADCAST:
                self._deployments.broadcast(decode(Broadcast, event.payload))
            elif what is Down.ASSIGNMENT:
                self._deployments.order(event.payload)
                self._next_poll = now
            elif what is Down.ACK:
                self._outbox.acknowledged(decode(Ack, event.payload).seqs)
            elif what is Down.TIME:
                self._clock.heard(event.payload, self._deployments.directors)
            elif what is Down.METADATA:
                self._relay.take(decode(MetadataPart, event.payload))
            elif what is Down.RENEWAL:
                self._renewal_relay.take(decode(RenewReply, event.payload))
            elif what is Down.COMMAND and (reply := self._commands.answer(event.payload)) is not None:
                self._link.send(Up.REPLY, reply)
        except ContractError as error:
            log.warning("a message on %s is ignored: %s", event.topic[:120], error)

    def _timers(self, now: float) -> None:
        if now >= self._next_poll:
            self._serving.seen(self._gateway.poll(now))
            self._watch.follow(self._gateway.pid)
            self._asks.look(self._clock() / 1000)
            self._deployments.tick(now, connected=self._connected)
            self._renewal.tick(now)
            self._next_poll = now + self._pause_s()
        if now >= self._next_telemetry:
            self._next_telemetry = now + self._settings.telemetry_interval_s
            self._measure(now)
        if now >= self._next_heartbeat:
            self._next_heartbeat = now + self._settings.heartbeat_s
            self._link.send(Up.STATUS, Status(boot_id=self._boot_id, online=True, time_ms=self._clock()))
        if now >= self._next_outbox:
            self._next_outbox = now + 1.0
            self.send_spooled(now)

    def _pause_s(self) -> float:
        """Until the next look at the gateway."""
        if self._serving.status is None:
            return self._settings.poll_starting_s
        return self._settings.poll_busy_s if self._deployments.busy else self._settings.poll_idle_s

    def spool(self, record: Any) -> None:
        """A report or telemetry: on disk, and on its way as soon as may be."""
        self._outbox.add(record)
        self._next_outbox = 0.0

    def send_spooled(self, now: float) -> None:
        self._outbox.flush()
        if not self._connected:
            return
        for record in self._outbox.due(now):
            if not self._link.send_bytes(record.kind, record.body):
                return

    def _hello(self) -> None:
        last_seq = self._outbox.last_seq()  # before the state, which must not be older than it
        state = self._book.state
        facts = self._machine().facts
        certificate = self._renewal.certificate
        hello = Hello(
            boot_id=self._boot_id,
            agent_version=__version__,
            facts_digest=facts.digest(),
            time_ms=self._clock(),
            last_counter=state.counter,
            last_seq=last_seq,
            models=tuple(status_of(model, record) for model, record in sorted(state.models.items())),
            last_exit=self._last_exit,
            simulated=facts.simulated,
            certificate_ends_ms=certificate.ends_ms if certificate is not None else None,
        )
        self._link.send(Up.HELLO, hello)

    def _measure(self, now: float) -> None:
        collected = None
        if self._serving.status is not None:
            try:
                collected = self._gateway.client.collect()
            except (GatewayError, StepError) as error:
                log.warning("nothing could be collected from the gateway: %s", error)
        end_ms = self._clock()
        start_ms = collected.start_ms if collected else end_ms - int(self._settings.telemetry_interval_s * 1000)
        telemetry = Telemetry(
            seq=0,
            boot_id=self._boot_id,
            start_ms=start_ms,
            end_ms=collected.end_ms if collected else end_ms,
            windows=collected.windows if collected else (),
            resources=self._meter.read(now, self._gateway.pid, collected),
        )
        for record in records(telemetry):
            self.spool(record)
            self._tap.tell(record)

    def _tell_state(self) -> None:
        """For `covey-agent status`, which cannot ask this process."""
        self._supervisor.status("connected" if self._connected else "offline")
        told = {"connected": self._connected, "since_ms": self._clock(), "boot_id": self._boot_id}
        try:
            durable.write(self._settings.state / "control.json", msgspec.json.encode(told))
        except OSError as error:
            log.warning("control.json could not be written: %s", error)
