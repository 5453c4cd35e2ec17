"""Keeping the device's certificate alive, in the control loop: when to ask, what to do with the answer, what to tell.

    due, or asked for by the server -> asking -> on trial (the link connects with it) -> in use
                                       └─ an operator is to approve -> asking again, and again …

The old pair is in use until the broker has taken the new one, and stays if it does not. What goes wrong is tried again after a pause
that doubles. A wrong clock costs a needless renewal at most: see `core.renewal`.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import queue
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import msgspec

from covey_agent import durable
from covey_agent.core.renewal import Certificate, pause_s
from covey_agent.credentials import Credentials
from covey_agent.renewing import Failed, Granted, Outcome, Refused, Undecided
from covey_contract.strenum import StrEnum

log = logging.getLogger(__name__)

FILE = "renewal.json"
# After a start the clock may still be put right.
_SETTLE_S = 5.0
_LOOK_S = 60.0
_REFUSED_S = 3600.0
# Each trial cuts the session, and is a certificate more that the server has given out.
_NOT_TAKEN_S = 6 * 3600.0
_WARN_EVERY_S = 86_400.0


class Standing(StrEnum):
    """How it stands with the certificate, for people."""

    GOOD = "good"
    ASKING = "asking"
    UNDECIDED = "undecided"  # an operator is to approve
    ON_TRIAL = "on_trial"
    REFUSED = "refused"
    FAILED = "failed"  # this time; it is tried again


class Told(msgspec.Struct, frozen=True, omit_defaults=True):
    """`renewal.json`: for `covey-agent status`, which cannot ask this process."""

    standing: Standing = Standing.GOOD
    words: str = ""


class Asking(Protocol):
    def ask(self, now_ms: int, *, expired: bool) -> Outcome: ...


def in_thread(work: Callable[[], None]) -> None:
    """A request may take a minute, and the loop does not wait."""
    threading.Thread(target=work, name="renewal", daemon=True).start()


class Renewal:
    """`start`, then `tick` and what the link has to say, all in the loop's thread. `now` are seconds of a clock that nobody sets; `clock` is the
    time of day in milliseconds. `try_out` makes the link connect anew."""

    def __init__(
        self,
        device: str,
        state: Path,
        credentials: Credentials,
        asker: Asking,
        *,
        clock: Callable[[], int],
        draw: random.Random,
        try_out: Callable[[], None],
        first_s: float,
        most_s: float,
        begin: Callable[[Callable[[], None]], None] = in_thread,
    ) -> None:
        self._device = device
        self._file = state / FILE
        self._credentials = credentials
        self._asker = asker
        self._clock = clock
        self._draw = draw
        self._try_out = try_out
        self._first_s = first_s
        self._most_s = most_s
        self._begin = begin
        self._answers: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        self._certificate: Certificate | None = None
        self._told: Told | None = None
        self._under_way = False
        self._trying = False  # the link shows the certificate on trial
        self._taken = False  # by the broker, the certificate on trial
        self._wanted = False  # by the server, whatever the clock says
        self._tries = 0
        self._next = 0.0
        self._next_warning = 0.0

    @property
    def certificate(self) -> Certificate | None:
        """The one in use; None: it cannot be read."""
        return self._certificate

    def start(self, now: float) -> None:
        self._credentials.tidy()
        self._sweep()
        self._read()
        self._next = now + _SETTLE_S
        self._trying = self._is_on_trial()  # the link begins with it
        self._tell(Standing.ON_TRIAL if self._trying else Standing.GOOD)

    def ask_now(self) -> str:
        """The server wants it renewed; what to answer."""
        self._wanted = True
        self._next = 0.0
        ends = "cannot be read" if self._certificate is None else f"ends {_day(self._certificate.ends_ms)}"
        return f"asking for a new certificate; the one in use {ends}"

    def tick(self, now: float) -> None:
        with contextlib.suppress(queue.Empty):
            self._settle(self._answers.get_nowait(), now)
        if self._certificate is not None and now >= self._next_warning:
            self._warn(self._certificate, now)
        if self._under_way or now < self._next:
            return
        self._next = now + _LOOK_S
        if self._taken:
            self._take_over(now)
            return
        if self._is_on_trial():
            self._try()
            return
        if self._certificate is None:
            self._read()
        now_ms = self._clock()
        left_s = 0.0 if self._certificate is None else (self._certificate.due_ms(self._device) - now_ms) / 1000
        if self._wanted or left_s <= 0:
            self._ask(now_ms)
        else:
            self._next = now + min(left_s, _LOOK_S)

    def connected(self, now: float, *, trial: bool, refused: bool) -> None:
        """The link has a session: with the pair on `trial`; or with the one in use, after the one on trial was `refused`."""
        self._taken, self._trying = trial, trial
        if trial:
            self._take_over(now)
        elif refused:
            self._give_up()
            self._retry(now, Standing.FAILED, "the broker does not take the new certificate; the one before stays")
            self._next = now + _NOT_TAKEN_S

    def _take_over(self, now: float) -> None:
        try:
            self._credentials.take_over()
        except OSError as error:
            log.error("the new certificate cannot be taken over now: %s", error)
            return
        self._taken = False
        self._sweep()
        self._read()
        self._renewed(now)

    # --- asking -----------------------------------------------------------------------------------------------------

    def _ask(self, now_ms: int) -> None:
        expired = self._certificate is not None and self._certificate.has_expired(now_ms)
        self._under_way = True
        if self._told is None or self._told.standing is not Standing.UNDECIDED:
            self._tell(Standing.ASKING, "its certificate has expired" if expired else "")
        self._begin(lambda: self._answers.put(self._asker.ask(now_ms, expired=expired)))

    def _settle(self, outcome: Outcome, now: float) -> None:
        self._under_way = False
        if isinstance(outcome, Undecided):
            self._retry(now, Standing.UNDECIDED, outcome.words)
        elif isinstance(outcome, Refused):
            self._retry(now, Standing.REFUSED, outcome.words)
            self._next = now + _REFUSED_S
        elif isinstance(outcome, Failed):
            self._retry(now, Standing.FAILED, outcome.words)
        else:
            self._put_on_trial(outcome, now)

    def _put_on_trial(self, granted: Granted, now: float) -> None:
        try:
            self._credentials.try_out(granted.key_pem, granted.certificate_pem)
        except OSError as error:
            self._retry(now, Standing.FAILED, f"the new certificate cannot be stored: {error.strerror}")
            return
        self._trying = False
        self._try()

    def _try(self) -> None:
        """Have the link show it, unless it does, or is about to."""
        if self._trying:
            return
        self._tell(Standing.ON_TRIAL)
        try:
            self._try_out()
        except OSError as error:
            log.error("the new certificate cannot be tried out now: %s", error)
        else:
            self._trying = True

    def _is_on_trial(self) -> bool:
        """Whether one is; one that cannot be read, or has expired before the broker could be reached, is given up."""
        try:
            pair = self._credentials.on_trial
            if pair is None:
                return False
            if not pair.read().has_expired(self._clock()):
                return True
        except (OSError, ValueError) as error:
            log.error("the new certificate cannot be read: %s", error)
        self._give_up()
        return False

    def _give_up(self) -> None:
        with contextlib.suppress(OSError):
            self._credentials.give_up()
        self._sweep()

    def _sweep(self) -> None:
        """Not in the loop, which waits for no token."""
        if self._credentials.in_token:
            self._begin(self._credentials.sweep_token)

    def _renewed(self, now: float) -> None:
        self._wanted, self._tries = False, 0
        certificate = self._certificate
        if certificate is None:
            return
        self._next = now + certificate.rest_s
        self._next_warning = now
        log.info("the certificate was renewed; it ends %s", _day(certificate.ends_ms))
        self._tell(Standing.GOOD)

    def _retry(self, now: float, standing: Standing, words: str) -> None:
        self._tries += 1
        self._next = now + pause_s(self._tries, self._first_s, self._most_s, self._draw.random())
        self._tell(standing, words)

    # --- telling ----------------------------------------------------------------------------------------------------

    def _read(self) -> None:
        try:
            self._certificate = self._credentials.in_use.read()
        except (OSError, ValueError) as error:
            log.error("the certificate cannot be read: %s", error)

    def _warn(self, certificate: Certificate, now: float) -> None:
        self._next_warning = now + _WARN_EVERY_S
        now_ms = self._clock()
        if certificate.has_expired(now_ms):
            log.error("this device's certificate ended %s", _day(certificate.ends_ms))
        elif certificate.is_ending(now_ms):
            log.warning("this device's certificate ends %s, and has not been renewed", _day(certificate.ends_ms))

    def _tell(self, standing: Standing, words: str = "") -> None:
        told = Told(standing, words[:500])
        if told == self._told:
            return
        self._told = told
        if standing in (Standing.UNDECIDED, Standing.REFUSED, Standing.FAILED):
            log.warning("the certificate is not renewed yet: %s", told.words)
        try:
            durable.write(self._file, msgspec.json.encode(told))
        except OSError as error:
            log.warning("%s could not be written: %s", FILE, error)


def read_told(state: Path) -> Told:
    try:
        return msgspec.json.decode((state / FILE).read_bytes(), type=Told)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return Told()


def _day(moment_ms: int) -> str:
    return f"{datetime.datetime.fromtimestamp(moment_ms / 1000, datetime.timezone.utc):%Y-%m-%d %H:%M:%S} UTC"
