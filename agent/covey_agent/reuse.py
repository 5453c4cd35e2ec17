"""Blocks that the device has already, in files of other builds: found by their digests and copied instead of fetched.

A new version often shares most of its bytes with the one before: all layers but the last, labels, golden vectors. Files are looked
at in whole blocks from their beginning; what has moved by a few bytes is not found. Nothing read here is believed: a block is
copied only if its digest is the one that the signed block table names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from covey_agent.partial import Partial

# Read and hashed at most, by one fetch: about a second on a slow board.
LOOK_AT_BYTES = 256_000_000


def take_over(parts: Mapping[int, Partial], files: Iterable[Path], block_size: int, limit: int = LOOK_AT_BYTES) -> int:
    """Fill what `parts` miss from `files`, the likeliest first; the bytes that need not be fetched. Raises `OSError` if a part
    cannot be written; a file that cannot be read is passed over."""
    wanted: dict[bytes, list[tuple[Partial, int]]] = {}
    for part in parts.values():
        for index, digest in part.missing_digests():
            wanted.setdefault(digest, []).append((part, index))
    taken = 0
    for path in files:
        if not wanted or limit <= 0:
            break
        try:
            with path.open("rb", buffering=0) as file:
                while limit > 0 and wanted and (data := file.read(block_size)):
                    limit -= len(data)
                    taken += _put(wanted.pop(hashlib.sha256(data).digest(), []), data)
        except FileNotFoundError:
            continue
    return taken


def _put(places: Iterable[tuple[Partial, int]], data: bytes) -> int:
    """Bytes that were written."""
    count = 0
    for part, index in places:
        if part.fits(index, data):
            part.put(index, data)
            count += len(data)
    return count
