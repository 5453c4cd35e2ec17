"""Memory that an application shares with the gateway (`client`, `shared_memory=True`)."""

from __future__ import annotations

import contextlib
import mmap
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from covey_agent.client_wire import Array

_SHM = Path("/dev/shm")  # noqa: S108  # where shm_open(3) keeps its objects


class NoSharedMemoryError(Exception):
    """The gateway does not take our regions."""


class SharedRegion:
    """A memory object that both processes hold. It has a name only until the gateway has opened it, so that nothing is left behind."""

    def __init__(self) -> None:
        self.name: str | None = None  # None: the gateway has none
        self.size = 0
        self._map: mmap.mmap | None = None

    @contextlib.contextmanager
    def made(self, size: int) -> Iterator[str]:
        """A new object of at least that size; its name, which ends with the block."""
        self.close()
        size = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        key = f"covey-{secrets.token_hex(8)}"
        try:
            descriptor = os.open(_SHM / key, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise NoSharedMemoryError from error
        try:
            os.posix_fallocate(descriptor, 0, size)  # rather now than as a SIGBUS later
            self._map, self.size = mmap.mmap(descriptor, size), size
            yield key
        except OSError as error:
            raise NoSharedMemoryError from error
        finally:
            os.close(descriptor)
            with contextlib.suppress(FileNotFoundError):
                (_SHM / key).unlink()

    def place(self, arrays: Mapping[str, Array]) -> None:
        """Copy the arrays one after the other."""
        assert self._map is not None  # noqa: S101  # it was made
        offset = 0
        for array in arrays.values():
            self._map[offset : offset + array.nbytes] = array.reshape(-1).view(np.uint8).data
            offset += array.nbytes

    def close(self) -> None:
        if self._map is not None:
            self._map.close()
        self._map, self.name, self.size = None, None, 0
