"""Files of the repository of releases as one sequence of bytes, for devices that get them over MQTT: msgpack of name -> bytes, in zlib.

>>> unpack_metadata(pack_metadata({"timestamp.json": b"{}"}))
{'timestamp.json': b'{}'}
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import msgspec

from covey_contract.errors import DecodeError, TooLargeError

PART_BYTES = 80 * 1024  # base64 of it and the rest stay below what every broker takes
MAX_BYTES = 16 * 1024 * 1024  # unpacked

_decoder = msgspec.msgpack.Decoder(dict[str, bytes])


def pack_metadata(files: Mapping[str, bytes]) -> bytes:
    return zlib.compress(msgspec.msgpack.encode(dict(files)))


def unpack_metadata(data: bytes) -> dict[str, bytes]:
    """Raises `DecodeError`."""
    unpacker = zlib.decompressobj()
    try:
        unpacked = unpacker.decompress(data, MAX_BYTES + 1)
        if len(unpacked) > MAX_BYTES:
            raise TooLargeError(f"metadata of more than {MAX_BYTES} bytes")
        if not unpacker.eof:
            raise DecodeError("the metadata end too early")
        files: dict[str, bytes] = _decoder.decode(unpacked)
    except (zlib.error, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DecodeError(f"these are no metadata: {error}") from error
    return files


def parts_of(data: bytes) -> list[bytes]:
    """As many parts as it needs, at least one."""
    return [data[at : at + PART_BYTES] for at in range(0, max(len(data), 1), PART_BYTES)]
