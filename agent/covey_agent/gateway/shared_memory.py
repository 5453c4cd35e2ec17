"""System shared memory that applications have registered: tensors in and out without passing through a socket.

Source: Triton's "system shared memory extension" of the Open Inference Protocol, so that its clients work unchanged.

Regions are read and written by offset and never mapped, since a mapping whose file its owner cuts short would end the whole gateway
(SIGBUS); what is cut short is one refused request. A region is a file that its owner made for us: it belongs to the gateway's own user
or group, so that nobody can have us open what is not theirs.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec

from covey_agent.gateway.errors import BadRequest, MemoryFullError

MAX_REGIONS = 64
MAX_REGION_BYTES = 1 << 30
# Room for one tensor up to this size is kept from one request to the next.
KEPT_BYTES = 4 << 20
SHM = Path("/dev/shm")  # noqa: S108  # where shm_open(3) keeps its objects

# Names as shm_open takes them: a slash in front or none, and none within.
_KEY = re.compile(r"/?([A-Za-z0-9_][A-Za-z0-9._-]{0,199})")
Size = Annotated[int, msgspec.Meta(ge=0, le=MAX_REGION_BYTES)]


class Registration(msgspec.Struct, frozen=True):
    """Body of `…/register`. `offset` and `byte_size`: the part of the object that is the region."""

    key: str
    byte_size: Annotated[int, msgspec.Meta(ge=1, le=MAX_REGION_BYTES)]
    offset: Size = 0


class RegionStatus(msgspec.Struct, frozen=True):
    name: str
    key: str
    offset: int
    byte_size: int


class Place(msgspec.Struct, frozen=True):
    """A tensor's parameters where it lies in shared memory."""

    shared_memory_region: str
    shared_memory_byte_size: Size
    shared_memory_offset: Size = 0


@dataclass(frozen=True)
class Region:
    status: RegionStatus
    descriptor: int


