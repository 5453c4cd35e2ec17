"""Renewals by way of the device's own MQTT session, where the server's HTTPS port is out of reach.

Nothing of an answer is believed for having come that way; the asker checks the certificate as if it had come by HTTPS.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable

import msgspec

from covey_agent.errors import EnrolmentError
from covey_contract.enrolment import RenewReply, RenewRequest

WAIT_S = 30.0


class RenewalRelay:
    """`ask` waits, in a thread beside the control loop, one request at a time; `take` is called by the loop. `send` says whether there is a
    session."""

    def __init__(self, send: Callable[[RenewRequest], bool], wait_s: float = WAIT_S) -> None:
        self._send = send
        self._wait_s = wait_s
        self._lock = threading.Lock()
        self._id = ""
        self._reply: RenewReply | None = None
        self._here = threading.Event()

    def ask(self, request: RenewRequest) -> RenewReply:
        """The answer to this very request. Raises `EnrolmentError` if none comes."""
        with self._lock:
            self._id, self._reply = secrets.token_hex(8), None
            self._here.clear()
        try:
            if not self._send(msgspec.structs.replace(request, id=self._id)):
                raise EnrolmentError("there is no session with the broker")
            self._here.wait(self._wait_s)
        finally:
            reply = self._end()
        if reply is None:
            raise EnrolmentError(f"no answer came over MQTT in {self._wait_s:g} s")
        return reply

    def take(self, reply: RenewReply) -> None:
        """It may come twice, late, or unasked: the first answer to the request under way counts."""
        with self._lock:
            if self._id and reply.id == self._id and self._reply is None:
                self._reply = reply
                self._here.set()

    def _end(self) -> RenewReply | None:
        """Nothing that comes from now on is an answer."""
        with self._lock:
            reply, self._id, self._reply = self._reply, "", None
            return reply
