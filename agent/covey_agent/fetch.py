"""Getting a build's bytes: verify each block by digest, write it where it belongs, ask for up to 16 missing ones at a time.

While the build is broadcast nothing is asked for: the server sends each block to all; what was missed is asked for afterwards.

Invariants: a block is written only if the block table, itself pinned by the signed manifest, names its digest; a block that the
bitmap on disk marks has been flushed to disk before; no block that was verified is ever asked for again, also after a kill.
The fetcher is driven: it is told of time and of blocks, and says what to ask for. It talks to nobody itself.
"""

from __future__ import annotations

import errno
import logging
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from covey_agent.errors import StepError
from covey_agent.partial import DIGEST_BYTES, Partial
from covey_agent.reuse import take_over
from covey_agent.store import Store
from covey_contract.blocks import REQUEST_BLOCKS, Block, bitmap_of
from covey_contract.manifest import FileEntry, Manifest
from covey_contract.messages import BlockRequest, Broadcast
from covey_contract.reasons import Reason

log = logging.getLogger(__name__)

# A pause longer than this between two ticks was the agent's own, and says nothing of the bytes that came.
_TICK_MOST_S = 60.0


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """How a fetch behaves. Seconds are of the time in which the device is connected."""

    silence_s: float = 3.0  # after which blocks are asked for again; twice as long each time that nothing comes
    silence_most_s: float = 48.0
    deadline_s: float = 6 * 3600.0
    requests_in_flight: int = 3
    sync_blocks: int = 32  # so many blocks at most are written before they are flushed and the bitmap is stored
    listen_s: float = 15.0  # so long the device waits for a broadcast that was announced, and for the next word of one
    repair_spread_s: float = 2.0  # devices ask for what a broadcast left out at different times, within this
    least_bytes_per_s: float = 200.0  # on average over `patience_s`; a fetch that is slower has failed
    patience_s: float = 900.0
    bad_blocks: int = 64  # so many corrupt blocks, and one more for every 4 good ones, are dropped and asked for again


@dataclass(slots=True)
class _Asked:
    file: int
    blocks: set[int]
    deadline: float
    came: bool = False  # some of them have


@dataclass(slots=True)
class Progress:
    """What a fetch has cost. Bytes are of blocks that were verified and written by this process."""

    bytes: int = 0
    blocks: int = 0
    bad: int = 0
    asked: int = 0
    reused: int = 0  # bytes that were here already, in other builds
    made: int = 0  # bytes that a delta gave


class Listing(Protocol):
    """What there is to fetch: a manifest's files, the first of which is the table of the digests of the others' blocks."""

    @property
    def table(self) -> FileEntry: ...

    @property
    def block_size(self) -> int: ...

    @property
    def files(self) -> tuple[FileEntry, ...]: ...

    def wire_files(self) -> tuple[FileEntry, ...]: ...