class SharedMemory:
    """The registered regions, by name, the one that was used last at the end. `limit`: bytes that were read for requests and are not
    answered yet."""

    def __init__(self, limit: int, folder: Path = SHM) -> None:
        self._limit = limit
        self._folder = folder
        self._regions: dict[str, Region] = {}
        self._spare: bytearray | None = None
        self.held = 0

    def register(self, name: str, wanted: Registration) -> None:
        """Raises `BadRequest`. The same again is no error, as an application that was started anew does it."""
        status = RegionStatus(name, wanted.key, wanted.offset, wanted.byte_size)
        if name in self._regions:
            if self._regions[name].status != status:
                raise BadRequest(f"region {name!r} is registered already, otherwise; unregister it first")
            self.unregister(name)  # the object may be another one of the same key by now
        if len(self._regions) >= MAX_REGIONS:
            self._make_room()
        self._regions[name] = Region(status, self._open(wanted))

    def _make_room(self) -> None:
        """Forget the region whose object has no name any longer and that was used longest ago: its owner may be dead, and if not, can
        register it no more, and must make another anyway."""
        for name, region in self._regions.items():
            if os.fstat(region.descriptor).st_nlink == 0:
                self.unregister(name)
                return
        raise BadRequest(f"{MAX_REGIONS} regions are registered already")

    def _open(self, wanted: Registration) -> int:
        match = _KEY.fullmatch(wanted.key)
        if match is None:
            raise BadRequest(f"key: {wanted.key[:100]!r} is not the name of a shared memory object")
        try:
            descriptor = os.open(self._folder / match[1], os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            raise BadRequest(f"key: shared memory {wanted.key!r} cannot be opened: {error.strerror}") from error
        told = os.fstat(descriptor)
        ours = told.st_uid == os.geteuid() or told.st_gid == os.getegid()
        if not stat.S_ISREG(told.st_mode) or not ours:
            os.close(descriptor)
            raise BadRequest(
                f"key: shared memory {wanted.key!r} belongs neither to the gateway's user nor to its group"
            )
        if wanted.offset + wanted.byte_size > told.st_size:
            os.close(descriptor)
            raise BadRequest(f"byte_size: shared memory {wanted.key!r} has {told.st_size} bytes")
        return descriptor

    def unregister(self, name: str) -> None:
        """Forget a region; one that is not there is forgotten already."""
        if (region := self._regions.pop(name, None)) is not None:
            os.close(region.descriptor)

    def unregister_all(self) -> None:
        for name in list(self._regions):
            self.unregister(name)

    def status(self, name: str | None = None) -> list[RegionStatus]:
        """Of all regions or one; raises `BadRequest` for a name that is none."""
        if name is None:
            return [region.status for region in self._regions.values()]
        return [self._region("region", name).status]

    def visit(self, room: memoryview | None = None) -> Visit:
        """For one request; what it reads counts until the visit ends. `room`: where to read it to, one tensor after the other."""
        return Visit(self, room)

    def read(self, field: str, place: Place, size: int, room: memoryview | None = None) -> memoryview:
        """The tensor's bytes, in `room` if that is given; raises `BadRequest` that names the field, and `MemoryFullError`."""
        if self.held + size > self._limit:
            raise MemoryFullError(f"{self.held} bytes of shared memory wait to be computed; try again later")
        descriptor, offset = self._locate(field, place, size)
        data = self._own(size) if room is None else room[:size]
        if os.preadv(descriptor, [data], offset) != size:
            raise BadRequest(f"{field}: region {place.shared_memory_region!r} was cut short by its owner")
        return data

    def _own(self, size: int) -> memoryview:
        spare, self._spare = self._spare, None
        return memoryview(spare if spare is not None and len(spare) >= size else bytearray(size))[:size]

    def forget(self, data: memoryview) -> None:
        """Nobody looks at what was read any longer: the next is read to the same place."""
        if isinstance(data.obj, bytearray) and len(data.obj) <= KEPT_BYTES:
            self._spare = data.obj

    def write(self, field: str, place: Place, data: bytes | memoryview) -> None:
        """Raises `BadRequest`; the region may have been unregistered while the request was computed."""
        descriptor, offset = self._locate(field, place, len(data))
        try:
            written = os.pwrite(descriptor, data, offset)
        except OSError as error:
            raise BadRequest(
                f"{field}: region {place.shared_memory_region!r} takes nothing: {error.strerror}"
            ) from error
        if written != len(data):
            raise BadRequest(f"{field}: region {place.shared_memory_region!r} took {written} of {len(data)} bytes")

    def _locate(self, field: str, place: Place, size: int) -> tuple[int, int]:
        region = self._region(field, place.shared_memory_region)
        if size > place.shared_memory_byte_size:
            raise BadRequest(
                f"{field}.shared_memory_byte_size: {place.shared_memory_byte_size} bytes; the tensor has {size}"
            )
        if place.shared_memory_offset + place.shared_memory_byte_size > region.status.byte_size:
            raise BadRequest(
                f"{field}.shared_memory_byte_size: beyond the {region.status.byte_size} bytes of region {region.status.name!r}"
            )
        return region.descriptor, region.status.offset + place.shared_memory_offset

    def _region(self, field: str, name: str) -> Region:
        region = self._regions.get(name)
        if region is None:
            raise BadRequest(f"{field}: no shared memory region {name[:100]!r} is registered")
        self._regions[name] = self._regions.pop(name)
        return region


class Visit:
    """One request's use of shared memory."""

    def __init__(self, memory: SharedMemory, room: memoryview | None) -> None:
        self._memory = memory
        self._room = room
        self._read: list[memoryview] = []

    def read(self, field: str, place: Place, size: int) -> memoryview:
        """Until the visit ends."""
        data = self._memory.read(field, place, size, self._room)
        if self._room is not None:
            self._room = self._room[size:]
        self._read.append(data)
        self._memory.held += size
        return data

    def write(self, field: str, place: Place, data: bytes | memoryview) -> None:
        self._memory.write(field, place, data)

    def __enter__(self) -> Visit:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        for data in self._read:
            self._memory.held -= len(data)
            self._memory.forget(data)
        self._read.clear()
