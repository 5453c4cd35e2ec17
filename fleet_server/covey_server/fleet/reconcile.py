"""Desired against reported: what each device should run and has not heard of is sent again, until it has.

On every hello, when woken and on a tick, which also takes up what reports have changed. Nothing depends on the broker
remembering anything. The tick asks the database for the few that are due; it never walks the fleet.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter as Tally
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Protocol

import msgspec
from sqlalchemy import BigInteger, Row, Select, and_, case, literal, or_, select, update
from sqlalchemy.orm import Session

from covey_contract.conditions import Conditions
from covey_contract.envelope import Envelope, decode_envelope
from covey_contract.messages import Assignment, Hello, Offer, Order, Probation
from covey_contract.reasons import Reason
from covey_contract.topics import Down
from covey_contract.wire import encode
from covey_server.bus import Bus
from covey_server.clock import Clock
from covey_server.core.spec.values import parse_byte_rate
from covey_server.db.engine import Database
from covey_server.db.tables import AssignmentRow, Build, Campaign, Desired, Device, Reported, Version
from covey_server.fleet.assignments import FINISHED, ISSUED, RENEW_MS, action_of, counts_for, reissue
from covey_server.fleet.bundles import SignedOrder
from covey_server.fleet.counters import Counters
from covey_server.fleet.moved import note_presence_where
from covey_server.fleet.precedence import Precedence
from covey_server.fleet.progress import Answer, answer_hello
from covey_server.fleet.sql import chunks, lock_devices

log = logging.getLogger(__name__)

# An order that no report has answered is sent again after the time it has waited so far, within these bounds.
RESEND_MIN_MS = 5_000
RESEND_MAX_MS = 600_000
_ROUND = 500
# Orders are read, sent and then noted as sent by so many: each time the database's one writer is waited for once.
_DUE_ROUND = 2_000
_MANY = 500


class AssignmentSigner(Protocol):
    def sign_assignment(self, assignment: Assignment) -> Envelope: ...


class Reconciler:
    """`send` hands bytes to the link and says whether it took them; `maintain` is called on every tick; `offer` says how so many
    devices that run one build (or none) and are told to run another may get its bytes, no faster together than the rate that is given."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        bus: Bus,
        counters: Counters,
        signer: AssignmentSigner,
        send: Callable[[str, Down, bytes], bool],
        *,
        heartbeat_timeout_s: float,
        tick_s: float,
        maintain: Callable[[], None],
        release_again: Callable[[str, str], bool] = lambda _model, _version: False,
        precedence: Precedence | None = None,
        offer: Callable[[str, str | None, int, float | None], Offer] = lambda _build, _base, _devices, _rate: Offer(),
    ) -> None:
        self._database = database
        self._clock = clock
        self._bus = bus
        self._counters = counters
        self._signer = signer
        self._send = send
        self._heartbeat_timeout_ms = int(heartbeat_timeout_s * 1000)
        self._tick_s = tick_s
        self._maintain = maintain
        self._release_again = release_again
        self._precedence = precedence or Precedence()
        self._offer = offer
        self._hellos: dict[str, Hello] = {}
        self._lock = threading.Lock()
        self._woken = threading.Event()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._started_ms = 0

    def start(self) -> None:
        self._stopping.clear()
        self._started_ms = self._clock()
        self._thread = threading.Thread(target=self._run, name="covey-reconcile", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._woken.set()
        if self._thread is not None:
            self._thread.join(10.0)

    def hello(self, device: str, hello: Hello) -> None:
        with self._lock:
            self._hellos[device] = hello
        self._woken.set()

    def wake(self) -> None:
        self._woken.set()

    def orders_of(self, devices: Sequence[str], model: str | None) -> list[SignedOrder]:
        """Signed, what these devices should do and have not done, of one model or of all; expired orders are issued anew."""
        query = _orders().where(AssignmentRow.device.in_(devices), AssignmentRow.state.not_in(FINISHED))
        if model is not None:
            query = query.where(AssignmentRow.model == model)
        query = query.order_by(AssignmentRow.device, AssignmentRow.model)
        now = self._clock()
        with self._database.session() as session:
            rows = session.execute(query).all()
            if expired := [row.id for row in rows if row.expires_ms <= now]:
                reissue(session, expired, now)
                rows = session.execute(query).all()
        return [SignedOrder(row.device, row.model, row.digest, self._order(row, Offer())) for row in rows]

    def _run(self) -> None:
        last_tick = 0.0
        while not self._stopping.is_set():
            self._woken.wait(self._tick_s)
            self._woken.clear()
            try:
                if time.monotonic() - last_tick >= self._tick_s:
                    last_tick = time.monotonic()
                    self._time_out()
                    self._maintain()
                self.converge()
            except Exception:  # the seam of this thread: the next tick tries again
                log.exception("reconciliation failed; trying again")
                self._stopping.wait(self._tick_s)

    def converge(self) -> None:
        """Answer the hellos that came, then send what is due."""
        with self._lock:
            hellos, self._hellos = self._hellos, {}
        send_now = self._answer(hellos) if hellos else []
        for part in chunks(send_now):
            with self._database.reading() as session:
                orders = session.execute(_orders().where(AssignmentRow.id.in_(part))).all()
            self._send_orders(orders)
        try:
            while not self._stopping.is_set() and (gone := self._send_due()):
                self._precedence.claim("sending", gone >= _MANY)
        finally:
            self._precedence.claim("sending", False)

    def _send_due(self) -> int:
        """One round of what is due: sent, issued anew if it is too old, put aside if its device is off. How many left the queue."""
        now = self._clock()
        with self._database.reading() as session:
            due = session.execute(
                _orders()
                .where(AssignmentRow.due_ms <= now, AssignmentRow.state == ISSUED)
                .order_by(AssignmentRow.due_ms)
                .limit(_DUE_ROUND)
            ).all()
        here = [row for row in due if row.online]
        renew = [row.id for row in here if row.expires_ms <= now or row.reason == str(Reason.OLD_COUNTER)]
        for model, version in {(row.model, row.version) for row in here if row.reason == str(Reason.OLD_RELEASE)}:
            if self._release_again(model, version):
                renew += [row.id for row in here if _refused_as_old_release(row, model, version)]
        stuck = sorted({row.id for row in here if row.reason == str(Reason.OLD_RELEASE)} - set(renew))
        old = {*renew, *stuck}
        aside = [row.id for row in due if not row.online]
        if renew or aside or stuck:
            with self._database.session() as session:
                lock_devices(session, [row.device for row in due])
                _put_aside(session, aside)
                _put_off(session, stuck, now + RENEW_MS)
                reissue(session, renew, now)
        if renew:
            log.info("issued %d assignments anew", len(renew))
        return self._send_orders([row for row in here if row.id not in old]) + len(renew) + len(aside)

    def _answer(self, hellos: dict[str, Hello]) -> list[str]:
        """The ids of the assignments to be sent to the devices that said hello, new ones among them."""
        send, renew = [], []
        with self._database.reading() as session:
            rows = [
                row
                for part in chunks(sorted(hellos))
                for row in session.execute(
                    select(AssignmentRow).join(Desired, counts_for()).where(Desired.device.in_(part))
                ).scalars()
            ]
        now = self._clock()
        for row in rows:
            hello = hellos[row.device]
            status = next((one for one in hello.models if one.model == row.model), None)
            answer = answer_hello(
                assignment=row.id,
                counter=row.counter,
                state=row.state,
                status=status,
                last_counter=hello.last_counter,
            )
            if answer is Answer.RENEW or (answer is Answer.SEND and row.expires_ms <= now):
                renew.append(row.id)
            elif answer is Answer.SEND:
                send.append(row.id)
        if renew:
            with self._database.session() as session:
                send += reissue(session, renew, now)
        return send

    def _time_out(self) -> None:
        """Devices that have said nothing for too long are offline; after a start they get that long to speak."""
        now = self._clock()
        if now - self._started_ms < self._heartbeat_timeout_ms:
            return
        silent = (
            Device.online.is_(True),
            or_(Device.last_seen_ms.is_(None), Device.last_seen_ms < now - self._heartbeat_timeout_ms),
        )
        with self._database.reading() as session:
            gone = list(session.scalars(select(Device.id).where(*silent).limit(_ROUND)))
        if not gone:
            return
        with self._database.session() as session:
            session.execute(select(Device.id).where(*silent).order_by(Device.id).with_for_update(key_share=True)).all()
            note_presence_where(session, *silent)
            session.execute(
                update(Device).where(*silent).values(online=False).execution_options(synchronize_session=False)
            )
        log.warning("%d devices have been silent for too long (%s …)", len(gone), gone[0])
        for device in gone:
            self._bus.publish("device", device)

    def _send_orders(self, rows: Sequence[Row[Any]]) -> int:
        """How many the link took."""
        sent = []
        offers = self._offers(rows)
        for row in rows:
            if not self._send(row.device, Down.ASSIGNMENT, self._order(row, offers[row.digest, _base(row)])):
                break
            sent.append(row.id)
        if sent:
            self._counters.add("covey_assignments_sent_total", len(sent))
            with self._database.session() as session:
                lock_devices(session, [row.device for row in rows[: len(sent)]])
                _note_sent(session, sent, self._clock())
        return len(sent)

    def _offers(self, rows: Sequence[Row[Any]]) -> dict[tuple[str, str | None], Offer]:
        """By the build that is to run, and the one that does."""
        named = {row.campaign for row in rows if row.campaign is not None}
        caps: dict[str, float | None] = {}
        if named:
            with self._database.reading() as session:
                for name, spec, stage in session.execute(
                    select(Campaign.name, Campaign.spec, Campaign.stage).where(Campaign.name.in_(named))
                ):
                    caps[name] = bandwidth_of(spec, stage)
        offers = {}
        for (build, base), devices in Tally((row.digest, _base(row)) for row in rows).items():
            capped = {caps.get(row.campaign) for row in rows if row.digest == build and row.campaign is not None}
            rates = [rate for rate in capped if rate is not None]
            offers[build, base] = self._offer(build, base, devices, min(rates, default=None))
        return offers

    def _order(self, row: Row[Any], offer: Offer) -> bytes:
        assignment = Assignment(
            id=row.id,
            device=row.device,
            counter=row.counter,
            issued_ms=row.issued_ms,
            expires_ms=row.expires_ms,
            model=row.model,
            version=row.version,
            build=row.digest,
            action=action_of(row.why),
            probation=msgspec.convert(row.probation, Probation),
            campaign=row.campaign,
            conditions=None if row.conditions is None else msgspec.convert(row.conditions, Conditions),
            rollback=row.kind == "rollback",
        )
        signed = self._signer.sign_assignment(assignment)
        return encode(Order(assignment=signed, manifest=_manifest(row.envelope), offer=offer))


def bandwidth_of(spec: dict[str, Any], stage: int) -> float | None:
    """Bytes a second that a campaign's file allows in that stage; None: any."""
    stages = spec.get("stages") or []
    own = stages[stage].get("pace") if 0 <= stage < len(stages) else None
    text = (own or spec.get("pace") or {}).get("bandwidth")
    return None if text is None else float(parse_byte_rate(text).per_s)


def _base(row: Row[Any]) -> str | None:
    """The build that a difference could be made from. Who goes back has the other one still."""
    return None if row.kind == "rollback" else row.base


def _refused_as_old_release(row: Row[Any], model: str, version: str) -> bool:
    return row.reason == str(Reason.OLD_RELEASE) and (row.model, row.version) == (model, version)


@lru_cache(maxsize=64)
def _manifest(envelope: bytes) -> Envelope:
    return decode_envelope(envelope)


def _orders() -> Select[Any]:
    """Everything that an `Order` is made of."""
    return (
        select(
            AssignmentRow.id,
            AssignmentRow.device,
            AssignmentRow.counter,
            AssignmentRow.issued_ms,
            AssignmentRow.expires_ms,
            AssignmentRow.model,
            AssignmentRow.why,
            AssignmentRow.kind,
            AssignmentRow.probation,
            AssignmentRow.conditions,
            AssignmentRow.reason,
            Device.online,
            Version.name.label("version"),
            Build.digest,
            Build.envelope,
            Campaign.name.label("campaign"),
            Reported.active.label("base"),
        )
        .join(Desired, counts_for())
        .join(Device, Device.id == AssignmentRow.device)
        .join(Version, Version.id == AssignmentRow.version_id)
        .join(Build, Build.id == AssignmentRow.build_id)
        .outerjoin(Campaign, Campaign.id == AssignmentRow.campaign_id)
        .outerjoin(Reported, and_(Reported.device == AssignmentRow.device, Reported.model == AssignmentRow.model))
        .where(Device.revoked_ms.is_(None), Build.digest.is_not(None), Build.envelope.is_not(None))
    )


def _put_aside(session: Session, ids: Sequence[str]) -> None:
    """Their devices are off; when one comes, `send_again` or the answer to its hello takes its order up."""
    off = select(Device.id).where(Device.id == AssignmentRow.device, Device.online.is_(False))
    for part in chunks(ids):
        session.execute(
            update(AssignmentRow)
            .where(AssignmentRow.id.in_(part), off.exists())
            .values(due_ms=None)
            .execution_options(synchronize_session=False)
        )


def _put_off(session: Session, ids: Sequence[str], until_ms: int) -> None:
    """What cannot be sent yet must not stand before what can."""
    for part in chunks(ids):
        session.execute(
            update(AssignmentRow)
            .where(AssignmentRow.id.in_(part))
            .values(due_ms=until_ms)
            .execution_options(synchronize_session=False)
        )


def _note_sent(session: Session, ids: Sequence[str], now_ms: int) -> None:
    """When to send again: the pause doubles with the time an order has waited."""
    waited = now_ms - AssignmentRow.issued_ms
    # Milliseconds are 64 bits; PostgreSQL would take a plain number's 32 for the whole sum.
    least, most = literal(RESEND_MIN_MS, BigInteger), literal(RESEND_MAX_MS, BigInteger)
    pause = case((waited < least, least), (waited > most, most), else_=waited)
    for part in chunks(ids):
        session.execute(
            update(AssignmentRow)
            .where(AssignmentRow.id.in_(part))
            .values(sent_ms=now_ms, due_ms=case((AssignmentRow.state == ISSUED, now_ms + pause)))
            .execution_options(synchronize_session=False)
        )
