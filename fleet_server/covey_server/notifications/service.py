"""The thread that tells: takes what is new into the outbox, addresses it, and sends what is due.

Invariants: a delivery is claimed before it is sent and its claim ends by itself, so that one whose server is killed meanwhile
is sent again; nothing is sent inside a transaction; a receiver that hangs holds up its own deliveries and no others.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from urllib.parse import quote

from sqlalchemy import ColumnElement, select, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from covey_server import logs
from covey_server.bus import Bus
from covey_server.clock import Clock
from covey_server.db.engine import Database
from covey_server.db.tables import Delivery, Notice, Webhook
from covey_server.errors import ServerError
from covey_server.notifications import outbox, watch
from covey_server.notifications.outbox import DEAD, DELIVERED, PENDING, Mailing
from covey_server.notifications.retries import next_pause_ms
from covey_server.notifications.sealing import Seal
from covey_server.notifications.sending import Hook, Outcome, Sender, Told

log = logging.getLogger(__name__)

_TICK_S = 1.0
_AT_ONCE = 8
_EACH_AT_ONCE = 2
_CLAIM_MS = 120_000  # longer than any attempt takes
_PRUNE_EVERY_MS = 3_600_000
_DAY_MS = 86_400_000


@dataclass(frozen=True)
class _Claimed:
    id: int
    attempts: int
    told: Told
    webhook_id: int | None
    recipient: str | None


class NotificationService:
    """`start` and `stop` once each. `chance` draws from [0, 1) and spreads retries."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        bus: Bus,
        seal: Seal,
        sender: Sender,
        mailing: Mailing,
        *,
        console_url: str = "",
        keep_days: int = 30,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._database, self._clock, self._bus, self._seal, self._sender = database, clock, bus, seal, sender
        self._mailing, self._console_url, self._keep_days, self._chance = mailing, console_url, keep_days, chance
        self._woken = threading.Event()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._pruned_ms = 0
        self._busy: dict[object, int] = {}  # receivers that something is being sent to, and how much
        self._lock = threading.Lock()

    def start(self) -> None:
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, name="notifications", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Returns once the attempts in progress have ended: within the settings' timeouts."""
        self._stopping.set()
        self._woken.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def wake(self) -> None:
        """Look now: there is something to be told."""
        self._woken.set()

    def collect(self) -> int:
        """Take what is new into the outbox and address it; how many deliveries there are to be made."""
        with self._database.reading() as session:
            if not outbox.has_news(session) and not watch.has_approvals(session):
                return 0
        with self._database.session() as session:
            now_ms = self._clock()
            told_to = outbox.reached(session)
            outbox.tell_of_campaigns(session, now_ms)
            watch.tell_of_approvals(session, now_ms)
            if told_to is not None:
                watch.tell_of_quarantine(session, told_to, now_ms)
            session.flush()
            fresh = session.scalars(select(Notice).where(Notice.addressed_ms.is_(None)).order_by(Notice.id)).all()
            made = outbox.address(session, self._mailing, now_ms)
        for notice in fresh:
            about = {name: str(notice.data[name]) for name in ("campaign", "device") if name in notice.data}
            with logs.about(**about):
                log.info("%s: %s", notice.event, notice.summary)
        return made

    def deliver(self) -> int:
        """Send what is due, one after the other; how much was tried."""
        claimed = self._claim()
        for one in claimed:
            self._attempt(one)
        return len(claimed)

    # --- the thread -------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="notify") as pool:
            while not self._stopping.is_set():
                self._woken.clear()
                try:
                    self.collect()
                    for one in self._claim():
                        pool.submit(self._attempt, one)
                    self._prune()
                except (SQLAlchemyError, ServerError) as error:
                    # The next round tries again; the database may only be away for a moment.
                    log.error("notifications: %s", error)
                self._woken.wait(_TICK_S)

    def _claim(self) -> list[_Claimed]:
        """Deliveries that are due, few for each receiver, so that one that is slow leaves room for the others."""
        now_ms = self._clock()
        due = [Delivery.state == PENDING, Delivery.due_ms <= now_ms]
        with self._database.reading() as session:
            if session.scalar(select(Delivery.id).where(*due).limit(1)) is None:
                return []
        claimed: list[_Claimed] = []
        try:
            self._claim_due(due, now_ms, claimed)
        except BaseException:
            for one in claimed:
                self._give_back(one.webhook_id or one.recipient)
            raise
        return claimed

    def _claim_due(self, due: list[ColumnElement[bool]], now_ms: int, claimed: list[_Claimed]) -> None:
        with self._database.session() as session:
            rows = session.execute(
                select(Delivery, Notice)
                .join(Notice, Notice.id == Delivery.notice_id)
                .where(*due)
                .order_by(Delivery.due_ms, Delivery.id)
                .limit(500)
                .with_for_update(skip_locked=True, of=Delivery)
            ).all()
            for delivery, notice in rows:
                if len(claimed) >= _AT_ONCE:
                    break
                if self._take(delivery.webhook_id or delivery.recipient):
                    delivery.due_ms = now_ms + _CLAIM_MS
                    told = Told(notice.key, notice.event, notice.at_ms, notice.summary, notice.data)
                    claimed.append(
                        _Claimed(delivery.id, delivery.attempts, told, delivery.webhook_id, delivery.recipient)
                    )

    def _take(self, receiver: object) -> bool:
        with self._lock:
            busy = self._busy.get(receiver, 0)
            if busy >= _EACH_AT_ONCE or sum(self._busy.values()) >= _AT_ONCE:
                return False
            self._busy[receiver] = busy + 1
            return True

    def _give_back(self, receiver: object) -> None:
        with self._lock:
            self._busy[receiver] -= 1
            if not self._busy[receiver]:
                del self._busy[receiver]
        self._woken.set()

    def _attempt(self, one: _Claimed) -> None:
        try:
            outcome = self._send(one)
            with self._database.session() as session:
                self._note(session, one, outcome)
        except (SQLAlchemyError, ServerError) as error:
            log.error("delivery %d could not be noted: %s", one.id, error)  # its claim ends, and it is sent again
        finally:
            self._give_back(one.webhook_id or one.recipient)
        self._bus.publish("delivery", str(one.id))

    def _send(self, one: _Claimed) -> Outcome:
        now_ms = self._clock()
        if one.webhook_id is None:
            return self._sender.mail(one.recipient or "", one.told, self._link(one.told))
        with self._database.reading() as session:
            hook = session.get(Webhook, one.webhook_id)
        if hook is None or hook.disabled_ms is not None:
            return Outcome(False, error="the webhook is disabled", hopeless=True)
        try:
            opened = Hook(hook.url, secrets_of(hook, self._seal, now_ms))
        except ValueError as error:
            return Outcome(False, error=str(error))
        return self._sender.post(opened, one.told, now_ms)

    def _note(self, session: Session, one: _Claimed, outcome: Outcome) -> None:
        now_ms = self._clock()
        attempts = one.attempts + 1
        pause_ms = None if outcome.hopeless else next_pause_ms(attempts, self._chance, outcome.retry_after_s)
        state = DELIVERED if outcome.delivered else DEAD if pause_ms is None else PENDING
        session.execute(
            update(Delivery)
            .where(Delivery.id == one.id, Delivery.state == PENDING)
            .values(
                state=state,
                attempts=attempts,
                due_ms=now_ms + (pause_ms or 0),
                status=outcome.status,
                error=outcome.error[:500],
                duration_ms=outcome.duration_ms,
                finished_ms=None if state == PENDING else now_ms,
            ),
            execution_options={"synchronize_session": False},
        )
        hook = session.get(Webhook, one.webhook_id) if one.webhook_id is not None else None
        if outcome.gone and hook is not None and hook.disabled_ms is None:
            hook.disabled_ms, hook.disabled_why = now_ms, "its receiver answered 410 Gone"
        if not outcome.delivered:
            # Without the address: it may hold a secret.
            receiver = f"webhook {hook.name}" if hook is not None else "e-mail"
            words = "given up" if state == DEAD else "to be tried again"
            log.warning("%s: %s: %s; %s", receiver, one.told.event, outcome.error, words)

    def _link(self, told: Told) -> str:
        campaign = told.data.get("campaign")
        if not self._console_url:
            return ""
        return f"{self._console_url}/campaigns/{quote(str(campaign), safe='')}" if campaign else self._console_url

    def _prune(self) -> None:
        now_ms = self._clock()
        if now_ms - self._pruned_ms < _PRUNE_EVERY_MS:
            return
        self._pruned_ms = now_ms
        with self._database.session() as session:
            outbox.prune(session, now_ms - self._keep_days * _DAY_MS)


def secrets_of(hook: Webhook, seal: Seal, now_ms: int) -> tuple[str, ...]:
    """What a webhook's messages are signed by now. Raises `ValueError`."""
    found = [seal.open(hook.secret, sealed_for(hook.name))]
    if hook.previous_secret is not None and (hook.previous_until_ms or 0) > now_ms:
        found.append(seal.open(hook.previous_secret, sealed_for(hook.name)))
    return tuple(found)


def sealed_for(name: str) -> str:
    """What a webhook's secrets are bound to."""
    return f"webhook {name}"
