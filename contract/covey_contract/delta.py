"""A delta: what makes a build's blocks out of files of another build, as a file that the server makes and a device applies.

The file is `COVEYDL1`, then segments one after the other: a header and a patch in the format BSDIFF40. A segment gives up to 8
neighbouring blocks of one file, from at most 1 MiB of one older file, which is named by its SHA-256; so whoever applies it needs a few
megabytes, however large the build is. Numbers are big-endian. Blocks that no segment gives are fetched.

Nothing in a delta is believed: what comes of it is kept only if the signed block table names its digest.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from covey_contract.errors import DecodeError
from covey_contract.manifest import BLOCK_BYTES, MAX_FILES

MAGIC = b"COVEYDL1"
SEGMENT_BLOCKS = 8
SEGMENT_BYTES = SEGMENT_BLOCKS * BLOCK_BYTES
SOURCE_BYTES = 2 * SEGMENT_BYTES  # most that a segment is made from
_HEADER = struct.Struct(">HIHIQI32s")


@dataclass(frozen=True, slots=True)
class Segment:
    """Blocks `first` to `first + blocks - 1` of the file with that index on the wire, out of `source_size` bytes of the file
    `source` (its SHA-256 in hex) from `source_at` on. `at`, `size`: where in the delta its patch lies."""

    file: int
    first: int
    blocks: int
    source: str
    source_at: int
    source_size: int
    at: int
    size: int


def encode_segment(segment: Segment, patch: bytes) -> bytes:
    """As it stands in the file; `at` and `size` of the segment are not looked at."""
    numbers = (segment.file, segment.first, segment.blocks, len(patch), segment.source_at, segment.source_size)
    return _HEADER.pack(*numbers, bytes.fromhex(segment.source)) + patch


def read_segments(file: BinaryIO) -> Iterator[Segment]:
    """The segments of a delta, without their patches. Raises `DecodeError`, at the latest where it ends too early; `OSError`."""
    if file.read(len(MAGIC)) != MAGIC:
        raise DecodeError("this is no delta")
    end = file.seek(0, 2)
    at = len(MAGIC)
    while at < end:
        file.seek(at)
        header = file.read(_HEADER.size)
        if len(header) < _HEADER.size:
            raise DecodeError("the delta ends within a header")
        index, first, blocks, size, source_at, source_size, source = _HEADER.unpack(header)
        at += _HEADER.size
        if not (1 <= index <= MAX_FILES and 1 <= blocks <= SEGMENT_BLOCKS and size <= SEGMENT_BYTES):
            raise DecodeError("a segment of the delta is not one")
        if source_size > SOURCE_BYTES or at + size > end:
            raise DecodeError("a segment of the delta reaches too far")
        yield Segment(index, first, blocks, source.hex(), source_at, source_size, at, size)
        at += size
