"""The fleet's side of the server: broker, link, ingest, reconciliation, delivery, commands, wired and run together.

It starts what it needs and stops it in the opposite order. Everything it knows is in the database; it may be killed at any time.
"""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from covey_contract.enrolment import Broker as BrokerAddress
from covey_contract.enrolment import EnrolRequest, EnrolResponse, RenewRequest
from covey_contract.facts import Facts
from covey_contract.messages import CommandKind, Offer, Reply
from covey_contract.samples import SampleQuestion
from covey_contract.topics import Down
from covey_profiles import load_profiles, match
from covey_server.audit import Actor, record
from covey_server.bus import Bus
from covey_server.clock import Clock
from covey_server.db.engine import Database
from covey_server.db.tables import Device
from covey_server.deltas.desk import Deltas
from covey_server.errors import ServerError, StartError, TooMany
from covey_server.fleet import certificates, enrolment, renewal
from covey_server.fleet.amqtt_broker import TrialBroker
from covey_server.fleet.broadcasts import BroadcastLimits, Broadcasts
from covey_server.fleet.broker import Broker, ExternalBroker, MosquittoBroker, Revocations, broker_hosts, find_mosquitto
from covey_server.fleet.bundles import SignedOrder
from covey_server.fleet.ca import FleetCA
from covey_server.fleet.commands import CommandDesk
from covey_server.fleet.counters import Counters
from covey_server.fleet.delivery import Delivery, DeliveryLimits, Sending
from covey_server.fleet.enrolment import Enrolled
from covey_server.fleet.factory import Factories
from covey_server.fleet.inbox import Incoming
from covey_server.fleet.ingest import Ingest
from covey_server.fleet.link import FleetLink
from covey_server.fleet.mosquitto_config import Layout
from covey_server.fleet.pacing import Gate
from covey_server.fleet.precedence import Precedence
from covey_server.fleet.questions import Questions
from covey_server.fleet.reconcile import Reconciler
from covey_server.fleet.renewal import Renewed, Waits
from covey_server.fleet.renewal_desk import RenewalDesk
from covey_server.fleet.retention import prune
from covey_server.fleet.tickets import Tickets
from covey_server.fleet.traffic import Traffic
from covey_server.registry.blobs import BlobStore
from covey_server.registry.keys import SigningKeys
from covey_server.releases.answers import Answers
from covey_server.releases.releases import Releases
from covey_server.samples.desk import SampleDesk
from covey_server.samples.shelf import SampleShelf
from covey_server.settings import Settings

log = logging.getLogger(__name__)

_MESSAGES = 20_000
_BLOCK_REQUESTS = 4_000
_QUESTIONS = 20_000
_RENEWALS = 1_000
_LINK_S = 15.0
_CRL_EVERY_MS = 12 * 3600 * 1000
_PRUNE_EVERY_MS = 60_000
_DAY_MS = 86_400_000


@dataclass(frozen=True)
class FleetHealth:
    broker: bool  # the broker runs
    link: bool  # the server has a session
    queued: int  # messages waiting to be stored

    @property
    def ready(self) -> bool:
        return self.broker and self.link


def profile_of(facts: Facts) -> tuple[str | None, str]:
    """The firmware profile of these facts, and why that or why none."""
    found = match(facts, load_profiles())
    return (None if found.profile is None else found.profile.id), found.reason


