"""Commands to devices and the replies to them. A command is signed, expires soon and is never stored: who asks, waits."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from typing import Protocol

from covey_contract.envelope import Envelope, encode_envelope
from covey_contract.messages import Command, CommandKind, Reply
from covey_contract.samples import SampleQuestion
from covey_contract.topics import Down
from covey_server.clock import Clock

_TTL_MS = 60_000


class CommandSigner(Protocol):
    def sign_command(self, command: Command) -> Envelope: ...


class _Waiting:
    def __init__(self) -> None:
        self.arrived = threading.Event()
        self.reply: Reply | None = None


class CommandDesk:
    """`send` hands bytes to the link and says whether it took them."""

    def __init__(self, signer: CommandSigner, clock: Clock, send: Callable[[str, Down, bytes], bool]) -> None:
        self._signer = signer
        self._clock = clock
        self._send = send
        self._lock = threading.Lock()
        self._waiting: dict[tuple[str, str], _Waiting] = {}

    def ask(
        self,
        device: str,
        kind: CommandKind,
        timeout_s: float,
        lines: int = 200,
        samples: SampleQuestion | None = None,
    ) -> Reply | None:
        """The device's reply, or None if none came in time."""
        command = self._command(device, kind, lines, samples)
        waiting = _Waiting()
        with self._lock:
            self._waiting[device, command.id] = waiting
        try:
            if not self._send(device, Down.COMMAND, encode_envelope(self._signer.sign_command(command))):
                return None
            waiting.arrived.wait(timeout_s)
            return waiting.reply
        finally:
            with self._lock:
                del self._waiting[device, command.id]

    def tell(self, device: str, kind: CommandKind) -> None:
        """Ask without waiting; the reply is heard by ingest."""
        command = self._command(device, kind)
        self._send(device, Down.COMMAND, encode_envelope(self._signer.sign_command(command)))

    def give_up(self) -> None:
        """Whoever waits waits no longer: the server stops."""
        with self._lock:
            for waiting in self._waiting.values():
                waiting.arrived.set()

    def deliver(self, device: str, reply: Reply) -> None:
        """A reply has come; only the device that was asked can answer."""
        with self._lock:
            waiting = self._waiting.get((device, reply.id))
        if waiting is not None:
            waiting.reply = reply
            waiting.arrived.set()

    def _command(
        self, device: str, kind: CommandKind, lines: int = 200, samples: SampleQuestion | None = None
    ) -> Command:
        now = self._clock()
        return Command(
            id=uuid.uuid4().hex,
            device=device,
            kind=kind,
            issued_ms=now,
            expires_ms=now + _TTL_MS,
            lines=lines,
            samples=samples,
        )
