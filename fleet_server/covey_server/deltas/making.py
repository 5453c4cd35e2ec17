"""Makes one delta, in a process of its own: `python -m covey_server.deltas.making BLOBS OLD.json NEW.json OUT`, manifests and a new file.

What the device has already (whole blocks, wherever they lie in the older files) is left out, and so is every run of blocks whose patch
saves too little. Each run is compared with the same place of the older file and 64 KiB before and after: successors of a model
keep their layout, and neither side has to hold more than a megabyte.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import bsdiff4

from covey_contract.delta import MAGIC, SEGMENT_BLOCKS, Segment, encode_segment
from covey_contract.manifest import BLOCK_BYTES, FileEntry, Manifest, block_count
from covey_contract.wire import decode
from covey_server.registry.blobs import BlobStore

MARGIN_BYTES = BLOCK_BYTES
WORTH = 0.9  # a patch of more than this part of its blocks is left out
_NICENESS = 19


def main() -> int:
    with contextlib.suppress(OSError):
        os.nice(_NICENESS)
    blobs, old, new, out = (Path(word) for word in sys.argv[1:5])
    with out.open("xb") as file:
        make(BlobStore(blobs), decode(Manifest, old.read_bytes()), decode(Manifest, new.read_bytes()), file)
        file.flush()
        os.fsync(file.fileno())
    return 0


def make(blobs: BlobStore, old: Manifest, new: Manifest, out: BinaryIO) -> None:
    """Raises `NotFound` if a file is not in the store."""
    out.write(MAGIC)
    if old.block_size != BLOCK_BYTES or new.block_size != BLOCK_BYTES:
        return
    here, had = known_blocks(blobs, old), {entry.sha256 for entry in old.files}
    with blobs.open(new.table.sha256) as file:
        table = file.read()
    start = 0
    for index, entry in enumerate(new.files, start=1):
        count = block_count(entry.size)
        digests = [table[at : at + 32] for at in range(start, start + 32 * count, 32)]
        start += 32 * count
        source = source_of(entry, old)
        if entry.sha256 in had or source is None:
            continue
        with blobs.open(entry.sha256) as after, blobs.open(source.sha256) as before:
            for first, blocks in runs([digest not in here for digest in digests]):
                _add(out, Segment(index, first, blocks, source.sha256, 0, 0, 0, 0), before, after)


def known_blocks(blobs: BlobStore, build: Manifest) -> set[bytes]:
    """The digests of all blocks of a build."""
    with blobs.open(build.table.sha256) as file:
        table = file.read()
    return {table[at : at + 32] for at in range(0, len(table), 32)}


def source_of(entry: FileEntry, old: Manifest) -> FileEntry | None:
    """The older file to compare with: of the same path, else the one nearest in size that is not empty."""
    same = next((one for one in old.files if one.path == entry.path), None)
    if same is not None:
        return same
    return min((one for one in old.files if one.size), key=lambda one: abs(one.size - entry.size), default=None)


def runs(wanted: list[bool]) -> Iterator[tuple[int, int]]:
    """Neighbours that are wanted, at most `SEGMENT_BLOCKS` together: (first, count).

    >>> list(runs([True, True, False, True]))
    [(0, 2), (3, 1)]
    """
    first = None
    for at, one in enumerate([*wanted, False]):
        if first is not None and (not one or at - first == SEGMENT_BLOCKS):
            yield first, at - first
            first = None
        if one and first is None:
            first = at


def _add(out: BinaryIO, segment: Segment, before: BinaryIO, after: BinaryIO) -> None:
    at = segment.first * BLOCK_BYTES
    after.seek(at)
    data = after.read(segment.blocks * BLOCK_BYTES)
    source_at = max(0, at - MARGIN_BYTES)
    before.seek(source_at)
    source = before.read(at - source_at + len(data) + MARGIN_BYTES)
    patch = bsdiff4.diff(source, data)
    if len(patch) <= WORTH * len(data):
        given = (segment.file, segment.first, segment.blocks, segment.source, source_at, len(source), 0, len(patch))
        out.write(encode_segment(Segment(*given), patch))


if __name__ == "__main__":
    sys.exit(main())