class FleetService:
    """`start` and `stop` once each; the rest from any thread."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        clock: Clock,
        bus: Bus,
        keys: SigningKeys,
        blobs: BlobStore,
        ca: FleetCA,
        profile_of: Callable[[Facts], tuple[str | None, str]] = profile_of,
        releases: Releases | None = None,
    ) -> None:
        self.settings = settings
        self.ca = ca
        self.counters = Counters()
        self.traffic = Traffic()
        self.precedence = Precedence()
        self.tickets = Tickets.load_or_create(
            settings.data / "keys" / "delivery.key", clock, settings.delivery_ticket_s
        )
        self._database = database
        self._clock = clock
        self._bus = bus
        self._keys = keys
        self._blobs = blobs
        self._profile_of = profile_of
        self._releases = releases
        self._messages: queue.Queue[Incoming] = queue.Queue(_MESSAGES)
        self._block_requests: queue.Queue[Incoming] = queue.Queue(_BLOCK_REQUESTS)
        self._asked: queue.Queue[Incoming] = queue.Queue(_QUESTIONS)
        self._renewals: queue.Queue[Incoming] = queue.Queue(_RENEWALS)
        self._broker: Broker | None = None
        self._link: FleetLink | None = None
        self._gate = Gate(settings.enrol_per_minute)
        self._factories = Factories.load(settings.bootstrap_ca)
        self._crl_ms = 0
        self._pruned_ms = 0
        self._warned_ms = 0
        self.commands = CommandDesk(keys, clock, self._send)
        self._reconciler = Reconciler(
            database,
            clock,
            bus,
            self.counters,
            keys,
            self._send,
            heartbeat_timeout_s=settings.heartbeat_timeout_s,
            tick_s=settings.fleet_tick_s,
            maintain=self._maintain,
            release_again=self._release_again,
            precedence=self.precedence,
            offer=self._offer,
        )
        self._ingest = Ingest(
            database,
            clock,
            bus,
            self.counters,
            self.traffic,
            self._messages,
            self._send,
            self.commands,
            self._reconciler,
            profile_of,
            self.precedence,
        )
        answers = None if releases is None else Answers(releases)
        self._questions = Questions(self._asked, keys, answers, clock, self.counters, self._send)
        self._renewal_desk = RenewalDesk(
            self._renewals, self.come_back, self.counters, self._send, per_minute=settings.enrol_per_minute
        )
        limits = DeliveryLimits(
            settings.block_device_bytes_per_s, settings.block_total_bytes_per_s, settings.block_outstanding
        )
        broadcast = BroadcastLimits(
            from_devices=settings.broadcast_from,
            bytes_per_s=settings.broadcast_bytes_per_s,
            gather_s=settings.broadcast_gather_s,
        )
        self.deltas = Deltas(database, blobs, settings.data / "deltas")
        shelf = SampleShelf(
            *(database, settings.data / "samples", clock),
            max_bytes=settings.samples_max_bytes,
            keep_days=settings.samples_keep_days,
        )
        self.samples = SampleDesk(
            *(database, shelf, clock, bus, self._ask_samples, self.commands.give_up, settings.sample_fetch_max_bytes)
        )
        self._delivery = Delivery(
            *(database, blobs, self.counters, self._block_requests, self._send_block, limits),
            broadcasts=Broadcasts(broadcast),
            send_all=self._send_all,
            delta_of=self.deltas.of,
        )

    def start(self) -> None:
        """Raises `StartError` if there is no broker to talk to; then nothing of it runs."""
        now = self._clock()
        broker = self._make_broker()
        broker.start(self._revocations())
        self._crl_ms = now
        self._broker = broker
        self._link = FleetLink(
            broker.own_address,
            self.ca.ca_path,
            self.ca.listener_certificate(now),
            self.ca.sender_certificate(now),
            self._clock,
            self.counters,
            self._messages,
            self._block_requests,
            self._reconciler.wake,
            self._asked,
            self._renewals,
        )
        self._ingest.start()
        self._questions.start()
        self._renewal_desk.start()
        if self.settings.deltas:
            self.deltas.start()
        self._delivery.start()
        self.samples.start()
        self._reconciler.start()
        self._link.start()
        if not self._link.wait_connected(_LINK_S):
            self.stop()
            raise StartError("the server cannot open a session with its broker; see the broker's log")

    def stop(self) -> None:
        if self._link is not None:
            self._link.stop()
        self._reconciler.stop()
        self.samples.stop()
        self._delivery.stop()
        self._renewal_desk.stop()
        self._questions.stop()
        self.deltas.stop()
        self._ingest.stop()
        if self._broker is not None:
            self._broker.stop()

    def wake(self) -> None:
        """New assignments were committed: send them now."""
        self._reconciler.wake()

    def orders_of(self, devices: Sequence[str], model: str | None = None) -> list[SignedOrder]:
        """Signed, what these devices should do and have not done."""
        return self._reconciler.orders_of(devices, model)

    @property
    def broker(self) -> Broker:
        if self._broker is None:
            raise RuntimeError("the fleet service is not started")
        return self._broker

    @property
    def broker_address(self) -> BrokerAddress:
        """Where devices connect to; only after `start`."""
        return self.broker.address

    @property
    def ca_pem(self) -> str:
        return self.ca.ca_pem

    def health(self) -> FleetHealth:
        return FleetHealth(
            broker=self._broker is not None and self._broker.healthy(),
            link=self._link is not None and self._link.connected,
            queued=self._messages.qsize(),
        )

    def online_counts(self) -> dict[str, int]:
        """{"online": …, "offline": …} of the devices that are not revoked."""
        query = select(Device.online, func.count()).where(Device.revoked_ms.is_(None)).group_by(Device.online)
        with self._database.reading() as session:
            counts = {bool(row[0]): int(row[1]) for row in session.execute(query)}
        return {"online": counts.get(True, 0), "offline": counts.get(False, 0)}

    def admit(self, origin: str) -> None:
        """Raises `TooMany` if more enrolments are tried from this address than the setting `enrol_per_minute` allows."""
        if not self._gate.passes(origin, time.monotonic()):
            self.counters.add("covey_enrolments_total", outcome="too_many")
            raise TooMany("too many enrolments from this address; try again in a minute")

    def enrol(self, request: EnrolRequest, origin: str) -> EnrolResponse:
        """Raises as `enrolment.enrol` does."""
        now = self._clock()
        with self._database.session() as session:
            enrolled = enrolment.enrol(session, self.ca, request, self._profile_of, now, self.settings.certificate_days)
            actor = Actor(enrolled.device, "device", origin)
            record(session, actor, "device.enrol", enrolled.device, {"again": enrolled.again}, now)
        return self._welcome(enrolled)

    def factory_name(self, shown: x509.Certificate) -> str | None:
        """The device that a factory's certificate is for; None: it is no factory's that is trusted here."""
        return self._factories.name_of(shown)

    @property
    def trusted_clients(self) -> Path:
        """The authorities whose certificates HTTPS takes from devices, in PEM."""
        return self._factories.trusted_file(self.ca.ca_path)

    def enrol_known(self, name: str, request: EnrolRequest, origin: str) -> EnrolResponse | Waits:
        """By a factory's certificate for this name. Raises as `enrolment.enrol_known` does."""
        now, days = self._clock(), self.settings.certificate_days
        with self._database.session() as session:
            came = enrolment.enrol_known(session, self.ca, name, request, self._profile_of, origin, now, days)
            if isinstance(came, Enrolled):
                detail = {"again": came.again, "by": "factory"}
                record(session, Actor(name, "device", origin), "device.enrol", name, detail, now)
        if isinstance(came, Enrolled):
            return self._welcome(came)
        self._bus.publish("device", name)
        return came

    def _welcome(self, enrolled: Enrolled) -> EnrolResponse:
        """After the commit."""
        self.counters.add("covey_enrolments_total", outcome="again" if enrolled.again else "new")
        self._bus.publish("device", enrolled.device)
        if enrolled.again:
            self.apply_revocations()
        return EnrolResponse(
            device=enrolled.device,
            certificate_pem=enrolled.certificate.pem,
            ca_pem=self.ca.ca_pem,
            broker=self.broker_address,
            trust=self._keys.trust,
            root=self._releases.root_bytes() if self._releases is not None else b"",
        )

    def renew(self, held: x509.Certificate, csr_pem: str, name: str | None, origin: str) -> str:
        """A new certificate in PEM for whoever has shown the old one. Raises as `renewal.renew` does."""
        now = self._clock()
        with self._database.session() as session:
            renewed = renewal.renew(session, self.ca, held, csr_pem, name, now, self.settings.certificate_days)
            self._note_renewal(session, renewed, origin, now)
        return renewed.certificate.pem

    def come_back(self, request: RenewRequest, origin: str, speaker: str | None = None) -> Renewed | Waits:
        """A new certificate for whoever has signed with the key of an old one, or that an operator is to be asked. Raises as
        `renewal.come_back` does."""
        now, days = self._clock(), self.settings.certificate_days
        with self._database.session() as session:
            came = renewal.come_back(session, self.ca, request, origin, now, days, speaker)
            if isinstance(came, Renewed):
                self._note_renewal(session, came, origin, now)
        if isinstance(came, Renewed) or came.new:
            self._bus.publish("device", came.device)
        return came

    def _note_renewal(self, session: Session, renewed: Renewed, origin: str, now: int) -> None:
        detail = {} if renewed.approved_by is None else {"approved_by": renewed.approved_by}
        record(session, Actor(renewed.device, "device", origin), "device.renew", renewed.device, detail, now)
        self.counters.add("covey_enrolments_total", outcome="renewed")

    def apply_revocations(self) -> None:
        """Have the broker cut off whoever is revoked now. After the commit."""
        self.broker.apply(self._revocations())
        self._crl_ms = self._clock()

    def ask(self, device: str, kind: CommandKind, lines: int = 200) -> Reply | None:
        """The device's reply to a command, or None if none came within `command_wait_s`."""
        return self.commands.ask(device, kind, self.settings.command_wait_s, lines)

    def _ask_samples(self, device: str, question: SampleQuestion) -> Reply | None:
        return self.commands.ask(device, CommandKind.SAMPLES, self.settings.command_wait_s, samples=question)

    def _revocations(self) -> Revocations:
        with self._database.reading() as session:
            return enrolment.revocations(session, self.ca, self._clock())

    def _release_again(self, model: str, version: str) -> bool:
        """Give an old version the highest release counter of its model, so that devices may go back to it."""
        if self._releases is None:
            return False
        try:
            self._releases.release_again(model, version)
        except (ServerError, OSError) as error:
            log.error("%s %s cannot be released again: %s", model, version, error)
            return False
        return True

    def _send(self, device: str, what: Down, payload: bytes) -> bool:
        # An acknowledgement that is lost costs a duplicate; making sure of each would double the traffic of a busy fleet.
        qos = 0 if what is Down.ACK else 1
        return self._link is not None and self._link.send(device, what, payload, qos=qos) is not None

    def _send_block(self, device: str, payload: bytes) -> Sending | None:
        return None if self._link is None else self._link.send(device, Down.BLOCK, payload, qos=0)

    def _send_all(self, topic: str, payload: bytes, qos: int) -> Sending | None:
        return None if self._link is None else self._link.publish(topic, payload, qos)

    def _offer(self, build: str, base: str | None, devices: int, rate: float | None) -> Offer:
        """How that many devices, which run `base` and are told to run `build` now, may get its bytes."""
        settings = self.settings
        delta = self.deltas.between(base, build) if base is not None and settings.deltas else None
        if self._delivery.ordered(build if delta is None else delta.sha256, devices, rate):
            return Offer(broadcast=True, delta=delta)
        if not settings.delivery_url or self._delivery.size_of(build) < settings.delivery_https_from:
            return Offer(delta=delta)
        ours = settings.delivery_url.startswith("/")
        return Offer(url=settings.delivery_url, token=self.tickets.issue(build) if ours else "", delta=delta)

    def _maintain(self) -> None:
        """On every tick: a fresh revocation list before the old one expires, warning of certificates' ends, and forgetting."""
        now = self._clock()
        if now - self._crl_ms >= _CRL_EVERY_MS:
            self.apply_revocations()
        if now - self._warned_ms >= _DAY_MS:
            self._warned_ms = now
            with self._database.reading() as session:
                certificates.warn(session, now, certificates.warn_ms(self.settings.certificate_days))
        if now - self._pruned_ms >= _PRUNE_EVERY_MS:
            self._pruned_ms = now
            prune(
                self._database,
                telemetry_before_ms=now - self.settings.telemetry_keep_days * _DAY_MS,
                reports_before_ms=now - self.settings.reports_keep_days * _DAY_MS,
            )
            self.samples.shelf.prune()

    def _make_broker(self) -> Broker:
        settings = self.settings
        if settings.broker_url:
            return ExternalBroker(settings.broker_url)
        folder: Path = settings.data.resolve() / "broker"
        port = settings.broker_port or None
        program = find_mosquitto(settings.mosquitto or None)
        if program is None:
            if settings.mosquitto:
                raise StartError(f"setting mosquitto: {settings.mosquitto!r} is no program that can be run")
            return TrialBroker(folder, port)
        interface = settings.broker_interface
        hosts = broker_hosts(settings.reachable_host, interface, settings.host)
        layout = Layout(folder, self.ca.ca_path.resolve(), self.ca.server_certificate(hosts, self._clock()))
        return MosquittoBroker(program, layout, interface, settings.reachable_host, port)
