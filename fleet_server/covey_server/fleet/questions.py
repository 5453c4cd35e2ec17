"""What devices ask of the server over their own session: the time, and the repository's metadata.

The time is signed by the director, for one device and one nonce. Metadata is signed already; it goes out as the repository has it. A
thread of its own, so that neither waits for what is being stored. What cannot be answered is asked again.
"""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Callable
from typing import Protocol

from covey_contract.envelope import Envelope, encode_envelope
from covey_contract.messages import MetadataPart, MetadataRequest, TimeReply, TimeRequest
from covey_contract.metadata import parts_of
from covey_contract.topics import Down
from covey_contract.wire import encode
from covey_server.clock import Clock
from covey_server.errors import ServerError
from covey_server.fleet.counters import Counters
from covey_server.fleet.inbox import Incoming
from covey_server.fleet.pacing import Gate
from covey_server.fleet.queue_thread import QueueThread
from covey_server.releases.answers import Answers

log = logging.getLogger(__name__)

_PER_MINUTE = 30  # questions of one device


class TimeSigner(Protocol):
    def sign_time(self, reply: TimeReply) -> Envelope: ...


class Questions(QueueThread):
    """`answers` None: there is no repository of releases here."""

    def __init__(
        self,
        questions: queue.Queue[Incoming],
        signer: TimeSigner,
        answers: Answers | None,
        clock: Clock,
        counters: Counters,
        send: Callable[[str, Down, bytes], bool],
    ) -> None:
        super().__init__("covey-questions", questions)
        self._signer = signer
        self._answers = answers
        self._clock = clock
        self._counters = counters
        self._send = send
        self._gate = Gate(_PER_MINUTE)

    def take(self, incoming: Incoming) -> None:
        if not self._gate.passes(incoming.device, time.monotonic()):
            self._counters.add("covey_messages_refused_total", reason="asks_too_often")
            return
        try:
            self.answer(incoming)
        except (ServerError, OSError) as error:
            log.error("a question of %s cannot be answered: %s", incoming.device, error)

    def answer(self, incoming: Incoming) -> None:
        """Raises `ServerError` or `OSError` where the repository cannot be read."""
        device, message = incoming.device, incoming.message
        if isinstance(message, TimeRequest):
            reply = TimeReply(device=device, nonce=message.nonce, time_ms=self._clock())
            self._send(device, Down.TIME, encode_envelope(self._signer.sign_time(reply)))
        elif isinstance(message, MetadataRequest) and self._answers is not None:
            parts = parts_of(self._answers.of(message.path, message.root))
            for number, data in enumerate(parts):
                part = MetadataPart(id=message.id, part=number, parts=len(parts), data=data)
                self._send(device, Down.METADATA, encode(part))
