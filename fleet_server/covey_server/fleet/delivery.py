"""Sends blocks of assigned builds from the blob store: broadcasts them to many, answers the requests of each; fairly and no
faster than allowed.

Only builds that the asking device is assigned. What cannot be sent is dropped: the device asks again after a few seconds
of silence. A thread of its own, so that a slow disk or a hungry device never holds up reports.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple, Protocol

from sqlalchemy import select

from covey_contract.blocks import blocks_of, encode_block
from covey_contract.errors import DecodeError
from covey_contract.manifest import BLOCK_BYTES, FileEntry, Manifest, block_count
from covey_contract.messages import BlockRequest, Broadcast
from covey_contract.topics import broadcast_blocks, broadcast_notes
from covey_contract.wire import decode, encode
from covey_server.db.engine import Database
from covey_server.db.tables import AssignmentRow, Build, Desired, Device
from covey_server.deltas.desk import Made, entry_of
from covey_server.errors import NotFound
from covey_server.fleet.broadcasts import BroadcastLimits, Broadcasts, places_of
from covey_server.fleet.counters import Counters
from covey_server.fleet.inbox import Incoming
from covey_server.fleet.pacing import TokenBucket

log = logging.getLogger(__name__)

_IDLE_S = 0.25
_BURST_S = 0.25
_OPEN_FILES = 64
_KNOWN_BUILDS = 64
_KNOWN_RIGHTS = 20_000
_RIGHT_S = 5.0
_UNSENT_BLOCKS = 128
_QOS_OF_BROADCAST = (
    1  # the broker keeps one copy for all who are slow, within its limits; of QoS 0 it keeps one for each
)


class Blobs(Protocol):
    def open(self, sha256: str) -> BinaryIO: ...


class Sending(Protocol):
    """A message handed to the network thread."""

    def is_published(self) -> bool: ...

    def wait_for_publish(self, timeout: float | None = None) -> None: ...


@dataclass(frozen=True)
class DeliveryLimits:
    """How fast blocks may leave. Bytes are payload bytes; requests beyond `outstanding_blocks` a device are dropped."""

    device_bytes_per_s: float = 16e6
    total_bytes_per_s: float = 100e6
    outstanding_blocks: int = 64


class _Wanted(NamedTuple):
    build: str
    file: int
    block: int


class _BuildFiles(NamedTuple):
    block_size: int
    files: tuple[FileEntry, ...]  # by index on the wire
    counts: tuple[int, ...]  # of their blocks


class Delivery:
    """`send` publishes one block to a device at QoS 0, `send_all` something on a topic of all; None: there is no session. `delta_of` knows
    deltas by their digests; they are delivered as builds of one file."""

    def __init__(
        self,
        database: Database,
        blobs: Blobs,
        counters: Counters,
        requests: queue.Queue[Incoming],
        send: Callable[[str, bytes], Sending | None],
        limits: DeliveryLimits,
        monotonic: Callable[[], float] = time.monotonic,
        *,
        broadcasts: Broadcasts | None = None,
        send_all: Callable[[str, bytes, int], Sending | None] = lambda _topic, _payload, _qos: None,
        delta_of: Callable[[str], Made | None] = lambda _sha256: None,
    ) -> None:
        self._database = database
        self._blobs = blobs
        self._counters = counters
        self._requests = requests
        self._send = send
        self._limits = limits
        self._monotonic = monotonic
        self._total = TokenBucket(limits.total_bytes_per_s, limits.total_bytes_per_s * _BURST_S)
        self._buckets: OrderedDict[str, TokenBucket] = OrderedDict()
        self._pending: OrderedDict[str, deque[_Wanted]] = OrderedDict()
        self._rights: OrderedDict[tuple[str, str], tuple[bool, float]] = OrderedDict()
        self._builds: OrderedDict[str, _BuildFiles] = OrderedDict()
        self._handles: OrderedDict[str, BinaryIO] = OrderedDict()
        self._unsent: deque[Sending] = deque()
        self._broadcasts = broadcasts or Broadcasts(BroadcastLimits(from_devices=0))
        self._send_all = send_all
        self._delta_of = delta_of
        self._streams: dict[str, TokenBucket] = {}
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, name="covey-delivery", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(10.0)
        while self._handles:
            self._handles.popitem()[1].close()

    def ordered(self, build: str, devices: int, rate: float | None = None) -> bool:
        """So many more devices are being told to fetch the build; `rate` is the cap of their campaign, in bytes a second. Whether
        they shall listen to a broadcast. From any thread."""
        files = self._files_of(build)
        if files is None:
            return False
        listen = self._broadcasts.ordered(build, devices, files.counts, self._monotonic(), rate)
        if listen:
            self._counters.add("covey_broadcast_listeners_total", devices, build=build)
        return listen

    def size_of(self, build: str) -> int:
        """Bytes of all its files; 0 if there is no such build."""
        files = self._files_of(build)
        return 0 if files is None else sum(entry.size for entry in files.files)

    def _run(self) -> None:
        pause = _IDLE_S
        while not self._stopping.is_set():
            try:
                self._receive(pause)
                pause = min(self._send_round(), self._broadcast_round())
            except Exception:  # the seam of this thread: devices ask again
                log.exception("block delivery failed; going on")
                self._pending.clear()
                self._stopping.wait(_IDLE_S)

    def _receive(self, wait_s: float) -> None:
        """Take in what is asked, waiting for the first request up to `wait_s`."""
        try:
            incoming = self._requests.get(timeout=wait_s) if wait_s > 0 else self._requests.get_nowait()
            while True:
                if isinstance(incoming.message, BlockRequest):
                    self._note(incoming.device, incoming.message)
                incoming = self._requests.get_nowait()
        except queue.Empty:
            return

    def _note(self, device: str, request: BlockRequest) -> None:
        if not self._may_have(device, request.build):
            self._counters.add("covey_delivery_refused_total", reason="not_assigned")
            return
        build = self._files_of(request.build)
        if build is None or request.file >= len(build.files):
            self._counters.add("covey_delivery_refused_total", reason="no_such_file")
            return
        count = build.counts[request.file]
        indices = [index for index in blocks_of(request.base, request.bitmap) if index < count]
        if not indices:
            self._counters.add("covey_delivery_refused_total", reason="no_such_block")
            return
        places = places_of(request.file, indices)
        if self._broadcasts.asked(device, request.build, build.counts, places, self._monotonic()):
            return
        for index in indices:
            self._queue(device, _Wanted(request.build, request.file, index))

    def _queue(self, device: str, wanted: _Wanted) -> None:
        waiting = self._pending.setdefault(device, deque())
        if wanted in waiting:
            return
        if len(waiting) >= self._limits.outstanding_blocks:
            self._counters.add("covey_delivery_refused_total", reason="too_many_outstanding")
        else:
            waiting.append(wanted)

    def _broadcast_round(self) -> float:
        """One block of each stream whose turn it is, and what is to be said of them. As `_send_round`."""
        now = self._monotonic()
        for device, build, (file, index) in self._broadcasts.settled(now):
            self._queue(device, _Wanted(build, file, index))
        for note in self._broadcasts.notes(now):
            message = Broadcast(build=note.build, blocks=note.blocks, over=note.over, listeners=note.listeners)
            self._send_all(broadcast_notes(note.build), encode(message), _QOS_OF_BROADCAST)
        builds = self._broadcasts.builds()
        for gone in self._streams.keys() - set(builds):
            del self._streams[gone]
        pauses = [self._broadcast_block(build, now) for build in builds]
        return min(pauses, default=0.0 if self._pending else _IDLE_S)

    def _broadcast_block(self, build: str, now: float) -> float:
        bucket = self._streams.get(build)
        if bucket is None:
            rate = self._broadcasts.rate(build)
            bucket = self._streams[build] = TokenBucket(rate, rate * _BURST_S)
        pause = max(self._total.pause(now), bucket.pause(now))
        if pause > 0:
            return min(pause, _IDLE_S)
        place = self._broadcasts.next(build, now)
        if place is None:
            return _IDLE_S / 5
        data = self._read(_Wanted(build, *place))
        if data is None:
            return 0.0
        sending = self._send_all(broadcast_blocks(build), encode_block(build, *place, data), _QOS_OF_BROADCAST)
        if sending is None:
            self._broadcasts.back(build)
            return _IDLE_S
        self._total.take(len(data), now)
        bucket.take(len(data), now)
        self._sent(build, len(data), sending)
        self._counters.add("covey_broadcast_bytes_total", len(data), build=build)
        return 0.0

    def _send_round(self) -> float:
        """One block to each device whose turn it is. Returns how long nothing more can be sent, in seconds."""
        if not self._pending:
            return _IDLE_S
        now, pauses = self._monotonic(), []
        for device in list(self._pending):
            waiting = self._pending[device]
            if not waiting:
                del self._pending[device]
                continue
            pause = max(self._total.pause(now), self._bucket(device).pause(now))
            if pause > 0:
                pauses.append(pause)
                continue
            if not self._send_block(device, waiting.popleft(), now):
                self._pending.clear()
                return _IDLE_S
            self._pending.move_to_end(device)
            pauses.append(0.0)
        return min(pauses, default=0.0)

    def _send_block(self, device: str, wanted: _Wanted, now: float) -> bool:
        """False if there is no session to send on."""
        data = self._read(wanted)
        if data is None:
            return True
        sending = self._send(device, encode_block(wanted.build, wanted.file, wanted.block, data))
        if sending is None:
            self._counters.add("covey_delivery_refused_total", reason="no_session")
            return False
        self._total.take(len(data), now)
        self._bucket(device).take(len(data), now)
        self._sent(wanted.build, len(data), sending)
        return True

    def _read(self, wanted: _Wanted) -> bytes | None:
        """The block's bytes, if it can be read."""
        build = self._files_of(wanted.build)
        if build is None:
            return None
        try:
            handle = self._handle(build.files[wanted.file].sha256)
            return os.pread(handle.fileno(), build.block_size, wanted.block * build.block_size)
        except (OSError, NotFound) as error:
            log.error("block %d of file %d of build %s: %s", wanted.block, wanted.file, wanted.build[:12], error)
            self._counters.add("covey_delivery_refused_total", reason="unreadable")
            return None

    def _sent(self, build: str, size: int, sending: Sending) -> None:
        self._counters.add("covey_delivery_bytes_total", size, build=build)
        self._counters.add("covey_delivery_blocks_total", build=build)
        self._hold_back(sending)

    def _hold_back(self, sending: Sending) -> None:
        """Wait for the network thread where it is far behind: its queue is in memory."""
        self._unsent.append(sending)
        while self._unsent and self._unsent[0].is_published():
            self._unsent.popleft()
        if len(self._unsent) > _UNSENT_BLOCKS:
            try:
                self._unsent[0].wait_for_publish(timeout=1.0)
            except (RuntimeError, ValueError):
                log.debug("blocks were lost with the session")
            self._unsent.popleft()

    def _bucket(self, device: str) -> TokenBucket:
        bucket = self._buckets.get(device)
        if bucket is None:
            rate = self._limits.device_bytes_per_s
            bucket = self._buckets[device] = TokenBucket(rate, rate * _BURST_S)
            if len(self._buckets) > _KNOWN_RIGHTS:
                self._buckets.popitem(last=False)
        return bucket

    def _may_have(self, device: str, build: str) -> bool:
        delta = self._delta_of(build)
        if delta is not None:
            build = delta.new
        now = self._monotonic()
        known = self._rights.get((device, build))
        if known is not None and now - known[1] < _RIGHT_S:
            return known[0]
        query = (
            select(Build.id)
            .join(AssignmentRow, AssignmentRow.build_id == Build.id)
            .join(Desired, Desired.assignment == AssignmentRow.id)
            .join(Device, Device.id == AssignmentRow.device)
            .where(Build.digest == build, Device.id == device, Device.revoked_ms.is_(None))
        )
        with self._database.reading() as session:
            right = session.scalar(query.limit(1)) is not None
        self._rights[device, build] = (right, now)
        self._rights.move_to_end((device, build))
        if len(self._rights) > _KNOWN_RIGHTS:
            self._rights.popitem(last=False)
        return right

    def _files_of(self, build: str) -> _BuildFiles | None:
        known = self._builds.get(build)
        if known is not None:
            return known
        delta = self._delta_of(build)
        if delta is not None:
            return _BuildFiles(BLOCK_BYTES, (entry_of(delta),), (block_count(delta.size),))
        with self._database.reading() as session:
            manifest_bytes = session.scalar(select(Build.manifest).where(Build.digest == build))
        if manifest_bytes is None:
            return None
        try:
            manifest = decode(Manifest, manifest_bytes)
        except DecodeError as error:
            log.error("the stored manifest of build %s is broken: %s", build[:12], error)
            return None
        files = manifest.wire_files()
        counts = tuple(block_count(entry.size, manifest.block_size) for entry in files)
        known = self._builds[build] = _BuildFiles(manifest.block_size, files, counts)
        with contextlib.suppress(KeyError):  # another thread was faster
            if len(self._builds) > _KNOWN_BUILDS:
                self._builds.popitem(last=False)
        return known

    def _handle(self, sha256: str) -> BinaryIO:
        handle = self._handles.get(sha256)
        if handle is None:
            handle = self._handles[sha256] = self._blobs.open(sha256)
            if len(self._handles) > _OPEN_FILES:
                self._handles.popitem(last=False)[1].close()
        self._handles.move_to_end(sha256)
        return handle
