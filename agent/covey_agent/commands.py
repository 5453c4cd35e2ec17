"""Commands from the server: signed by the director, for this device, in time, each id once. All else is ignored and logged."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from pathlib import Path

import msgspec

from covey_agent import __version__
from covey_agent.samples import Samples
from covey_contract.envelope import decode_envelope
from covey_contract.errors import ContractError
from covey_contract.facts import Facts
from covey_contract.messages import COMMAND_TYPE, Command, CommandKind, Reply
from covey_contract.reasons import Reason
from covey_contract.signing import Trust, verify
from covey_contract.wire import decode

log = logging.getLogger(__name__)

_MAX_TEXT = 90_000


class _Named(msgspec.Struct):
    """Of a command whose kind this agent does not know."""

    id: str
    device: str


class Commands:
    """`answer` gives the reply to send, or None."""

    def __init__(
        self,
        device: str,
        trust: Trust,
        *,
        facts: Callable[[], Facts],
        logs: tuple[Path, ...],
        diagnose: Callable[[], bytes],
        renew: Callable[[], str],
        samples: Samples,
        clock: Callable[[], int],
    ) -> None:
        self._device = device
        self._trust = trust
        self._facts = facts
        self._logs = logs
        self._diagnose = diagnose
        self._renew = renew
        self._samples = samples
        self._clock = clock
        self._seen: deque[str] = deque(maxlen=1024)

    def answer(self, payload: bytes) -> Reply | None:
        try:
            body = verify(decode_envelope(payload), COMMAND_TYPE, self._trust.director)
        except ContractError as error:
            log.warning("a command is ignored: %s", error)
            return None
        try:
            command = decode(Command, body)
        except ContractError as error:
            return self._unknown(body, error)
        now_ms = self._clock()
        if command.device != self._device or now_ms >= command.expires_ms or command.id in self._seen:
            log.info("command %s is for another device, expired, or done", command.id)
            return None
        self._seen.append(command.id)
        reply = Reply(id=command.id, time_ms=now_ms)
        if command.kind is CommandKind.FACTS:
            return msgspec.structs.replace(reply, facts=self._facts())
        if command.kind is CommandKind.LOGS:
            return msgspec.structs.replace(reply, text=tail(self._logs, command.lines))
        if command.kind is CommandKind.DIAGNOSTICS:
            return self._diagnosed(reply)
        if command.kind is CommandKind.RENEW:
            return msgspec.structs.replace(reply, text=self._renew())
        if command.kind is CommandKind.SAMPLES:
            return self._samples.answer(reply, command.samples)
        return msgspec.structs.replace(reply, text=f"covey-agent {__version__}")

    def _diagnosed(self, reply: Reply) -> Reply:
        told = self._diagnose().decode("ascii", "backslashreplace")
        if len(told) > _MAX_TEXT:
            return msgspec.structs.replace(
                reply,
                reason=Reason.INTERNAL,
                detail=f"{len(told)} bytes; `covey-agent diagnose` on the device has no limit",
            )
        return msgspec.structs.replace(reply, text=told)

    def _unknown(self, body: bytes, error: ContractError) -> Reply | None:
        log.warning("a command cannot be read: %s", error)
        try:
            named = msgspec.json.decode(body, type=_Named)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        if named.device != self._device or len(named.id) > 256:
            return None
        return Reply(id=named.id, time_ms=self._clock(), reason=Reason.UNKNOWN_COMMAND, detail=str(error)[:500])


def tail(paths: tuple[Path, ...], lines: int) -> str:
    """The last lines of each log, as much as a reply holds."""
    share = _MAX_TEXT // max(1, len(paths))
    parts = []
    for path in paths:
        try:
            with path.open("rb") as file:
                file.seek(max(0, path.stat().st_size - share))
                text = file.read(share).decode("utf-8", "replace")
        except OSError as error:
            text = f"({error.strerror})"
        parts.append(f"== {path.name}\n" + "\n".join(text.splitlines()[-lines:]))
    # JSON may need several bytes for one character; the message has a limit in bytes.
    return "\n".join(parts).encode("ascii", "replace").decode()[:_MAX_TEXT]
