"""Messages as bytes: JSON by msgspec, with a size limit and a version for every kind.

Every message is a frozen `Message`. Unknown fields are ignored, so that a newer peer may say more; an unknown
version `v` is refused. Decoding never raises anything but a `ContractError`.

>>> from covey_contract.messages import Status
>>> decode(Status, encode(Status(boot_id="b1", online=True, time_ms=0))).online
True
"""

from __future__ import annotations

import functools
from typing import ClassVar, TypeVar

import msgspec

from covey_contract.errors import DecodeError, TooLargeError, UnknownVersionError

PROTOCOL_VERSION = 1

# MQTT brokers differ; 120 KiB passes all of them (AWS IoT Core stops at 128).
MAX_MESSAGE_BYTES = 120 * 1024


class Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Something one side says to the other. `MAX_BYTES` bounds its encoded form."""

    MAX_BYTES: ClassVar[int] = MAX_MESSAGE_BYTES

    # Absent means 1; any other version is always on the wire.
    v: int = PROTOCOL_VERSION


M = TypeVar("M", bound=Message)


class _Versioned(msgspec.Struct):
    v: int = PROTOCOL_VERSION


_version = msgspec.json.Decoder(_Versioned)
_encoder = msgspec.json.Encoder()


def encode(message: Message) -> bytes:
    """The message as JSON bytes.

    Raises `TooLargeError` if they are more than the kind's `MAX_BYTES`: the sender is the one to hear of it.
    """
    data = _encoder.encode(message)
    if len(data) > message.MAX_BYTES:
        raise TooLargeError(f"{type(message).__name__} of {len(data)} bytes; at most {message.MAX_BYTES}")
    return data


def decode(kind: type[M], data: bytes | bytearray | memoryview) -> M:
    """Decode and validate `data` as `kind`; raises `DecodeError` or one of its kinds, and nothing else."""
    if len(data) > kind.MAX_BYTES:
        raise TooLargeError(f"{kind.__name__} of {len(data)} bytes; at most {kind.MAX_BYTES}")
    try:
        message: M = _decoder(kind).decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError) as error:
        _refuse_other_versions(kind, data, error)
        raise DecodeError(f"{kind.__name__}: {error}") from error
    if message.v != PROTOCOL_VERSION:
        raise UnknownVersionError(f"{kind.__name__} of version {message.v}; this side speaks {PROTOCOL_VERSION}")
    return message


@functools.cache
def _decoder(kind: type[M]) -> msgspec.json.Decoder[M]:
    return msgspec.json.Decoder(kind)


def _refuse_other_versions(kind: type[Message], data: bytes | bytearray | memoryview, cause: Exception) -> None:
    """A message of another version may well not fit the shape; then its version is the error, not its shape."""
    try:
        version = _version.decode(data).v
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError):
        return
    if version != PROTOCOL_VERSION:
        raise UnknownVersionError(
            f"{kind.__name__} of version {version}; this side speaks {PROTOCOL_VERSION}"
        ) from cause
