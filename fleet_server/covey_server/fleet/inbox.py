"""From bytes on a topic to a typed message. Whatever arrives, the outcome is an `Incoming` or a `ContractError`."""

from __future__ import annotations

from typing import NamedTuple

from covey_contract import topics
from covey_contract.enrolment import RenewRequest
from covey_contract.messages import (
    BlockRequest,
    Hello,
    MetadataRequest,
    Reply,
    Report,
    Status,
    Telemetry,
    TimeRequest,
)
from covey_contract.wire import decode

UpMessage = Hello | Report | Telemetry | Status | Reply | BlockRequest | TimeRequest | MetadataRequest | RenewRequest

_KINDS: dict[topics.Up, type[UpMessage]] = {
    topics.Up.HELLO: Hello,
    topics.Up.REPORT: Report,
    topics.Up.TELEMETRY: Telemetry,
    topics.Up.STATUS: Status,
    topics.Up.BLOCK_REQUEST: BlockRequest,
    topics.Up.REPLY: Reply,
    topics.Up.TIME: TimeRequest,
    topics.Up.METADATA: MetadataRequest,
    topics.Up.RENEWAL: RenewRequest,
}


class Incoming(NamedTuple):
    """A message whose sender the broker has authenticated by its topic; nothing else of it is believed yet."""

    device: str
    message: UpMessage
    received_ms: int


def read(topic: str, payload: bytes, received_ms: int) -> Incoming:
    """Raises `ContractError` and nothing else."""
    device, what = topics.parse_up(topic)
    return Incoming(device, decode(_KINDS[what], payload), received_ms)
