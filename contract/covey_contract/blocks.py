"""Blocks on the wire, and the bitmaps of those a device still misses.

A block travels as `8 bytes of build digest · u32 file index · u32 block index · bytes`, big-endian. The prefix of the build's
digest keeps blocks of two downloads apart; it is no proof of anything, the block table is.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from covey_contract.errors import DecodeError
from covey_contract.manifest import BLOCK_BYTES

_HEADER = struct.Struct(">8sII")
# A request names at most this many blocks, as bits of a bitmap.
REQUEST_BLOCKS = 16


@dataclass(frozen=True, slots=True)
class Block:
    """One block as it arrived; nothing about it is verified yet."""

    build_prefix: bytes  # the first 8 bytes of the build's digest
    file: int  # 0: the block table; i + 1: files[i] of the manifest
    index: int
    data: bytes


def encode_block(build: str, file: int, index: int, data: bytes) -> bytes:
    return _HEADER.pack(bytes.fromhex(build[:16]), file, index) + data


def frame_of(block: Block) -> bytes:
    """As it travels."""
    return _HEADER.pack(block.build_prefix, block.file, block.index) + block.data


def decode_block(payload: bytes) -> Block:
    """Raises `DecodeError` if the payload is no block."""
    if not _HEADER.size < len(payload) <= _HEADER.size + BLOCK_BYTES:
        raise DecodeError(
            f"a block has 1 to {BLOCK_BYTES} bytes after its header of {_HEADER.size}; this is {len(payload)} in all"
        )
    prefix, file, index = _HEADER.unpack_from(payload)
    return Block(prefix, file, index, payload[_HEADER.size :])


def bitmap_of(base: int, indices: list[int]) -> int:
    """Bit i set for block base + i. All of `indices` must lie in [base, base + REQUEST_BLOCKS)."""
    bitmap = 0
    for index in indices:
        if not 0 <= index - base < REQUEST_BLOCKS:
            raise DecodeError(f"block {index} does not fit a request based at {base}")
        bitmap |= 1 << (index - base)
    return bitmap


def blocks_of(base: int, bitmap: int) -> list[int]:
    """The block indices that a request names, ascending."""
    return [base + bit for bit in range(REQUEST_BLOCKS) if bitmap >> bit & 1]
