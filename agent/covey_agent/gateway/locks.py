"""Locks that applications hold on the device, so that no order that asks for an unlocked device changes what serves meanwhile.

A lock has an owner and an end; a lock of an application that died ends by itself. Any number of owners may hold one, up to `MAX_LOCKS`.
Locks outlive the gateway's process, a reboot too, in a file that is written before the answer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import msgspec

from covey_agent import durable

log = logging.getLogger(__name__)

LOCK_FILE = "locks.json"
MAX_LOCKS = 32
MAX_TTL_S = 86_400.0
_MAX_FILE_BYTES = 64 * 1024

Owner = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:@-]{0,63}$")]


class Lock(msgspec.Struct, frozen=True):
    owner: str
    expires_ms: int


class LockRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of `POST /v2/covey/lock`. Asking again renews the lock, or shortens it."""

    owner: Owner
    ttl_s: Annotated[float, msgspec.Meta(gt=0, le=MAX_TTL_S)] = 600.0


class UnlockRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of `DELETE /v2/covey/lock`."""

    owner: Owner


class TooManyLocksError(Exception):
    """So many applications hold a lock already."""


class Locks:
    """`now_ms` is Unix time. A clock that is set back cannot make a lock last longer than `MAX_TTL_S` from then."""

    def __init__(self, path: Path, now_ms: Callable[[], int]) -> None:
        self._path = path
        self._now_ms = now_ms
        self._held: dict[str, Lock] = {}
        self._saving = asyncio.Lock()

    def load(self) -> None:
        """What the gateway before has left. A file that cannot be read is said so, and counts as none."""
        try:
            with self._path.open("rb") as file:
                locks = msgspec.json.decode(file.read(_MAX_FILE_BYTES), type=list[Lock])
        except FileNotFoundError:
            return
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            log.warning("the locks of before cannot be read (%s); there are none now", error)
            return
        self._held = {lock.owner: lock for lock in locks[:MAX_LOCKS]}

    def held(self) -> tuple[Lock, ...]:
        """Those that have not ended, by owner."""
        now_ms = self._now_ms()
        latest = now_ms + int(MAX_TTL_S * 1000)
        self._held = {
            owner: lock if lock.expires_ms <= latest else Lock(owner, latest)
            for owner, lock in sorted(self._held.items())
            if lock.expires_ms > now_ms
        }
        return tuple(self._held.values())

    def take(self, request: LockRequest) -> Lock:
        """Raises `TooManyLocksError`. `save` makes it last."""
        self.held()
        if request.owner not in self._held and len(self._held) >= MAX_LOCKS:
            raise TooManyLocksError(f"{MAX_LOCKS} owners hold a lock already")
        lock = Lock(request.owner, self._now_ms() + int(request.ttl_s * 1000))
        self._held[request.owner] = lock
        return lock

    def release(self, owner: str) -> bool:
        """Whether the owner held one."""
        return any(lock.owner == owner for lock in self.held()) and self._held.pop(owner, None) is not None

    async def save(self) -> bool:
        """Whether the locks are on disk now. They count all the same, as long as this process lives."""
        async with self._saving:
            document = msgspec.json.encode(self.held())
            try:
                await asyncio.to_thread(durable.write, self._path, document)
            except OSError as error:
                log.warning("the locks cannot be stored (%s), and will not outlive this process", error)
                return False
        return True