@dataclass(slots=True)
class Fetcher:
    """One build on its way. Use: `open`, then `block` for each that arrives and `tick` now and then, until `done`."""

    build: str
    manifest: Listing
    folder: Path  # of this build alone
    store: Store
    limits: FetchLimits
    progress: Progress = field(default_factory=Progress)
    done: bool = False
    only_table: bool = False  # the rest is not asked for yet: it may be made out of what is here
    draw: random.Random = field(default_factory=random.Random)  # when to ask, among many; nothing secret
    _beyond_table: bool = False  # a broadcast has gone on to the files
    _quiet_until: float | None = None  # while it is heard, nothing is asked for
    _paced_s: float = 0.0  # in which the bytes since `_paced_bytes` have come
    _paced_bytes: int = 0
    _entries: Sequence[FileEntry] = ()
    _parts: dict[int, Partial] = field(default_factory=dict)
    _asked: list[_Asked] = field(default_factory=list)
    _table: bytes = b""
    _connected_s: float = 0.0
    _last: float | None = None
    _silences: int = (
        0  # one after the other: the way to here may be longer than was thought, and hold all that was asked for
    )

    def open(self) -> None:
        """Make or take up the partial files. Raises `StepError` (no space, a broken disk)."""
        self._entries = self.manifest.wire_files()
        self._guarded(self._open)

    def _open(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        table = self._part(0, expected=b"")
        if table.complete and table.matches(self.manifest.table.sha256):
            self._take_table(table)
        else:
            if table.complete:
                table.forget()
            self._parts[0] = table
        self._check_done()

    def close(self) -> None:
        """Store what has been verified so far; never raises."""
        for part in self._parts.values():
            try:
                part.flush()
            except OSError as error:
                log.warning("the fetch's bitmap could not be stored: %s", error)
            part.close()

    def expect_broadcast(self, now: float) -> None:
        """The server is about to broadcast the build: listen before asking."""
        self._quiet_until = now + self.limits.listen_s

    def note(self, message: Broadcast, now: float) -> None:
        """The server says how the broadcast stands."""
        wait = self.draw.uniform(0.0, self.limits.repair_spread_s) if message.over else self.limits.listen_s
        self._quiet_until = now + wait

    def block(self, block: Block, now: float, *, broadcast: bool = False) -> None:
        """A block has arrived. Of those that are not broadcast one that was not asked for is ignored; a corrupt one is dropped.
        Raises `StepError`."""
        if block.build_prefix != bytes.fromhex(self.build[:16]):
            return
        if broadcast:
            self._quiet_until = now + self.limits.listen_s
            self._beyond_table = self._beyond_table or block.file > 0
        part = self._parts.get(block.file)
        asked = next((asked for asked in self._asked if asked.file == block.file and block.index in asked.blocks), None)
        if part is None or (asked is None and not broadcast) or part.has(block.index):
            return
        if not part.fits(block.index, block.data):
            if asked is not None:
                asked.came = True  # it is damaged, not silent
            self._bad(f"block {block.index} of {self._entries[block.file].path}")
            return
        if asked is not None:
            asked.blocks.discard(block.index)
            asked.came = True
            asked.deadline = now + self._silence_s
            if not asked.blocks:
                self._silences = max(0, self._silences - 1)
        self._guarded(lambda: part.put(block.index, block.data))
        self.progress.bytes += len(block.data)
        self.progress.blocks += 1
        if part.complete:
            self._guarded(lambda: self._completed(block.file, part))

    def put(self, file: int, index: int, data: bytes) -> None:
        """A block that was made here. One that is not the right one is not kept, and will be asked for. Raises `StepError`."""
        part = self._parts.get(file)
        if part is None or part.has(index) or not part.fits(index, data):
            return
        self._guarded(lambda: part.put(index, data))
        self.progress.made += len(data)
        if part.complete:
            self._guarded(lambda: self._completed(file, part))

    @property
    def knows_blocks(self) -> bool:
        """Whether the block table is here, by which blocks are judged."""
        return 0 not in self._parts

    def tick(self, now: float, *, connected: bool) -> list[BlockRequest]:
        """What to ask for now. Raises `StepError` when the deadline has passed."""
        if self._last is not None and connected:
            self._connected_s += max(0.0, now - self._last)
            if not self.only_table:
                self._paced_s += min(max(0.0, now - self._last), _TICK_MOST_S)
        self._last = now
        if self.done or not connected:
            self._asked.clear()
            self._silences = 0  # what was on its way is gone with the session
            return []
        if self._connected_s > self.limits.deadline_s:
            raise StepError(
                Reason.FETCH_FAILED, f"not done after {self.limits.deadline_s:.0f} s; {self.fraction:.0%} is here"
            )
        self._check_pace()
        if any(asked.blocks and not asked.came and asked.deadline <= now for asked in self._asked):
            self._silences += 1
        self._asked = [asked for asked in self._asked if asked.blocks and asked.deadline > now]
        requests: list[BlockRequest] = []
        if self._listens(now):
            return requests
        while (
            len(self._asked) < (1 if self._silences else self.limits.requests_in_flight)
            and (request := self._next(now)) is not None
        ):
            requests.append(request)
        return requests

    @property
    def _silence_s(self) -> float:
        return float(min(self.limits.silence_s * 2 ** min(self._silences, 16), self.limits.silence_most_s))

    def _listens(self, now: float) -> bool:
        """Whether to wait for what is broadcast. Without the block table nothing of it can be checked: that is asked for at once when
        others already have theirs."""
        if self._quiet_until is None or now >= self._quiet_until:
            self._quiet_until = None
            return False
        return not (self._beyond_table and not self.knows_blocks)

    def _check_pace(self) -> None:
        """Slow retrieval: a fetch that goes on, and never comes to an end."""
        limits = self.limits
        if self._paced_s < limits.patience_s:
            return
        if (self.progress.bytes - self._paced_bytes) / self._paced_s < limits.least_bytes_per_s:
            raise StepError(Reason.FETCH_FAILED, f"less than {limits.least_bytes_per_s:.0f} bytes a second came")
        self._paced_s, self._paced_bytes = 0.0, self.progress.bytes

    @property
    def hungry(self) -> bool:
        """Whether a request has been answered whole, so that `tick` would ask for more, or all is done."""
        return self.done or any(not asked.blocks for asked in self._asked) or not self._asked

    @property
    def fraction(self) -> float:
        """0..1 of the build's bytes that are here."""
        total = sum(entry.size for entry in self._entries) or 1
        open_ = sum(part.missing_bytes for part in self._parts.values())
        if not self.knows_blocks:  # the files themselves are not even begun
            open_ += sum(entry.size for entry in self.manifest.files if not self.store.has_blob(entry))
        return 1.0 - open_ / total

    def _next(self, now: float) -> BlockRequest | None:
        for file, part in self._parts.items():
            if file and self.only_table:
                break
            busy = {index for asked in self._asked if asked.file == file for index in asked.blocks}
            wanted = part.missing(REQUEST_BLOCKS, busy)
            if wanted:
                base = wanted[0]
                wanted = [index for index in wanted if index - base < REQUEST_BLOCKS]
                self._asked.append(_Asked(file, set(wanted), now + self._silence_s))
                self.progress.asked += len(wanted)
                return BlockRequest(build=self.build, file=file, base=base, bitmap=bitmap_of(base, wanted))
        return None

    def _completed(self, file: int, part: Partial) -> None:
        part.flush()
        self._asked = [asked for asked in self._asked if asked.file != file]
        if file == 0:
            # Its blocks have no digests of their own; only the whole can be judged.
            if not part.matches(self.manifest.table.sha256):
                part.forget()
                self._bad("the block table")
                return
            self._take_table(part)
        else:
            del self._parts[file]
            part.close()
        self._check_done()

    def _take_table(self, part: Partial) -> None:
        self._table = part.read_all() if self.manifest.files else b""
        part.close()
        self._parts.clear()
        start = 0
        seen: set[str] = set()
        for file, entry in enumerate(self._entries[1:], start=1):
            length = -(-entry.size // self.manifest.block_size) * DIGEST_BYTES
            expected, start = self._table[start : start + length], start + length
            if self.store.has_blob(entry) or entry.sha256 in seen:
                continue
            seen.add(entry.sha256)
            part = self._part(file, expected)
            if part.complete:
                part.close()
            else:
                self._parts[file] = part
        self._reuse()

    def _reuse(self) -> None:
        """What the device has in other builds is not fetched."""
        sizes = [self._entries[file].size for file in self._parts]
        self.progress.reused += take_over(self._parts, self.store.alike(sizes), self.manifest.block_size)
        for file, part in list(self._parts.items()):
            part.flush()
            if part.complete:
                del self._parts[file]
                part.close()
        if self.progress.reused:
            log.info("build %s: %d bytes are here already, in other builds", self.build[:12], self.progress.reused)

    def _part(self, file: int, expected: bytes) -> Partial:
        entry = self._entries[file]
        # Named by content, so that the same file listed twice is fetched once.
        part = Partial(
            self.folder / entry.sha256, entry.size, self.manifest.block_size, expected, self.limits.sync_blocks
        )
        part.open()
        return part

    def _check_done(self) -> None:
        self.done = not self._parts

    def _bad(self, what: str) -> None:
        self.progress.bad += 1
        log.warning("build %s: %s is corrupt and is asked for again", self.build[:12], what)
        if self.progress.bad > self.limits.bad_blocks + self.progress.blocks // 4:
            raise StepError(Reason.FETCH_FAILED, f"{self.progress.bad} corrupt blocks; the last: {what}")

    def _guarded(self, action: Callable[[], None]) -> None:
        try:
            action()
        except OSError as error:
            raise storage_step_error(error) from error


def adopt_all(manifest: Manifest, folder: Path, store: Store) -> None:
    """Move the fetched files into the store, each read whole first. Raises `CorruptError` after dropping what is known of
    that file, or `OSError`."""
    for entry in manifest.files:
        if store.has_blob(entry):
            continue
        path = folder / entry.sha256
        if not path.exists():
            continue  # staging finds it missing
        try:
            store.adopt(path, entry)
        finally:
            # If it was corrupt, its blocks are to be judged anew by their digests.
            path.with_name(entry.sha256 + ".bits").unlink(missing_ok=True)


def drop(folder: Path) -> None:
    """Give up what was fetched."""
    shutil.rmtree(folder, ignore_errors=True)


def storage_step_error(error: OSError) -> StepError:
    """A disk's complaint as the reason that the server hears."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    reason = Reason.NO_SPACE if full else Reason.STORAGE_ERROR
    return StepError(
        reason, f"{error.strerror or error}" + (f": {Path(error.filename).name}" if error.filename else "")
    )
