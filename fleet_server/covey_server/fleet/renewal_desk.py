"""Renewals over the devices' own MQTT sessions, for those that reach nothing but the broker: as `POST /api/v1/renew`, and nothing less is checked.

Who asks, the broker has seen by its certificate; that the request is that device's own, `come_back` checks. A thread of its own: a
certificate is stored before it is sent, and the time waits for nothing that is stored. What is lost on the way is asked again; what comes twice
(QoS 1) is answered twice, by the same certificate.
"""

from __future__ import annotations

import logging
import queue
import time
from collections import OrderedDict
from typing import Protocol

from covey_contract.enrolment import RenewReply, RenewRequest
from covey_contract.topics import Down
from covey_contract.wire import encode
from covey_server.errors import ServerError, TooMany, Unavailable
from covey_server.fleet.counters import Counters
from covey_server.fleet.inbox import Incoming
from covey_server.fleet.pacing import Gate
from covey_server.fleet.queue_thread import QueueThread
from covey_server.fleet.renewal import Renewed, Waits

log = logging.getLogger(__name__)

_ORIGIN = "renew mqtt"
# Answers that are kept for a request that comes again.
_KEPT = 1_000


class ComeBack(Protocol):
    def __call__(self, request: RenewRequest, origin: str, speaker: str | None) -> Renewed | Waits: ...


class Send(Protocol):
    def __call__(self, device: str, what: Down, payload: bytes) -> bool: ...


class RenewalDesk(QueueThread):
    """`per_minute`: requests of one device."""

    def __init__(
        self,
        asked: queue.Queue[Incoming],
        come_back: ComeBack,
        counters: Counters,
        send: Send,
        *,
        per_minute: int,
    ) -> None:
        super().__init__("covey-renewals", asked)
        self._come_back = come_back
        self._counters = counters
        self._send = send
        self._gate = Gate(per_minute)
        self._granted: OrderedDict[tuple[str, str], RenewReply] = OrderedDict()

    def take(self, incoming: Incoming) -> None:
        reply = self.answer(incoming, time.monotonic())
        if reply is not None:
            self._send(incoming.device, Down.RENEWAL, encode(reply))

    def answer(self, incoming: Incoming, now: float) -> RenewReply | None:
        """To the device on whose topic it came, and to no other; None: no answer to it would be known by anybody. `now` in seconds. Never raises."""
        device, request = incoming.device, incoming.message
        if not isinstance(request, RenewRequest) or not request.id:
            self._counters.add("covey_messages_refused_total", reason="no_id")
            return None
        try:
            if not self._gate.passes(device, now):
                self._counters.add("covey_enrolments_total", outcome="too_many")
                raise TooMany("too many requests of this device; ask again in a minute")
            if (before := self._granted.get((device, request.id))) is not None:
                return before
            came = self._come_back(request, _ORIGIN, device)
        except ServerError as error:
            return RenewReply(id=request.id, status=error.status, detail=error.detail[:2000])
        except Exception:  # the seam of this thread: it must outlive any request and any state of the disk
            log.exception("a renewal of %s could not be stored", device)
            return RenewReply(id=request.id, status=Unavailable.status, detail=str(Unavailable()))
        if isinstance(came, Waits):
            return RenewReply(id=request.id, status=202, detail=came.words[:2000])
        reply = RenewReply(id=request.id, status=200, certificate_pem=came.certificate.pem)
        self._keep((device, request.id), reply)
        return reply

    def _keep(self, name: tuple[str, str], reply: RenewReply) -> None:
        self._granted[name] = reply
        if len(self._granted) > _KEPT:
            self._granted.popitem(last=False)
