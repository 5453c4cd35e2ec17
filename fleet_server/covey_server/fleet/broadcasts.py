"""Which builds are broadcast, and which of their blocks next: one stream for all devices that want the same build.

A stream *gathers* (orders are on their way), *sends* each block once in the order of the wire, and is then *over*: devices ask for
what they missed. What many miss goes out once more to all, what few miss to each. Invariants: what is sent does not depend on how
many devices listen; a stream that was begun ends. Pure: time is a parameter, in seconds; thread-safe.

>>> streams = Broadcasts(BroadcastLimits(from_devices=2, from_blocks=2, gather_s=1.0))
>>> streams.ordered("ab", devices=2, blocks=(2,), now=0.0)
True
>>> [streams.next("ab", now) for now in (0.5, 1.0, 1.1, 1.2)]
[None, (0, 0), (0, 1), None]
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from covey_contract.blocks import REQUEST_BLOCKS

_FULL = REQUEST_BLOCKS
_STREAMS = 64
_SOUGHT_S = 10.0
Place = tuple[int, int]  # file index, block index


@dataclass(frozen=True)
class BroadcastLimits:
    """`from_devices`: so many devices, at least, make a broadcast; 0: never."""

    from_devices: int = 8
    from_blocks: int = 16  # smaller builds are asked for sooner than they are gathered for
    bytes_per_s: float = 8e6
    gather_s: float = 3.0  # after the last order
    gather_most_s: float = 15.0  # after the first
    repair_s: float = 1.0  # for so long what is asked for is put together
    note_s: float = 1.0
    over_notes: int = (
        6  # that it is over is said so often, every `over_s`: a broker that holds too much for a device drops notes too
    )
    over_s: float = 2.0
    least_bytes_per_s: float = 64e3  # to which repairs of repairs slow down


@dataclass(slots=True)
class _Stream:
    counts: Sequence[int]  # blocks by file index
    first: float
    starts: float
    todo: list[Place]
    at: int = 0
    listeners: int = 0
    rate: float | None = None  # bytes a second; None: the limit
    over_at: float | None = None
    over_said: int = 0
    noted: float = float("-inf")

    @property
    def here(self) -> Place:
        """The next block; beyond all of them when there is none."""
        return self.todo[self.at] if self.at < len(self.todo) else (1 << 32, 0)


@dataclass(slots=True)
class _Asked:
    """What devices have asked for since `since`, of one build."""

    since: float
    counts: Sequence[int]
    blocks: dict[Place, set[str]] = field(default_factory=dict)
    whole: dict[str, Place] = field(default_factory=dict)  # devices that want everything from here on


@dataclass(slots=True)
class _Sought:
    """Devices that have asked for blocks of a build, until a time. `hold`: see what they have in common before answering."""

    until: float
    devices: set[str] = field(default_factory=set)
    hold: bool = True
    after_stream: bool = False


@dataclass(frozen=True)
class Note:
    """To be said to all: `blocks` are still to come, or it is over."""

    build: str
    blocks: int
    over: bool
    listeners: int


class Broadcasts:
    """Use: `ordered` for each batch of orders, `asked` for each request, then `next` and `notes` in turns."""

    def __init__(self, limits: BroadcastLimits) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._streams: dict[str, _Stream] = {}
        self._asked: dict[str, _Asked] = {}
        self._sought: dict[str, _Sought] = {}
        self._ended: dict[str, _Stream] = {}  # the latest of each build

    def ordered(self, build: str, devices: int, blocks: Sequence[int], now: float, rate: float | None = None) -> bool:
        """So many more devices are told to fetch a build whose files have that many blocks. Whether they shall listen."""
        limits = self._limits
        with self._lock:
            stream = self._streams.get(build)
            if stream is None or stream.over_at is not None:
                worth = 0 < limits.from_devices <= devices and sum(blocks) >= limits.from_blocks
                if not worth or len(self._streams) >= _STREAMS:
                    return False
                stream = _Stream(blocks, now, now, list(_places(blocks)), rate=rate)
                self._streams[build] = stream
                self._asked.pop(build, None)
                self._ended.pop(build, None)
            if not stream.at:
                stream.starts = min(now + limits.gather_s, stream.first + limits.gather_most_s)
            stream.listeners += devices
            if rate is not None:
                stream.rate = rate if stream.rate is None else min(rate, stream.rate)
            return True

    def asked(self, device: str, build: str, counts: Sequence[int], places: Sequence[Place], now: float) -> bool:
        """A device asks for blocks. Whether the request is kept: it is answered by the stream, or by `settled` soon.

        The block table is never kept: without it nothing that is broadcast can be checked.
        """
        if (
            not self._limits.from_devices
            or sum(counts) < self._limits.from_blocks
            or any(not file for file, _ in places)
        ):
            return False
        with self._lock:
            stream = self._streams.get(build)
            sending = stream is not None and stream.over_at is None
            if stream is not None and sending and (not stream.at or all(place >= stream.here for place in places)):
                return True  # still to come
            if not sending and not self._is_sought(device, build, now):
                return False
            asked = self._asked.get(build)
            if asked is None:
                asked = self._asked[build] = _Asked(now, counts)
            for place in places:
                asked.blocks.setdefault(place, set()).add(device)
            if len(places) == _FULL:
                asked.whole[device] = min(places[0], asked.whole.get(device, places[0]))
            return True

    def _is_sought(self, device: str, build: str, now: float) -> bool:
        """Whether many devices are at this build now, so that it is worth the wait to see what they have in common."""
        sought = self._sought.get(build)
        if sought is None:
            if len(self._sought) >= _STREAMS:
                del self._sought[next(iter(self._sought))]
            sought = self._sought[build] = _Sought(now)
        if now >= sought.until:
            sought.devices.clear()
            sought.until, sought.hold = now + _SOUGHT_S, True
        sought.devices.add(device)
        return sought.hold and (sought.after_stream or len(sought.devices) >= self._limits.from_devices)

    def settled(self, now: float) -> list[tuple[str, str, Place]]:
        """What was asked for and few others want: (device, build, place), to be sent to each. The rest has become a stream."""
        alone: list[tuple[str, str, Place]] = []
        with self._lock:
            for build, asked in list(self._asked.items()):
                stream = self._streams.get(build)
                if now - asked.since < self._limits.repair_s or (stream is not None and stream.over_at is None):
                    continue
                del self._asked[build]
                shared = self._shared(asked)
                for place, devices in asked.blocks.items():
                    if place not in shared:
                        alone += [(device, build, place) for device in sorted(devices)]
                if not shared:
                    self._sought[build] = _Sought(now + _SOUGHT_S, hold=False)  # each its own: at once from now on
                else:
                    again = _Stream(asked.counts, now, now, sorted(shared))
                    ended = self._ended.get(build)
                    if ended is not None:
                        again.listeners, again.rate = ended.listeners, self._slower(ended, len(shared))
                    self._streams[build] = again
        return alone

    def _slower(self, ended: _Stream, lost: int) -> float | None:
        """How fast to repeat what many lost of a stream: as fast as the rest of it arrived. Else the broker would drop it once more."""
        rate = self._limits.bytes_per_s if ended.rate is None else min(ended.rate, self._limits.bytes_per_s)
        share = lost / max(len(ended.todo), 1)
        return max(rate * max(1.0 - share, 0.25), min(rate, self._limits.least_bytes_per_s))

    def _shared(self, asked: _Asked) -> set[Place]:
        enough = self._limits.from_devices
        shared = {place for place, devices in asked.blocks.items() if len(devices) >= enough}
        if len(asked.whole) >= enough and shared:
            # They have just begun, or have all lost the rest: more than one request can name.
            first = min(asked.whole.values())
            shared.update(place for place in _places(asked.counts) if place >= first)
        return shared

    def builds(self) -> list[str]:
        """Of which there is more to send."""
        with self._lock:
            return [build for build, stream in self._streams.items() if stream.over_at is None]

    def rate(self, build: str) -> float:
        """Bytes a second."""
        with self._lock:
            stream = self._streams.get(build)
            most = self._limits.bytes_per_s
            return most if stream is None or stream.rate is None else min(stream.rate, most)

    def next(self, build: str, now: float) -> Place | None:
        """The block that is to be sent now, if any; the caller sends it or calls `back`."""
        with self._lock:
            stream = self._streams.get(build)
            if stream is None or stream.over_at is not None or now < stream.starts:
                return None
            if stream.at >= len(stream.todo):
                stream.over_at = now
                if len(self._ended) >= _STREAMS:
                    del self._ended[next(iter(self._ended))]
                self._ended[build] = stream
                self._sought[build] = _Sought(now + _SOUGHT_S, after_stream=True)
                return None
            stream.at += 1
            return stream.todo[stream.at - 1]

    def back(self, build: str) -> None:
        """What `next` gave could not be sent."""
        with self._lock:
            stream = self._streams.get(build)
            if stream is not None and stream.at:
                stream.at -= 1

    def notes(self, now: float) -> list[Note]:
        """What is to be said now; streams that are over are forgotten after the last of it."""
        said = []
        with self._lock:
            for build, stream in list(self._streams.items()):
                over = stream.over_at is not None
                pause = self._limits.over_s if stream.over_said else 0.0 if over else self._limits.note_s
                if now - stream.noted < pause:
                    continue
                stream.noted = now
                said.append(Note(build, len(stream.todo) - stream.at, over, stream.listeners))
                stream.over_said += over
                if stream.over_said >= self._limits.over_notes:
                    del self._streams[build]
        return said


def _places(counts: Sequence[int]) -> Iterator[Place]:
    """Every block of a build, in the order of the wire."""
    return ((file, index) for file, count in enumerate(counts) for index in range(count))


def places_of(file: int, indices: Iterable[int]) -> list[Place]:
    return [(file, index) for index in indices]
