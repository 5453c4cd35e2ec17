"""Bundles (`covey_contract.bundle`) on the device: one that is read, and those that builds are being fetched from.

What is read here is judged elsewhere, as if the network had brought it: orders and metadata by their signatures, blocks by their digests.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import struct
import threading
from collections.abc import Callable
from pathlib import Path

from covey_agent.errors import AgentError
from covey_contract.blocks import Block, blocks_of
from covey_contract.bundle import MAX_ORDER_BYTES, blob_name, order_of
from covey_contract.errors import DecodeError
from covey_contract.manifest import FileEntry
from covey_contract.messages import BlockRequest, Offer

log = logging.getLogger(__name__)

SCHEME = "bundle://"  # of addresses; what follows is a path as it is, nothing quoted
# A zip member's own header: signature, 22 bytes that the directory has too, and the lengths of what stands before the bytes.
_LOCAL = struct.Struct("<4s22xHH")
_FULL_INBOX_S = 0.05


class BundleError(AgentError):
    """This file is no bundle, or cannot be read."""


class Bundle:
    """An open file; `close` it. Its table of contents is read once, within bounds, and its bytes in place."""

    def __init__(self, path: Path) -> None:
        """Opens it. Raises `BundleError`."""
        from covey_contract.sources import members  # `zipfile` is needed by nothing else here

        self.path = path
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise BundleError(f"{path} cannot be read: {error.strerror}") from error
        try:
            with open(self._descriptor, "rb", closefd=False) as file:  # noqa: PTH123  # a descriptor has no path
                found = members(file)
        except (DecodeError, OSError, struct.error, OverflowError) as error:
            os.close(self._descriptor)
            raise BundleError(f"{path} is no bundle: {error}") from error
        # What is compressed or encrypted has another size in the file: it is as if it were not there.
        self._places = {
            one.filename: (one.header_offset, one.file_size)
            for one in found
            if one.compress_type == 0 and one.compress_size == one.file_size and not one.flag_bits & 1
        }

    def __enter__(self) -> Bundle:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        os.close(self._descriptor)

    def size(self, name: str) -> int | None:
        """Bytes of a member; None: there is none of that name."""
        place = self._places.get(name)
        return place[1] if place is not None else None

    def devices(self) -> dict[str, list[str]]:
        """The models that it has orders for, by device."""
        found: dict[str, list[str]] = {}
        for name in sorted(self._places):
            if (order := order_of(name)) is not None:
                found.setdefault(order[0], []).append(order[1])
        return found

    def order(self, name: str) -> bytes:
        """Raises `BundleError`."""
        if (self.size(name) or 0) > MAX_ORDER_BYTES:
            raise BundleError(f"{name} in {self.path} is larger than an order may be")
        return self.read(name, 0, MAX_ORDER_BYTES)

    def read(self, name: str, start: int, length: int) -> bytes:
        """So many bytes of a member, fewer at its end. Raises `BundleError`."""
        if name not in self._places:
            raise BundleError(f"{self.path} has no {name}")
        offset, size = self._places[name]
        try:
            mark, words, extra = _LOCAL.unpack(os.pread(self._descriptor, _LOCAL.size, offset))
            if mark != b"PK\x03\x04":
                raise BundleError(f"{self.path} is damaged: {name} is not where its directory says")
            wanted = max(0, min(length, size - start))
            data = os.pread(self._descriptor, wanted, offset + _LOCAL.size + words + extra + start)
        except (OSError, struct.error, OverflowError) as error:  # its directory may claim any place
            raise BundleError(f"{self.path} cannot be read: {error}") from error
        if len(data) != wanted:
            raise BundleError(f"{self.path} ends too early")
        return data


class Bundles:
    """The bundles that builds are being fetched from. `take` is given each block, in a thread of the bundle's own (a stick may stall),
    and says whether there was room for it."""

    def __init__(self, take: Callable[[Block], bool]) -> None:
        self._take = take
        self._readers: dict[str, _Reader] = {}  # by build

    def attach(self, build: str, path: Path) -> None:
        """From now on the build's blocks come from there. Raises `BundleError`."""
        self.drop(build)
        reader = _Reader(Bundle(path), self._take)
        reader.start()
        self._readers[build] = reader

    def path(self, build: str) -> Path | None:
        """Of the bundle that the build comes from, while it can be read."""
        reader = self._readers.get(build)
        return reader.bundle.path if reader is not None and reader.trouble is None else None

    def ask(self, request: BlockRequest, entry: FileEntry, block_size: int, offer: Offer) -> bool:
        """Get these blocks of a file; False if that must be done another way."""
        del offer
        reader = self._readers.get(request.build)
        if reader is None or reader.trouble is not None or reader.bundle.size(blob_name(entry.sha256)) != entry.size:
            return False
        reader.wanted.put((request, entry, block_size))
        return True

    def drop(self, build: str) -> None:
        """The build needs it no longer: the stick may be taken out."""
        if (reader := self._readers.pop(build, None)) is not None:
            reader.ended.set()
            reader.wanted.put(None)

    def stop(self) -> None:
        for build in list(self._readers):
            self.drop(build)


class _Reader(threading.Thread):
    """Reads what is `wanted` until there is `trouble`, or None is."""

    def __init__(self, bundle: Bundle, take: Callable[[Block], bool]) -> None:
        super().__init__(name="covey-bundle", daemon=True)
        self.bundle = bundle
        self.wanted: queue.SimpleQueue[tuple[BlockRequest, FileEntry, int] | None] = queue.SimpleQueue()
        self.ended = threading.Event()
        self.trouble: BundleError | None = None
        self._take = take

    def run(self) -> None:
        with contextlib.closing(self.bundle):
            try:
                while (item := self.wanted.get()) is not None:
                    self._read(*item)
            except BundleError as error:
                log.warning("%s", error)
                self.trouble = error

    def _read(self, request: BlockRequest, entry: FileEntry, block_size: int) -> None:
        for index in blocks_of(request.base, request.bitmap):
            data = self.bundle.read(blob_name(entry.sha256), index * block_size, block_size)
            block = Block(bytes.fromhex(request.build[:16]), request.file, index, data)
            while not self.ended.is_set() and not self._take(block):
                self.ended.wait(_FULL_INBOX_S)
            if self.ended.is_set():
                return
