"""MQTT topics: `covey/DEVICE/up/WHAT` from a device, `covey/DEVICE/down/WHAT` to it, `covey/_all/down/…` to all.

Names are `[A-Za-z0-9_-]`, since other characters mean something else to one broker or another, and never begin with `_`,
which is ours.

>>> up("press-7", Up.HELLO)
'covey/press-7/up/hello'
>>> parse_up("covey/press-7/up/hello")
('press-7', <Up.HELLO: 'hello'>)
"""

from __future__ import annotations

import re

from covey_contract.errors import TopicError
from covey_contract.strenum import StrEnum

ROOT = "covey"
DEVICE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
BUILD_DIGEST = re.compile(r"[0-9a-f]{64}")


class Up(StrEnum):
    """What a device says."""

    HELLO = "hello"
    REPORT = "report"
    TELEMETRY = "telemetry"
    STATUS = "status"
    BLOCK_REQUEST = "blkreq"
    REPLY = "reply"
    TIME = "timereq"
    METADATA = "metareq"
    RENEWAL = "renewreq"


class Down(StrEnum):
    """What the server says to one device."""

    ASSIGNMENT = "assignment"
    COMMAND = "command"
    BLOCK = "blk"
    ACK = "ack"
    BROADCAST = "cast"
    TIME = "time"
    METADATA = "meta"
    RENEWAL = "renew"


UP_FILTER = f"{ROOT}/+/up/+"


def check_device_id(device: str) -> str:
    """The id itself if it may stand in a topic; else raises `TopicError`."""
    if not DEVICE_ID.fullmatch(device):
        raise TopicError(f"device id {device!r}: 1 to 64 of A-Z a-z 0-9 _ -, beginning with a letter or digit")
    return device


def up(device: str, what: Up) -> str:
    return f"{ROOT}/{check_device_id(device)}/up/{what}"


def down(device: str, what: Down) -> str:
    return f"{ROOT}/{check_device_id(device)}/down/{what}"


def up_filter(what: Up) -> str:
    """What all devices say of one kind."""
    return f"{ROOT}/+/up/{what}"


def down_filter(device: str) -> str:
    """All that the server says to this one device."""
    return f"{ROOT}/{check_device_id(device)}/down/#"


def broadcast_blocks(build: str) -> str:
    """Where the blocks of a build are published to every device that listens."""
    if not BUILD_DIGEST.fullmatch(build):
        raise TopicError(f"build {build!r} is not a SHA-256 in hex")
    return f"{ROOT}/_all/down/{Down.BLOCK}/{build}"


def broadcast_notes(build: str) -> str:
    """Where the server says how the broadcast of a build stands."""
    if not BUILD_DIGEST.fullmatch(build):
        raise TopicError(f"build {build!r} is not a SHA-256 in hex")
    return f"{ROOT}/_all/down/{Down.BROADCAST}/{build}"


def broadcast_filter(build: str) -> str:
    """All that is broadcast of one build."""
    if not BUILD_DIGEST.fullmatch(build):
        raise TopicError(f"build {build!r} is not a SHA-256 in hex")
    return f"{ROOT}/_all/down/+/{build}"


def is_broadcast(topic: str) -> bool:
    """Whether the server says it to all."""
    return topic.startswith(f"{ROOT}/_all/down/")


def parse_up(topic: str) -> tuple[str, Up]:
    """Device and kind of a topic on which a device speaks; raises `TopicError` for any other."""
    parts = topic.split("/")
    if len(parts) != 4 or parts[0] != ROOT or parts[2] != "up":
        raise TopicError(f"{topic!r} is not a topic of a device")
    try:
        return check_device_id(parts[1]), Up(parts[3])
    except ValueError as error:
        raise TopicError(f"{topic!r} is not a topic of a device") from error


def parse_down(topic: str) -> Down:
    """What the server says on this topic; raises `TopicError` if it is not one of `Down`."""
    parts = topic.split("/")
    if is_broadcast(topic) and len(parts) == 5 and parts[3] in (Down.BLOCK, Down.BROADCAST):
        return Down(parts[3])
    if len(parts) != 4 or parts[0] != ROOT or parts[2] != "down":
        raise TopicError(f"{topic!r} is not a topic of the server")
    try:
        return Down(parts[3])
    except ValueError as error:
        raise TopicError(f"{topic!r} is not a topic of the server") from error
