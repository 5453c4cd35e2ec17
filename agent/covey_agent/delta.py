"""A build out of one that is here: the delta is fetched as one file, then its patches are applied, and what they give is judged like blocks
that came over the network.

A delta can only save bytes. One that does not come, is damaged, gives other bytes than the block table names, or is made of a file
that is not here any longer, costs its own bytes and nothing more: the blocks it should have given are asked for. One segment is
in memory at a time, and what a patch unpacks to has a limit.
"""

from __future__ import annotations

import bz2
import importlib.util
import logging
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from covey_agent.errors import StepError
from covey_agent.fetch import Fetcher, FetchLimits
from covey_agent.store import Store
from covey_contract.delta import SEGMENT_BYTES, Segment, read_segments
from covey_contract.errors import DecodeError
from covey_contract.manifest import BLOCK_BYTES, FileEntry
from covey_contract.messages import DeltaOffer

log = logging.getLogger(__name__)

# Of the control loop's time, at one look.
APPLY_S = 0.2
# A server that made a delta and has lost it says nothing; then the blocks are asked for instead.
_PATIENCE_S = 30.0
_HEADER = struct.Struct("<8sqqq")  # BSDIFF40: bytes of the packed control and difference blocks, bytes that come of it
_CONTROL_BYTES = 24 * 65536


@dataclass(frozen=True, slots=True)
class _OneFile:
    """A listing (covey_agent.fetch) of a single file whose blocks have no digests of their own: it is judged as a whole."""

    table: FileEntry
    block_size: int = BLOCK_BYTES
    files: tuple[FileEntry, ...] = ()

    def wire_files(self) -> tuple[FileEntry, ...]:
        return (self.table,)


class DeltaFetch:
    """`open`; fetch by `fetcher` until that is done; then `apply` until it is `over`. It is so from the start where this fetch of the
    build has been through it before."""

    def __init__(
        self,
        offer: DeltaOffer,
        folder: Path,
        store: Store,
        limits: FetchLimits,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        entry = FileEntry(path="delta", size=offer.size, sha256=offer.sha256)
        limits = replace(limits, patience_s=_PATIENCE_S, bad_blocks=1)
        self.fetcher = Fetcher(offer.sha256, _OneFile(entry), folder, store, limits)
        self._path = folder / offer.sha256
        self._mark = folder / f"{offer.sha256}.over"
        self.over = self._mark.exists()
        self._opened = False
        self._store = store
        self._monotonic = monotonic
        self._blocks: Iterator[tuple[int, int, bytes]] | None = None

    def open(self) -> None:
        """Once, however often it is called: the disk must hold the build's own files first. Raises `StepError`."""
        if not self._opened:
            self._opened = True
            self.fetcher.open()

    def apply(self, build: Fetcher) -> None:
        """Give `build` the blocks that the delta makes, for as long as one look may take. Raises `StepError` where the disk does."""
        until = self._monotonic() + APPLY_S
        if self._blocks is None:
            self._blocks = made_blocks(self._path, self._store)
        try:
            for file, index, data in self._blocks:
                build.put(file, index, data)
                if build.done:
                    break
                if self._monotonic() > until:
                    return
        except (DecodeError, OSError) as error:
            log.warning("the delta cannot be applied: %s", error)
        log.info("build %s: %d bytes are made by the delta", build.build[:12], build.progress.made)
        self.end()

    def end(self) -> None:
        """Nothing more will come of it."""
        self.over = True
        try:
            self._mark.touch()
            self._path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("the delta is left lying: %s", error)

    def close(self) -> None:
        self.fetcher.close()


def can_apply() -> bool:
    """Whether the library is here; some devices have none, and fetch builds whole."""
    return importlib.util.find_spec("bsdiff4") is not None


def made_blocks(delta: Path, store: Store) -> Iterator[tuple[int, int, bytes]]:
    """File index, block index and bytes of every block that the delta gives. A segment that gives none, for whatever reason, is
    passed over. Raises `DecodeError` if the file is no delta, and `OSError`."""
    with delta.open("rb") as file:
        for segment in read_segments(file):
            file.seek(segment.at)
            patch = file.read(segment.size)
            try:
                data = patched(_source(segment, store), patch, segment.blocks * BLOCK_BYTES)
            except (StepError, OSError, ValueError) as error:
                log.warning("blocks of file %d from %d on are not made: %s", segment.file, segment.first, error)
                continue
            for at in range(0, len(data), BLOCK_BYTES):
                yield segment.file, segment.first + at // BLOCK_BYTES, data[at : at + BLOCK_BYTES]


def _source(segment: Segment, store: Store) -> bytes:
    with store.blob(segment.source).open("rb") as file:
        file.seek(segment.source_at)
        return file.read(segment.source_size)


def patched(source: bytes, patch: bytes, most: int = SEGMENT_BYTES) -> bytes:
    """What a BSDIFF40 patch makes of `source`, at most `most` bytes. Raises `ValueError` if it is no such patch."""
    from bsdiff4 import core  # not at the top: see `can_apply`

    if len(patch) < _HEADER.size:
        raise ValueError("the patch has no header")
    magic, control_size, difference_size, size = _HEADER.unpack_from(patch)
    if magic != b"BSDIFF40" or not 0 <= size <= most or min(control_size, difference_size) < 0:
        raise ValueError("the patch has a strange header")
    at = _HEADER.size
    control = _unpacked(patch[at : at + control_size], _CONTROL_BYTES)
    difference = _unpacked(patch[at + control_size : at + control_size + difference_size], size)
    extra = _unpacked(patch[at + control_size + difference_size :], size)
    made: bytes = core.patch(source, size, control, difference, extra)
    return made


def _unpacked(data: bytes, most: int) -> bytes:
    """A few bytes of bzip2 can stand for gigabytes."""
    unpacker = bz2.BZ2Decompressor()
    try:
        unpacked = unpacker.decompress(data, most + 1)
    except (OSError, EOFError) as error:
        raise ValueError("the patch is not bzip2") from error
    if len(unpacked) > most or not unpacker.eof:
        raise ValueError("the patch unpacks to more than it may, or ends too early")
    return unpacked
